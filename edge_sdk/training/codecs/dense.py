"""Every value in its place: int8, int16, or two values of 4 bits in a byte.

int4 is -7..7; the low half of a byte comes first, and half a byte that is left over is zero. Its grid is one to two
powers of two finer than the largest value asks for, where that loses less: the few values beyond its end are cut, and
error feedback brings the rest of them with the next updates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from edge_sdk.errors import DecodeError
from edge_sdk.protocol.messages import Codec, Reason
from edge_sdk.training.codecs.grid import Sent, finest_exponent, on_grid

if TYPE_CHECKING:
    import numpy.typing as npt

    from edge_sdk.training.operators import TensorSpec

TYPES: Final[dict[Codec, np.dtype[Any]]] = {
    Codec.INT8_DENSE: np.dtype("<i1"),
    Codec.INT16_DENSE: np.dtype("<i2"),
    Codec.INT8_OUTPUT: np.dtype("<i1"),
}
INT4_MAX: Final = 7
_FINER_GRIDS: Final = 3
"""Grids that int4 chooses from."""
_NIBBLE_BITS: Final = 4
_NIBBLE: Final = 0x0F


@dataclass(frozen=True, slots=True)
class DenseValues:
    """Whole bytes: a view of the payload."""

    array: npt.NDArray[Any]

    def __getitem__(self, block: slice) -> npt.NDArray[Any]:
        """A view."""
        return self.array[block]

    def peak(self) -> int:
        """Exact."""
        return max(int(self.array.max()), -int(self.array.min())) if self.array.size else 0


@dataclass(frozen=True, slots=True)
class NibbleValues:
    """Two values per byte."""

    data: npt.NDArray[np.uint8]
    size: int

    def __getitem__(self, block: slice) -> npt.NDArray[Any]:
        """Unfold the bytes of the block."""
        start, stop, _ = block.indices(self.size)
        packed = self.data[start // 2 : -(-stop // 2)]
        both = np.empty(2 * packed.size, np.int8)
        # A shift to the left and back to the right spreads the sign of four bits over eight.
        both[0::2] = (packed << _NIBBLE_BITS).view(np.int8) >> _NIBBLE_BITS
        both[1::2] = packed.view(np.int8) >> _NIBBLE_BITS
        return both[: stop - start]

    def peak(self) -> int:
        """The grid's end, unless every value is zero."""
        return INT4_MAX + 1 if self.data.any() else 0


def read_dense(values: bytes, size: int, codec: Codec) -> DenseValues:
    """Take the values of a tensor.

    Raises:
        DecodeError: the bytes are not ``size`` values; SHAPE.
    """
    if len(values) != size * TYPES[codec].itemsize:
        raise DecodeError(f"{len(values)} bytes are not {size} values", reason=Reason.SHAPE)
    return DenseValues(np.frombuffer(values, TYPES[codec]))


def read_int4(values: bytes, size: int) -> NibbleValues:
    """Take the values of a tensor.

    Raises:
        DecodeError: the bytes are not ``size`` values; SHAPE. Half a byte too much is not zero; MALFORMED.
    """
    if len(values) != -(-size // 2):
        raise DecodeError(f"{len(values)} bytes are not {size} values of 4 bits", reason=Reason.SHAPE)
    if size % 2 and values[-1] > _NIBBLE:
        raise DecodeError("the half byte behind the last value is not zero", reason=Reason.MALFORMED)
    return NibbleValues(np.frombuffer(values, np.uint8), size)


def write_dense(value: npt.NDArray[np.float32], spec: TensorSpec, codec: Codec) -> Sent:
    """Quantize a tensor on the finest grid that holds every value.

    Raises:
        QuantizationError: no grid does.
    """
    kind = TYPES[codec]
    exponent = finest_exponent(float(np.abs(value).max()), int(np.iinfo(kind).max), spec)
    integers = on_grid(value, exponent, kind)
    return Sent(integers.tobytes(), exponent, integers)


def write_int4(value: npt.NDArray[np.float32], spec: TensorSpec) -> Sent:
    """Quantize a tensor on the grid that loses least.

    Raises:
        QuantizationError: no grid holds the values.
    """
    coarsest = finest_exponent(float(np.abs(value).max()), INT4_MAX, spec)
    grids = range(max(spec.exponent, coarsest - _FINER_GRIDS + 1), coarsest + 1)
    exponent = min(grids, key=lambda e: _int4_loss(value, e))
    integers = _int4(value, exponent)
    flat = np.append(integers.ravel(), np.zeros(integers.size % 2, np.int8)).view(np.uint8) & _NIBBLE
    return Sent((flat[0::2] | flat[1::2] << _NIBBLE_BITS).tobytes(), exponent, integers)


def _int4(value: npt.NDArray[np.float32], exponent: int) -> npt.NDArray[np.int8]:
    return np.clip(np.rint(np.ldexp(value, -exponent)), -INT4_MAX, INT4_MAX).astype(np.int8)


def _int4_loss(value: npt.NDArray[np.float32], exponent: int) -> float:
    rest = value - np.ldexp(_int4(value, exponent).astype(np.float32), exponent)
    return float(np.square(rest, dtype=np.float64).sum())
