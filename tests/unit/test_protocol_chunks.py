"""Chunks: bounds of an assembly and what false chunks can do."""

import hashlib
from dataclasses import replace

import pytest

from edge_sdk.errors import DecodeError, LocalProtocolError
from edge_sdk.protocol.chunks import Assembly, split
from edge_sdk.protocol.digest import sha256
from edge_sdk.protocol.ids import Digest
from edge_sdk.protocol.limits import ASSEMBLY_FRAGMENTS_MAX, BLOB_BYTES_MAX, CHUNK_DATA_BYTES_MAX, RESUME_RANGES_MAX
from edge_sdk.protocol.messages import Chunk, Reason

BLOB = b"".join(hashlib.sha256(bytes([i])).digest() for i in range(200))
UPDATE = sha256(b"update")


def assembly(blob: bytes = BLOB) -> Assembly:
    return Assembly(digest=UPDATE, blob_digest=sha256(blob), blob_bytes=len(blob))


def test_chunks_of_a_blob_make_it_again() -> None:
    target = assembly()
    chunks = list(split(BLOB, UPDATE, chunk_bytes=1000))
    assert [len(chunk.data) for chunk in chunks] == [1000] * 6 + [400]
    assert [target.add(chunk) for chunk in chunks] == [True] * 7
    assert target.is_complete
    assert target.blob() == BLOB


def test_a_chunk_again_brings_nothing() -> None:
    target = assembly()
    first = next(split(BLOB, UPDATE, chunk_bytes=1000))
    assert [target.add(first), target.add(first), target.add(replace(first, data=first.data[:10]))] == [
        True,
        False,
        False,
    ]
    assert target.missing() == ((1000, len(BLOB)),)


def test_resume_sends_what_is_missing() -> None:
    target = assembly()
    chunks = list(split(BLOB, UPDATE, chunk_bytes=1000))
    for chunk in (chunks[1], chunks[4]):
        target.add(chunk)
    assert target.missing() == ((0, 1000), (2000, 4000), (5000, 6400))
    for chunk in split(BLOB, UPDATE, ranges=target.missing(), chunk_bytes=1500):
        assert target.add(chunk)
    assert target.blob() == BLOB


def test_ranges_beyond_the_end_are_left_out() -> None:
    assert list(split(b"abc", UPDATE, ranges=[(2, 9), (9, 12)])) == [Chunk(digest=UPDATE, offset=2, data=b"c")]


@pytest.mark.parametrize("chunk_bytes", [0, CHUNK_DATA_BYTES_MAX + 1])
def test_chunk_size_is_bounded(chunk_bytes: int) -> None:
    with pytest.raises(LocalProtocolError):
        split(BLOB, UPDATE, chunk_bytes=chunk_bytes)


@pytest.mark.parametrize(
    "chunk",
    [
        Chunk(digest=sha256(b"another"), offset=0, data=b"x"),
        Chunk(digest=UPDATE, offset=len(BLOB), data=b"x"),
        Chunk(digest=UPDATE, offset=len(BLOB) - 1, data=b"xy"),
        Chunk(digest=UPDATE, offset=-1, data=b"x"),
        Chunk(digest=UPDATE, offset=0, data=b""),
    ],
    ids=["digest", "behind the end", "over the end", "before the start", "empty"],
)
def test_foreign_chunks_are_refused(chunk: Chunk) -> None:
    target = assembly()
    with pytest.raises(DecodeError) as caught:
        target.add(chunk)
    assert caught.value.reason is Reason.FOREIGN_CHUNK
    assert target.missing() == ((0, len(BLOB)),)


@pytest.mark.parametrize("blob_bytes", [0, -1, BLOB_BYTES_MAX + 1])
def test_no_room_is_reserved_beyond_the_bound(blob_bytes: int) -> None:
    with pytest.raises(DecodeError) as caught:
        Assembly(digest=UPDATE, blob_digest=UPDATE, blob_bytes=blob_bytes)
    assert caught.value.reason is Reason.OVERSIZE


def test_crumbs_are_bounded() -> None:
    target = assembly()
    for i in range(ASSEMBLY_FRAGMENTS_MAX):
        target.add(Chunk(digest=UPDATE, offset=2 * i, data=b"x"))
    with pytest.raises(DecodeError) as caught:
        target.add(Chunk(digest=UPDATE, offset=2 * ASSEMBLY_FRAGMENTS_MAX, data=b"x"))
    assert caught.value.reason is Reason.CAPACITY
    assert len(target.missing()) == RESUME_RANGES_MAX
    assert target.add(Chunk(digest=UPDATE, offset=0, data=BLOB[:600]))  # a chunk that joins crumbs still finds room


def test_a_false_chunk_costs_a_repeat_and_nothing_else() -> None:
    target = assembly()
    target.add(Chunk(digest=UPDATE, offset=0, data=bytes(len(BLOB))))
    with pytest.raises(DecodeError) as caught:
        target.blob()
    assert caught.value.reason is Reason.DIGEST_MISMATCH
    assert target.missing() == ((0, len(BLOB)),)
    for chunk in split(BLOB, UPDATE):
        target.add(chunk)
    assert target.blob() == BLOB
    assert Digest(hashlib.sha256(target.blob()).digest()) == target.blob_digest
