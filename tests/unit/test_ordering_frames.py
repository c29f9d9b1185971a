from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.ordering.frames import encode_frame, pack, read_frame, unpack
from edge_sdk.errors import DecodeError


def read_all(data: bytes, *, bytes_max: int = 1_000, is_ended: bool = True) -> list[bytes]:
    async def reading() -> list[bytes]:
        reader = asyncio.StreamReader()
        reader.feed_data(data)
        if is_ended:
            reader.feed_eof()
        frames = []
        async with asyncio.timeout(10):
            while (frame := await read_frame(reader, bytes_max=bytes_max)) is not None:
                frames.append(frame)
        return frames

    return asyncio.run(reading())


@given(st.lists(st.binary(max_size=300), max_size=5))
def test_frames_come_back(items: list[bytes]) -> None:
    assert read_all(b"".join(encode_frame(item) for item in items)) == items
    assert unpack(pack(items), count_max=len(items)) == tuple(items)


def test_length_is_an_unsigned_varint() -> None:
    assert encode_frame(b"x" * 300)[:2] == b"\xac\x02"  # protobuf's own example of a varint


@pytest.mark.parametrize(
    "data",
    [
        b"\xe9\x07",  # 1001
        b"\xff\xff\xff\x7f",  # 2**28 - 1
        b"\x80\x80\x80\x80\x01",  # five bytes
        b"\x81\x00x",  # 1 in two bytes
    ],
)
def test_oversize_and_malformed_lengths_are_refused_before_anything_is_read(data: bytes) -> None:
    with pytest.raises(DecodeError):
        read_all(data, is_ended=False)


@pytest.mark.parametrize("data", [b"\x80", b"\x02x", b"\x01"])
def test_an_end_inside_a_frame_is_not_an_end(data: bytes) -> None:
    with pytest.raises(asyncio.IncompleteReadError):
        read_all(data)


@pytest.mark.parametrize("data", [b"\x02x", b"\x80", b"\x80\x80\x80\x80\x01", b"\x01a\x01b\x01c"])
def test_unpack_refuses_what_pack_did_not_make(data: bytes) -> None:
    with pytest.raises(DecodeError):
        unpack(data, count_max=2)


@given(st.binary(max_size=50))
def test_unpack_of_anything_is_a_value_or_a_decode_error(data: bytes) -> None:
    try:
        items = unpack(data, count_max=10)
    except DecodeError:
        return
    assert sum(len(item) + 1 for item in items) <= len(data)
