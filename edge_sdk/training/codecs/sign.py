"""One bit per value and one magnitude per channel.

    magnitudes, bits      one byte per channel (one in all for a bias); bit 1 = negative, lowest bit first

A channel's magnitude is the mean of its absolute values, rounded down to a multiple of the tensor's grid: of all
multiples of the signs the one nearest to the values, and never longer than they are. A channel of magnitude zero says
nothing, and its bits are zero. Biased, so it needs error feedback (Karimireddy et al. 2019, arXiv:1901.09847,
Algorithm 2; there with one magnitude per tensor).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from edge_sdk.errors import DecodeError
from edge_sdk.protocol.messages import Reason
from edge_sdk.training.codecs.grid import Sent, finest_exponent

if TYPE_CHECKING:
    import numpy.typing as npt

    from edge_sdk.training.operators import TensorSpec

MAGNITUDE_MAX: Final = 255
_BITS: Final = 8


@dataclass(frozen=True, slots=True)
class SignValues:
    """Bits, and the magnitude of each value's channel."""

    bits: npt.NDArray[np.uint8]
    magnitudes: npt.NDArray[np.int16]
    """In the tensor's shape without a copy: strides of 0 along the other axes."""

    def __getitem__(self, block: slice) -> npt.NDArray[Any]:
        """Unfold the bits of the block."""
        start, stop, _ = block.indices(self.magnitudes.size)
        packed = self.bits[start // _BITS : -(-stop // _BITS)]
        negative = np.unpackbits(packed, count=stop - start, bitorder="little").view(np.bool_)
        values = self.magnitudes.flat[start:stop]
        return np.negative(values, out=values, where=negative)

    def peak(self) -> int:
        """Exact."""
        return int(self.magnitudes.max())


def read_sign(values: bytes, shape: tuple[int, ...], channel_axis: int) -> SignValues:
    """Take the values of a tensor.

    Raises:
        DecodeError: the bytes do not fit the shape; SHAPE. Bits behind the last value; MALFORMED.
    """
    size, channels = math.prod(shape), channel_count(shape, channel_axis)
    if len(values) != channels + -(-size // _BITS):
        raise DecodeError(f"{len(values)} bytes are not {channels} magnitudes and {size} bits", reason=Reason.SHAPE)
    if size % _BITS and values[-1] >> size % _BITS:
        raise DecodeError("a bit behind the last value is not zero", reason=Reason.MALFORMED)
    per_channel = np.frombuffer(values, np.uint8, count=channels).astype(np.int16)
    magnitudes = np.broadcast_to(per_channel.reshape(_channel_shape(shape, channel_axis)), shape)
    return SignValues(np.frombuffer(values, np.uint8, offset=channels), magnitudes)


def write_sign(value: npt.NDArray[np.float32], spec: TensorSpec) -> Sent:
    """Signs of a tensor, and the mean magnitude of each channel.

    Raises:
        QuantizationError: no grid holds the magnitudes.
    """
    axes = tuple(axis for axis in range(value.ndim) if axis != spec.channel_axis)
    means = np.abs(value).mean(axis=axes, dtype=np.float64, keepdims=True)
    exponent = finest_exponent(float(means.max()), MAGNITUDE_MAX, spec)
    magnitudes = np.minimum(np.floor(np.ldexp(means, -exponent)), MAGNITUDE_MAX).astype(np.int16)
    negative = (value < 0) & (magnitudes > 0)
    integers = np.where(negative, -magnitudes, magnitudes)
    bits = np.packbits(negative.ravel(), bitorder="little")
    return Sent(magnitudes.astype(np.uint8).tobytes() + bits.tobytes(), exponent, integers)


def channel_count(shape: tuple[int, ...], channel_axis: int) -> int:
    """Magnitudes of a tensor."""
    return 1 if channel_axis < 0 else shape[channel_axis]


def _channel_shape(shape: tuple[int, ...], channel_axis: int) -> tuple[int, ...]:
    return tuple(extent if axis == channel_axis else 1 for axis, extent in enumerate(shape))
