"""Frames of the socket protocol and of the log's rows: an unsigned varint, then that many bytes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from edge_sdk.errors import DecodeError

_VARINT_BYTES_MAX: Final = 4
"""Lengths below 2**28, far above every bound in use."""


def encode_frame(data: bytes) -> bytes:
    """Prefix bytes with their length.

    Raises:
        ValueError: 2**28 bytes or more.
    """
    length = len(data)
    if length >= 1 << 7 * _VARINT_BYTES_MAX:
        raise ValueError(f"{length} bytes do not fit a frame")
    prefix = bytearray()
    while length > 0x7F:
        prefix.append(length & 0x7F | 0x80)
        length >>= 7
    prefix.append(length)
    return bytes(prefix) + data


async def read_frame(reader: asyncio.StreamReader, *, bytes_max: int) -> bytes | None:
    """Read one frame; None at the end of the stream.

    The length is judged before anything is read for it, and memory grows only with bytes that arrived.

    Raises:
        DecodeError: the length is malformed or above ``bytes_max``.
        asyncio.IncompleteReadError: the stream ends inside the frame.
    """
    length = 0
    for index in range(_VARINT_BYTES_MAX):
        byte = await reader.read(1)
        if not byte:
            if index == 0:
                return None
            raise asyncio.IncompleteReadError(b"", None)
        length |= (byte[0] & 0x7F) << 7 * index
        if byte[0] < 0x80:
            if index and byte[0] == 0:
                raise DecodeError("length of a frame is not minimal")
            if length > bytes_max:
                raise DecodeError(f"frame of {length} bytes, expected at most {bytes_max}")
            return await reader.readexactly(length)
    raise DecodeError(f"length of a frame takes more than {_VARINT_BYTES_MAX} bytes")


def pack(items: Sequence[bytes]) -> bytes:
    """Join byte strings as frames."""
    return b"".join(encode_frame(item) for item in items)


def unpack(data: bytes, *, count_max: int) -> tuple[bytes, ...]:
    """Split what ``pack`` joined.

    Raises:
        DecodeError: not made by ``pack``, or more than ``count_max`` items.
    """
    items: list[bytes] = []
    position = 0
    while position < len(data):
        if len(items) == count_max:
            raise DecodeError(f"more than {count_max} items")
        length = 0
        for index in range(_VARINT_BYTES_MAX + 1):
            if position == len(data) or index == _VARINT_BYTES_MAX:
                raise DecodeError("length of an item is cut or too long")
            byte = data[position]
            position += 1
            length |= (byte & 0x7F) << 7 * index
            if byte < 0x80:
                break
        if length > len(data) - position:
            raise DecodeError(f"item of {length} bytes where {len(data) - position} are left")
        items.append(data[position : position + length])
        position += length
    return tuple(items)
