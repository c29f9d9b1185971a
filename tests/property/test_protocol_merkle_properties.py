"""Merkle proofs against the definition of RFC 9162, exhaustively for every tree of up to 64 leaves."""

import hashlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.errors import LocalProtocolError, SignatureError
from edge_sdk.protocol import merkle
from edge_sdk.protocol.ids import Digest
from edge_sdk.protocol.limits import PROOF_NODES_MAX
from edge_sdk.protocol.messages import InclusionProof

SIZE_MAX = 64
LEAVES = [hashlib.sha256(bytes([number])).digest()[: number % 33] + bytes([number]) for number in range(SIZE_MAX)]
ROOTS = [merkle.root(LEAVES[:size]) for size in range(SIZE_MAX + 1)]


def defined_root(leaves: list[bytes]) -> bytes:
    """RFC 9162 section 2.1.1, as it is written there."""
    n = len(leaves)
    if n == 0:
        return hashlib.sha256(b"").digest()
    if n == 1:
        return hashlib.sha256(b"\x00" + leaves[0]).digest()
    k = 1
    while 2 * k < n:
        k *= 2
    return hashlib.sha256(b"\x01" + defined_root(leaves[:k]) + defined_root(leaves[k:])).digest()


def holds(leaf: bytes, proof: InclusionProof, root: Digest, size: int) -> bool:
    try:
        merkle.verify_inclusion(leaf, proof, root, size=size)
    except SignatureError:
        return False
    return True


def is_consistent(path: tuple[Digest, ...], old: int, new: int, old_root: Digest, new_root: Digest) -> bool:
    try:
        merkle.verify_consistency(path, old_size=old, old_root=old_root, new_size=new, new_root=new_root)
    except SignatureError:
        return False
    return True


@pytest.mark.parametrize("size", range(SIZE_MAX + 1))
def test_roots_are_those_of_the_definition(size: int) -> None:
    assert ROOTS[size] == defined_root(LEAVES[:size])


def test_roots_differ() -> None:
    assert len(set(ROOTS)) == SIZE_MAX + 1


@pytest.mark.parametrize("size", range(1, SIZE_MAX + 1))
def test_every_leaf_is_proved_and_only_there(size: int) -> None:
    root = ROOTS[size]
    for index in range(size):
        proof = merkle.inclusion_proof(LEAVES[:size], index)
        assert len(proof.path) <= (size - 1).bit_length()
        assert holds(LEAVES[index], proof, root, size)
        for other in {index - 1, index + 1, 0, size - 1, size} - {index}:
            assert not holds(LEAVES[index], replace(proof, index=other), root, size)
        for other_leaf in (LEAVES[(index + 1) % SIZE_MAX], LEAVES[index] + b"\0"):
            assert not holds(other_leaf, proof, root, size)
        for other_size in {1, size // 2, size - 1, size + 1, 2 * size, SIZE_MAX} - {size}:
            assert not holds(LEAVES[index], replace(proof, size=other_size), root, size)
            assert not holds(LEAVES[index], proof, root, other_size)


def test_a_path_alone_does_not_bind_the_size() -> None:
    """Why ``size`` is an argument: one path fits 64 sizes, and only the signed size tells them apart."""
    leaves = [bytes([number]) for number in range(100)]
    proof, root = merkle.inclusion_proof(leaves, 0), merkle.root(leaves)
    fitting = [size for size in range(1, 300) if holds(leaves[0], replace(proof, size=size), root, size)]
    assert fitting == list(range(65, 129))
    assert [size for size in range(1, 300) if holds(leaves[0], replace(proof, size=size), root, 100)] == [100]


@given(st.data())
def test_no_changed_path_holds(draw: st.DataObject) -> None:
    size = draw.draw(st.integers(2, SIZE_MAX))
    index = draw.draw(st.integers(0, size - 1))
    proof = merkle.inclusion_proof(LEAVES[:size], index)
    path = list(proof.path)
    at = draw.draw(st.integers(0, len(path) - 1))
    match draw.draw(st.sampled_from(["flip", "drop", "repeat", "append"])):
        case "flip":
            bit = draw.draw(st.integers(0, 255))
            path[at] = Digest((int.from_bytes(path[at]) ^ 1 << bit).to_bytes(32))
        case "drop":
            del path[at]
        case "repeat":
            path.insert(at, path[at])
        case _:
            path.append(Digest(draw.draw(st.binary(min_size=32, max_size=32))))
    assert not holds(LEAVES[index], replace(proof, path=tuple(path)), ROOTS[size], size)


@pytest.mark.parametrize("new", range(1, SIZE_MAX + 1))
def test_every_prefix_is_proved_and_no_other_tree(new: int) -> None:
    for old in range(1, new + 1):
        path = merkle.consistency_proof(LEAVES[:new], old)
        assert is_consistent(path, old, new, ROOTS[old], ROOTS[new])
        assert not is_consistent(path, old, new, ROOTS[old - 1], ROOTS[new])
        assert not is_consistent(path, old, new, ROOTS[old], ROOTS[new - 1])
        assert not is_consistent((*path, ROOTS[1]), old, new, ROOTS[old], ROOTS[new])
        if path:
            assert not is_consistent(path[:-1], old, new, ROOTS[old], ROOTS[new])
            assert not is_consistent(path[1:], old, new, ROOTS[old], ROOTS[new])
        changed = [*LEAVES[: old - 1], b"rewritten", *LEAVES[old:new]]
        forged = merkle.consistency_proof(changed, old)
        assert not is_consistent(forged, old, new, ROOTS[old], merkle.root(changed))


@pytest.mark.parametrize(("old", "new"), [(0, 4), (5, 4), (-1, 4)])
def test_impossible_sizes_are_refused(old: int, new: int) -> None:
    assert not is_consistent((), old, new, ROOTS[4], ROOTS[4])
    with pytest.raises(LocalProtocolError):
        merkle.consistency_proof(LEAVES[:new], old)


def test_long_paths_are_refused_unread() -> None:
    path = (ROOTS[1],) * (PROOF_NODES_MAX + 1)
    with pytest.raises(SignatureError, match="path of 65 nodes"):
        merkle.verify_inclusion(LEAVES[0], InclusionProof(index=0, size=1 << 52, path=path), ROOTS[1], size=1 << 52)


@pytest.mark.parametrize("index", [-1, 4])
def test_no_proof_for_a_leaf_that_is_not_there(index: int) -> None:
    with pytest.raises(LocalProtocolError):
        merkle.inclusion_proof(LEAVES[:4], index)
