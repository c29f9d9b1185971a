"""Every update codec in Python integers, one value after the other: what the words of the contract say, no numpy."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator

from edge_sdk.protocol.messages import Codec


def decode_values(values: bytes, codec: Codec, shape: tuple[int, ...], channel_axis: int) -> list[int]:
    """Integers of one tensor, flat."""
    size = math.prod(shape)
    match codec:
        case Codec.INT8_DENSE | Codec.INT8_OUTPUT:
            return [signed(byte, 8) for byte in values]
        case Codec.INT16_DENSE:
            return [int.from_bytes(values[i : i + 2], "little", signed=True) for i in range(0, len(values), 2)]
        case Codec.INT4_DENSE:
            halves = [half for byte in values for half in (byte & 15, byte >> 4)]
            return [signed(half, 4) for half in halves[:size]]
        case Codec.SIGN_DENSE:
            return _signs(values, shape, channel_axis)
        case Codec.INT8_TOPK:
            return _largest(values, size)
        case _:
            raise AssertionError(codec)


def replay(seed: bytes, codes: bytes, position: int, size: int) -> list[int]:
    """Integers of one tensor of an SPSA message, flat."""
    steps = [step(signed(byte, 8)) for byte in codes]
    total = [0] * size
    for number, length in enumerate(steps):
        for block in range(0, size, 65_536):
            place = b"".join(part.to_bytes(4, "big") for part in (number, position, block // 65_536))
            count = min(65_536, size - block)
            drawn = hashlib.shake_128(b"fl/spsa/1" + seed + place).digest((count + 7) // 8)
            for i in range(count):
                total[block + i] += length if drawn[i // 8] >> i % 8 & 1 else -length
    return total


def step(code: int) -> int:
    """The largest integer whose eighth power is at most 2**(24 + code), with the sign of the code; 0 for 0."""
    if code == 0:
        return 0
    found, power = 0, 1 << 24 + abs(code)
    for bit in reversed(range(20)):
        if (found + (1 << bit)) ** 8 <= power:
            found += 1 << bit
    return found if code > 0 else -found


def signed(value: int, bits: int) -> int:
    """Two's complement."""
    return value - (1 << bits) if value >> bits - 1 else value


def _signs(values: bytes, shape: tuple[int, ...], channel_axis: int) -> list[int]:
    channels = shape[channel_axis] if channel_axis >= 0 else 1
    stride = math.prod(shape[channel_axis + 1 :]) if channel_axis >= 0 else math.prod(shape)
    magnitudes, bits = values[:channels], values[channels:]
    found = []
    for i in range(math.prod(shape)):
        magnitude = magnitudes[i // stride % channels]
        found.append(-magnitude if bits[i // 8] >> i % 8 & 1 else magnitude)
    return found


def _largest(values: bytes, size: int) -> list[int]:
    stream = iter(values)
    count = _leb128(stream)
    gaps = [_leb128(stream) for _ in range(count)]
    found, place = [0] * size, -1
    for gap in gaps:
        place += gap + 1
        found[place] = signed(next(stream), 8)
    return found


def _leb128(stream: Iterator[int]) -> int:
    number, shift = 0, 0
    for byte in stream:
        number |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            break
    return number
