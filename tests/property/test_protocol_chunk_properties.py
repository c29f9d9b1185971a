"""An assembly is a set of bytes: order, repetition and overlap do not matter."""

from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.protocol.chunks import Assembly, split
from edge_sdk.protocol.digest import sha256
from edge_sdk.protocol.messages import Chunk

UPDATE = sha256(b"update")


def assembly(blob: bytes) -> Assembly:
    return Assembly(digest=UPDATE, blob_digest=sha256(blob), blob_bytes=len(blob))


@given(st.binary(min_size=1, max_size=200), st.lists(st.tuples(st.integers(0, 199), st.integers(1, 60)), max_size=30))
def test_missing_is_the_complement_of_what_came(blob: bytes, pieces: list[tuple[int, int]]) -> None:
    target = assembly(blob)
    here: set[int] = set()
    for start, length in pieces:
        data = blob[start : start + length]
        if data:
            new = set(range(start, start + len(data)))
            assert target.add(Chunk(digest=UPDATE, offset=start, data=data)) is not new.issubset(here)
            here |= new
    missing = target.missing()
    assert {at for start, stop in missing for at in range(start, stop)} == set(range(len(blob))) - here
    assert all(before[1] < after[0] for before, after in pairwise(missing))
    assert target.is_complete is (not missing)


@given(st.binary(min_size=1, max_size=500), st.integers(1, 100), st.randoms(use_true_random=False))
def test_any_order_with_repeats_makes_the_blob(blob: bytes, chunk_bytes: int, order: Any) -> None:
    chunks = 2 * list(split(blob, UPDATE, chunk_bytes=chunk_bytes))
    order.shuffle(chunks)
    target = assembly(blob)
    brought = sum(target.add(chunk) for chunk in chunks)
    assert brought == len(chunks) // 2
    assert target.blob() == blob


@given(st.binary(min_size=1, max_size=500), st.integers(1, 100), st.sets(st.integers(0, 499)))
def test_resuming_completes_every_transfer(blob: bytes, chunk_bytes: int, lost: set[int]) -> None:
    target = assembly(blob)
    for number, chunk in enumerate(split(blob, UPDATE, chunk_bytes=chunk_bytes)):
        if number not in lost:
            target.add(chunk)
    while not target.is_complete:
        for chunk in split(blob, UPDATE, ranges=target.missing(), chunk_bytes=chunk_bytes):
            assert target.add(chunk)
    assert target.blob() == blob
