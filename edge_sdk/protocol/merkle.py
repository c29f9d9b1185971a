"""Merkle trees of RFC 9162 section 2.1 over SHA-256.

A leaf is hashed after 0x00 and a node after 0x01; a tree is split at the largest power of two below its size.

An audit path alone does not bind the size of the tree: a path made for 100 leaves can also hold for 65 to 128. So the
verifier passes the size that it knows from a signed place, and a proof for another size is refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from edge_sdk.errors import LocalProtocolError, SignatureError
from edge_sdk.protocol.ids import Digest
from edge_sdk.protocol.limits import PROOF_NODES_MAX
from edge_sdk.protocol.messages import InclusionProof, Reason

EMPTY_ROOT = Digest(hashlib.sha256().digest())


def root(leaves: Sequence[bytes]) -> Digest:
    """Root of a tree; that of no leaves is the hash of nothing.

    Cost: 2 n - 1 hashes, O(n) memory.
    """
    return _subtree([_leaf_hash(leaf) for leaf in leaves])


def inclusion_proof(leaves: Sequence[bytes], index: int) -> InclusionProof:
    """Prove that leaf ``index`` is in the tree (RFC 9162 section 2.1.3.1).

    Raises:
        LocalProtocolError: there is no such leaf.
    """
    size = len(leaves)
    if not 0 <= index < size:
        raise LocalProtocolError(f"no leaf {index} in a tree of {size}")
    hashes = [_leaf_hash(leaf) for leaf in leaves]
    path: list[Digest] = []
    start, stop = 0, size
    while stop - start > 1:
        middle = start + _split(stop - start)
        if index < middle:
            path.append(_subtree(hashes[middle:stop]))
            stop = middle
        else:
            path.append(_subtree(hashes[start:middle]))
            start = middle
    return InclusionProof(index=index, size=size, path=tuple(reversed(path)))


def verify_inclusion(leaf: bytes, proof: InclusionProof, root: Digest, *, size: int) -> None:
    """Check that ``leaf`` is at ``proof.index`` of the tree with this root and size (RFC 9162 section 2.1.3.2).

    Args:
        leaf: Bytes of the leaf.
        proof: Untrusted.
        root: From a signed place.
        size: Number of leaves, from the same signed place.

    Raises:
        SignatureError: the proof does not hold.
    """
    if proof.size != size:
        raise _refused(f"a proof for {proof.size} leaves, the tree has {size}")
    if not 0 <= proof.index < size:
        raise _refused(f"a proof for leaf {proof.index} of {size}")
    node, last = proof.index, size - 1
    digest = _leaf_hash(leaf)
    for sibling in _bounded(proof.path):
        if last == 0:
            raise _refused("an audit path that is too long")
        if node & 1 or node == last:
            digest = _node_hash(sibling, digest)
            while not node & 1 and node:
                node, last = node >> 1, last >> 1
        else:
            digest = _node_hash(digest, sibling)
        node, last = node >> 1, last >> 1
    if last != 0 or digest != root:
        raise _refused("an audit path that does not lead to the root")


def consistency_proof(leaves: Sequence[bytes], old_size: int) -> tuple[Digest, ...]:
    """Prove that the tree of the first ``old_size`` leaves is a prefix of this one (RFC 9162 section 2.1.4.1).

    Raises:
        LocalProtocolError: not 0 < old_size <= len(leaves).
    """
    if not 0 < old_size <= len(leaves):
        raise LocalProtocolError(f"a tree of {old_size} leaves is no prefix of one of {len(leaves)}")
    hashes = [_leaf_hash(leaf) for leaf in leaves]
    path: list[Digest] = []
    start, stop = 0, len(leaves)
    whole = True  # the old tree is a complete subtree from here, and the verifier knows its root
    while old_size != stop:
        middle = start + _split(stop - start)
        if old_size <= middle:
            path.append(_subtree(hashes[middle:stop]))
            stop = middle
        else:
            path.append(_subtree(hashes[start:middle]))
            start, whole = middle, False
    if not whole:
        path.append(_subtree(hashes[start:stop]))
    return tuple(reversed(path))


def verify_consistency(
    path: Sequence[Digest], *, old_size: int, old_root: Digest, new_size: int, new_root: Digest
) -> None:
    """Check that the new tree only appends to the old one (RFC 9162 section 2.1.4.2).

    Raises:
        SignatureError: the proof does not hold.
    """
    if not 0 < old_size <= new_size:
        raise _refused(f"a tree of {old_size} leaves is no prefix of one of {new_size}")
    if old_size == new_size:
        if path or old_root != new_root:
            raise _refused("two roots of one size")
        return
    nodes = list(_bounded(path))
    if old_size & (old_size - 1) == 0:
        nodes.insert(0, old_root)
    if not nodes:
        raise _refused("an empty consistency path")
    node, last = old_size - 1, new_size - 1
    while node & 1:
        node, last = node >> 1, last >> 1
    old = new = nodes[0]
    for sibling in nodes[1:]:
        if last == 0:
            raise _refused("a consistency path that is too long")
        if node & 1 or node == last:
            old, new = _node_hash(sibling, old), _node_hash(sibling, new)
            while not node & 1 and node:
                node, last = node >> 1, last >> 1
        else:
            new = _node_hash(new, sibling)
        node, last = node >> 1, last >> 1
    if last != 0 or old != old_root or new != new_root:
        raise _refused("a consistency path that does not join the roots")


def _subtree(hashes: Iterable[Digest]) -> Digest:
    """Root over leaf hashes: level by level, an odd node at the end rises unchanged, which is RFC 9162's split."""
    level = list(hashes)
    if not level:
        return EMPTY_ROOT
    while len(level) > 1:
        paired = [_node_hash(level[i], level[i + 1]) for i in range(0, len(level) - 1, 2)]
        level = paired + level[2 * len(paired) :]
    return level[0]


def _split(size: int) -> int:
    """Largest power of two smaller than ``size``, which is at least 2."""
    return 1 << ((size - 1).bit_length() - 1)


def _leaf_hash(leaf: bytes) -> Digest:
    return Digest(hashlib.sha256(b"\x00" + leaf).digest())


def _node_hash(left: Digest, right: Digest) -> Digest:
    return Digest(hashlib.sha256(b"\x01" + left + right).digest())


def _bounded(path: Sequence[Digest]) -> Sequence[Digest]:
    if len(path) > PROOF_NODES_MAX:
        raise _refused(f"a path of {len(path)} nodes")
    return path


def _refused(text: str) -> SignatureError:
    return SignatureError(f"Merkle proof: {text}", reason=Reason.BAD_SIGNATURE)
