"""Operators, nodes and tensors of a forward network: plain values, and part of the artifact format."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum
from typing import Final


class Op(IntEnum):
    """Operators of the forward network; numbers are part of the artifact format."""

    GEMM = 1
    CONV = 2
    RELU = 3
    MAX_POOL = 4
    FLATTEN = 5
    SOFTMAX_CROSS_ENTROPY = 6
    CLIP = 7
    LEAKY_RELU = 8
    SIGMOID = 9
    TANH = 10
    HARD_SWISH = 11
    AVERAGE_POOL = 12
    GLOBAL_AVERAGE_POOL = 13
    ADD = 14
    MUL = 15
    CONCAT = 16
    RESHAPE = 17
    TRANSPOSE = 18
    DROPOUT = 19
    AFFINE = 20
    """y = x * scale + shift, one of each per channel (axis 1): a frozen BatchNormalization, a normalization of x."""
    MEAN_SQUARED_ERROR = 21
    BINARY_CROSS_ENTROPY = 22
    """Of logits: the sigmoid is part of the loss."""


LOSSES: Final = frozenset({Op.SOFTMAX_CROSS_ENTROPY, Op.MEAN_SQUARED_ERROR, Op.BINARY_CROSS_ENTROPY})
WINDOWS: Final = frozenset({Op.CONV, Op.MAX_POOL, Op.AVERAGE_POOL})
TENSORS_OF: Final = {Op.GEMM: 2, Op.CONV: 2, Op.AFFINE: 2}
"""Tensors that follow a node's values among its inputs; 0 where absent."""


class Role(IntEnum):
    """What a tensor is to the quantizer."""

    WEIGHT = 1
    BIAS = 2
    """Kept in float32: biases, and the scales and shifts of AFFINE."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """One tensor of the global model; ``exponent`` is fixed at genesis."""

    name: str
    shape: tuple[int, ...]
    role: Role
    channel_axis: int
    """Axis of the per-channel scales; -1 for a bias."""
    exponent: int
    is_trainable: bool = True
    """A frozen tensor goes into the training step and does not come out: it has no gradient nodes."""

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One operator. Its inputs are values first, then tensors.

    Windows have ``kernel``, ``stride`` and ``padding`` per spatial axis, and ``dilation`` where it is not 1.
    """

    op: Op
    inputs: tuple[str, ...]
    output: str
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    """One number per spatial axis for both ends, or first all beginnings and then all ends, as ONNX has them."""
    dilation: tuple[int, ...] = ()
    groups: int = 1
    """CONV: channels in and out are split into so many independent groups."""
    axes: tuple[int, ...] = ()
    """TRANSPOSE: the order of the axes 1, 2, ...; CONCAT: its axis. The batch axis 0 stays where it is."""
    shape: tuple[int, ...] = ()
    """RESHAPE: sizes without the batch axis."""
    constants: tuple[float, ...] = ()
    """CLIP: bounds; LEAKY_RELU: slope below 0; DROPOUT: rate; SOFTMAX_CROSS_ENTROPY: label smoothing, if any."""
    counts_padding: bool = True
    """AVERAGE_POOL: whether padding counts in the divisor."""

    @property
    def values(self) -> tuple[str, ...]:
        """Inputs that earlier nodes make."""
        return self.inputs[: len(self.inputs) - TENSORS_OF.get(self.op, 0)]

    @property
    def tensors(self) -> tuple[str, ...]:
        """Inputs that are tensors of the model."""
        return self.inputs[len(self.values) :]

    @property
    def pads(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Padding at the beginnings and at the ends of the spatial axes."""
        if len(self.padding) == 2 * len(self.kernel):
            return self.padding[: len(self.kernel)], self.padding[len(self.kernel) :]
        return self.padding, self.padding

    @property
    def dilations(self) -> tuple[int, ...]:
        """Distance between neighbours under the window, per spatial axis."""
        return self.dilation or (1,) * len(self.kernel)

    @property
    def reach(self) -> tuple[int, ...]:
        """Positions from the first to the last under the window, per spatial axis."""
        return tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True))

    def leftover(self, sizes: tuple[int, ...]) -> tuple[int, ...]:
        """Per spatial axis of these sizes: positions at the end that the last window does not reach."""
        windows = zip(sizes, self.reach, self.stride, *self.pads, strict=True)
        return tuple((size + begin + end - reach) % stride for size, reach, stride, begin, end in windows)
