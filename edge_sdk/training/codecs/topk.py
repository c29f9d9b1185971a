"""The largest values and their places: int8 values behind the gaps between their positions.

    count, gaps, values      count and gaps in LEB128, values one byte each

A gap is the number of values that are left out before this one, so positions rise by construction: none comes twice,
none goes back. At a share of a tenth a gap takes one byte. A value of zero would say nothing and is refused, as is an
integer with more bytes than it needs: one update has one encoding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from edge_sdk.errors import DecodeError
from edge_sdk.protocol.messages import Reason
from edge_sdk.training.codecs.grid import Sent, finest_exponent, on_grid

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    from edge_sdk.training.operators import TensorSpec

INT8_MAX: Final = 127
_MORE: Final = 0x80
"""Set in every byte of a LEB128 integer but the last."""
_DIGIT_BITS: Final = 7
_DIGIT: Final = _MORE - 1
LEB_BYTES_MAX: Final = 4
"""28 bits: more than a tensor has values."""


@dataclass(frozen=True, slots=True)
class SparseValues:
    """Values at ascending positions, zero between them."""

    positions: npt.NDArray[np.int64]
    integers: npt.NDArray[np.int8]
    size: int

    def __getitem__(self, block: slice) -> npt.NDArray[Any]:
        """Spread the values of the block."""
        start, stop, _ = block.indices(self.size)
        found = slice(*np.searchsorted(self.positions, (start, stop)))
        spread = np.zeros(stop - start, np.int8)
        spread[self.positions[found] - start] = self.integers[found]
        return spread

    def peak(self) -> int:
        """Exact."""
        return max(int(self.integers.max()), -int(self.integers.min())) if self.integers.size else 0


def kept_count(size: int, share: float) -> int:
    """How many of ``size`` values a share of them is, at least one."""
    return max(1, math.ceil(size * share))


def read_topk(values: bytes, size: int) -> SparseValues:
    """Take the values of a tensor. Memory: about nine bytes for each byte of the payload.

    Raises:
        DecodeError: more values than the tensor has, a place beyond its end, a length that does not fit: SHAPE. A
        number in more bytes than it needs, a value of zero: MALFORMED.
    """
    data = np.frombuffer(values, np.uint8)
    head = int(np.argmax(data[:LEB_BYTES_MAX] < _MORE)) + 1 if data.size else 0
    counts = _numbers(data[:head])
    if counts.size != 1 or counts[0] > size or 2 * int(counts[0]) > data.size - head:
        raise DecodeError(f"{data.size} bytes do not hold the values that they announce", reason=Reason.SHAPE)
    count = int(counts[0])
    gaps = _numbers(data[head : data.size - count])
    if gaps.size != count:
        raise DecodeError(f"{gaps.size} places for {count} values", reason=Reason.SHAPE)
    positions = np.cumsum(gaps + 1) - 1  # below 2**22 * 2**28: no overflow
    if count and positions[-1] >= size:
        raise DecodeError(f"a value at place {positions[-1]} of {size}", reason=Reason.SHAPE)
    integers = data[data.size - count :].view(np.int8)
    if not integers.all():
        raise DecodeError("a value of zero is sent", reason=Reason.MALFORMED)
    return SparseValues(positions, integers, size)


def choose_largest(total: Mapping[str, npt.NDArray[np.float32]], share: float) -> dict[str, npt.NDArray[np.bool_]]:
    """Mark the values of largest magnitude over all tensors, a share of them and no more."""
    magnitudes = np.concatenate([np.abs(value).ravel() for value in total.values()])
    count = kept_count(magnitudes.size, share)
    chosen = np.zeros(magnitudes.size, np.bool_)
    chosen[np.argpartition(magnitudes, magnitudes.size - count)[magnitudes.size - count :]] = True
    ends = np.cumsum([value.size for value in total.values()])
    parts = np.split(chosen, ends[:-1])
    return {name: part.reshape(value.shape) for (name, value), part in zip(total.items(), parts, strict=True)}


def write_topk(value: npt.NDArray[np.float32], chosen: npt.NDArray[np.bool_], spec: TensorSpec) -> Sent:
    """Quantize the chosen values of a tensor; those that round to zero are left out.

    Raises:
        QuantizationError: no grid holds them.
    """
    kept = np.where(chosen, value, np.float32(0.0))
    exponent = finest_exponent(float(np.abs(kept).max()), INT8_MAX, spec)
    integers = on_grid(kept, exponent, np.dtype(np.int8))
    flat = integers.ravel()
    positions = np.flatnonzero(flat)
    gaps = np.diff(positions, prepend=-1) - 1
    numbers = np.concatenate(([positions.size], gaps))
    return Sent(_leb128(numbers) + flat[positions].tobytes(), exponent, integers)


def _leb128(numbers: npt.NDArray[np.int64]) -> bytes:
    """Integers of at most 28 bits, one behind the other."""
    digits = np.stack([numbers >> _DIGIT_BITS * place & _DIGIT for place in range(LEB_BYTES_MAX)], axis=1)
    lengths = np.maximum(1, LEB_BYTES_MAX - np.argmax(digits[:, ::-1] > 0, axis=1))
    lengths[numbers == 0] = 1
    places = np.arange(LEB_BYTES_MAX)
    digits[places < (lengths - 1)[:, None]] |= _MORE
    return bytes(digits[places < lengths[:, None]].astype(np.uint8))


def _numbers(data: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """Integers in LEB128, each in its only form, and nothing behind them.

    Raises:
        DecodeError: MALFORMED.
    """
    ends = np.flatnonzero(data < _MORE)
    if not ends.size and not data.size:
        return np.empty(0, np.int64)
    starts = np.concatenate(([0], ends[:-1] + 1))
    lengths = ends - starts + 1 if ends.size else np.array([data.size])
    if not ends.size or ends[-1] != data.size - 1 or lengths.max() > LEB_BYTES_MAX:
        raise DecodeError("a number that does not end in time", reason=Reason.MALFORMED)
    if bool(((lengths > 1) & (data[ends] == 0)).any()):
        raise DecodeError("a number in more bytes than it needs", reason=Reason.MALFORMED)
    numbers = np.zeros(ends.size, np.int64)
    for place in range(int(lengths.max())):
        longer = lengths > place
        numbers[longer] |= (data[starts[longer] + place] & _DIGIT).astype(np.int64) << _DIGIT_BITS * place
    return numbers
