"""The forward network of an artifact as plain values: what every check is made against.

A network is a list of nodes in execution order. Every value is named; the first is ``x`` and the last node is the
loss. Shapes follow from the input shape and the batch size by ``infer_shapes``, which is also the structural check:
it names the node that cannot work and allocates nothing. Arrays are batch first, then channel, then space. A Gemm
weight is (in, out), channel axis 1, so that uint8 activations multiply it from the left without a transposition; a
Conv weight is (out, in, *kernel), channel axis 0.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from edge_sdk.errors import TrainingError
from edge_sdk.protocol.limits import CLASSES_MAX, PARAMETERS_MAX, TENSOR_RANK_MAX, TENSORS_MAX

INPUT: Final = "x"
BATCH_MAX: Final = 4_096
NODES_MAX: Final = 256
DIMENSION_MAX: Final = 65_536
VALUE_ELEMENTS_MAX: Final = 64 * 1024 * 1024
"""Elements of one activation at the artifact's batch size."""
GENESIS_EXPONENT_MIN: Final = -40
GENESIS_EXPONENT_MAX: Final = -16
"""Keeps every scale S below 2**8, so that k in S = m * 2**-k is never negative."""

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,47}")


class Op(IntEnum):
    """Operators of the forward network; numbers are part of the artifact format."""

    GEMM = 1
    CONV = 2
    RELU = 3
    MAX_POOL = 4
    FLATTEN = 5
    SOFTMAX_CROSS_ENTROPY = 6


class Role(IntEnum):
    """What a tensor is to the quantizer."""

    WEIGHT = 1
    BIAS = 2


class Scheme(IntEnum):
    """Arithmetic of the training step."""

    FP32 = 1
    INT8 = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """One trainable tensor of the global model; ``exponent`` is fixed at genesis."""

    name: str
    shape: tuple[int, ...]
    role: Role
    channel_axis: int
    """Axis of the per-channel scales; -1 for a bias."""
    exponent: int

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One operator; windows have ``kernel``, ``stride`` and ``padding`` (the same at both ends) per spatial axis."""

    op: Op
    inputs: tuple[str, ...]
    output: str
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """A classifier: nodes, trainable tensors, and the shape of one example without the batch axis."""

    input_shape: tuple[int, ...]
    class_count: int
    tensors: tuple[TensorSpec, ...]
    nodes: tuple[Node, ...]

    @property
    def logits(self) -> str:
        """Name of the value that the loss reads."""
        return self.nodes[-1].inputs[0]

    @property
    def parameter_count(self) -> int:
        """Elements of all trainable tensors."""
        return sum(spec.size for spec in self.tensors)


def check_network(network: Network, *, batch: int) -> dict[str, tuple[int, ...]]:
    """Check structure and bounds before anything is allocated.

    Returns:
        The shape of every value at this batch size, from ``infer_shapes``.

    Raises:
        TrainingError: a bound is broken, or a node cannot work; the text names the tensor or node.
    """
    if not 1 <= batch <= BATCH_MAX:
        raise TrainingError(f"batch {batch} is outside 1..{BATCH_MAX}")
    if not 2 <= network.class_count <= CLASSES_MAX:
        raise TrainingError(f"class count {network.class_count} is outside 2..{CLASSES_MAX}")
    if not 1 <= len(network.nodes) <= NODES_MAX or not 1 <= len(network.tensors) <= TENSORS_MAX:
        raise TrainingError(
            f"{len(network.nodes)} nodes, {len(network.tensors)} tensors: expected 1..{NODES_MAX}, 1..{TENSORS_MAX}"
        )
    _check_shape("input", network.input_shape)
    names: set[str] = {INPUT}
    for spec in network.tensors:
        _check_tensor(spec)
        if spec.name in names:
            raise TrainingError(f"tensor {spec.name} is defined twice")
        names.add(spec.name)
    if network.parameter_count > PARAMETERS_MAX:
        raise TrainingError(f"{network.parameter_count} parameters, at most {PARAMETERS_MAX}")
    return infer_shapes(network, batch=batch)


def infer_shapes(network: Network, *, batch: int) -> dict[str, tuple[int, ...]]:
    """Shape of every value, batch axis first, in execution order.

    Raises:
        TrainingError: an input is unknown, shapes do not fit, a tensor is unused or used twice, or the loss is not
        the only last node.
    """
    specs = {spec.name: spec for spec in network.tensors}
    shapes: dict[str, tuple[int, ...]] = {INPUT: (batch, *network.input_shape)}
    unused = set(specs)
    for index, node in enumerate(network.nodes):
        place = f"node {index} ({node.op.name})"
        if _NAME.fullmatch(node.output) is None or node.output in shapes or node.output in specs:
            raise TrainingError(f"{place}: output {node.output[:48]!r} is not a new name")
        if (node.op is Op.SOFTMAX_CROSS_ENTROPY) != (index == len(network.nodes) - 1):
            raise TrainingError(f"{place}: the loss must be the last node and the only one")
        if not node.inputs or node.inputs[0] not in shapes:
            raise TrainingError(f"{place}: its first input is not a value that an earlier node makes")
        parameters = node.inputs[1:]
        if not unused.issuperset(parameters) or len(set(parameters)) != len(parameters):
            raise TrainingError(f"{place}: needs tensors that are unknown or already in use: {parameters}")
        unused.difference_update(parameters)
        shape = _output_shape(
            place, node, shapes[node.inputs[0]], [specs[name] for name in parameters], network.class_count
        )
        if math.prod(shape) > VALUE_ELEMENTS_MAX:
            raise TrainingError(f"{place}: its output {shape} has more than {VALUE_ELEMENTS_MAX} elements")
        shapes[node.output] = shape
    if unused:
        raise TrainingError(f"tensors that no node uses: {sorted(unused)}")
    return shapes


def _output_shape(
    place: str, node: Node, shape: tuple[int, ...], parameters: list[TensorSpec], class_count: int
) -> tuple[int, ...]:
    expected_parameters = 2 if node.op in {Op.GEMM, Op.CONV} else 0
    if len(parameters) != expected_parameters:
        raise TrainingError(f"{place}: takes {expected_parameters} tensors, found {len(parameters)}")
    match node.op:
        case Op.GEMM:
            return _gemm_shape(place, shape, *parameters)
        case Op.CONV:
            return _conv_shape(place, node, shape, *parameters)
        case Op.MAX_POOL:
            if node.kernel != node.stride or any(node.padding):
                # Overlapping windows would need a gradient that adds; MaxUnpool overwrites.
                raise TrainingError(
                    f"{place}: windows must not overlap (kernel {node.kernel}, stride {node.stride}) nor be padded"
                )
            return (*shape[:2], *_spatial(place, node, shape))
        case Op.RELU:
            return shape
        case Op.FLATTEN:
            return (shape[0], math.prod(shape[1:]))
        case Op.SOFTMAX_CROSS_ENTROPY:
            if shape[1:] != (class_count,):
                raise TrainingError(
                    f"{place}: logits have shape {shape}, expected one column per class ({class_count})"
                )
            return ()


def _gemm_shape(place: str, shape: tuple[int, ...], weight: TensorSpec, bias: TensorSpec) -> tuple[int, ...]:
    if len(shape) != 2 or len(weight.shape) != 2 or weight.shape[0] != shape[1] or weight.channel_axis != 1:
        raise TrainingError(
            f"{place}: input {shape} does not fit the weight {weight.name} {weight.shape} with channel axis 1"
        )
    _check_bias(place, weight, bias)
    return (shape[0], weight.shape[1])


def _conv_shape(
    place: str, node: Node, shape: tuple[int, ...], weight: TensorSpec, bias: TensorSpec
) -> tuple[int, ...]:
    fits = len(weight.shape) == len(shape) and weight.shape[1] == shape[1] and weight.shape[2:] == node.kernel
    if not fits or weight.channel_axis != 0:
        raise TrainingError(
            f"{place}: input {shape} does not fit the weight {weight.name} {weight.shape} with channel axis 0"
        )
    _check_bias(place, weight, bias)
    return (shape[0], weight.shape[0], *_spatial(place, node, shape))


def _spatial(place: str, node: Node, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Sizes after a window slides over the spatial axes."""
    axes = len(shape) - 2
    if axes not in {1, 2} or not axes == len(node.kernel) == len(node.stride) == len(node.padding):
        raise TrainingError(f"{place}: input {shape} needs kernel, stride and padding for 1 or 2 spatial axes")
    sizes = []
    for size, kernel, stride, padding in zip(shape[2:], node.kernel, node.stride, node.padding, strict=True):
        if kernel < 1 or stride < 1 or not 0 <= padding < kernel or size + 2 * padding < kernel:
            raise TrainingError(
                f"{place}: kernel {kernel}, stride {stride}, padding {padding} do not fit an axis of {size}"
            )
        sizes.append((size + 2 * padding - kernel) // stride + 1)
    return tuple(sizes)


def _check_bias(place: str, weight: TensorSpec, bias: TensorSpec) -> None:
    if (
        weight.role is not Role.WEIGHT
        or bias.role is not Role.BIAS
        or bias.shape != (weight.shape[weight.channel_axis],)
    ):
        raise TrainingError(
            f"{place}: needs a weight and a bias of one element per channel, found {weight.name} and {bias.name}"
        )


def _check_tensor(spec: TensorSpec) -> None:
    if _NAME.fullmatch(spec.name) is None:
        raise TrainingError(f"tensor name {spec.name[:48]!r}: expected {_NAME.pattern}")
    _check_shape(f"tensor {spec.name}", spec.shape)
    if not GENESIS_EXPONENT_MIN <= spec.exponent <= GENESIS_EXPONENT_MAX:
        raise TrainingError(
            f"tensor {spec.name}: exponent {spec.exponent} is outside {GENESIS_EXPONENT_MIN}..{GENESIS_EXPONENT_MAX}"
        )
    if spec.role is Role.BIAS and spec.channel_axis != -1:
        raise TrainingError(f"tensor {spec.name}: a bias has no channel axis")
    if spec.role is Role.WEIGHT and not 0 <= spec.channel_axis < len(spec.shape):
        raise TrainingError(f"tensor {spec.name}: channel axis {spec.channel_axis} is not an axis of {spec.shape}")


def _check_shape(what: str, shape: tuple[int, ...]) -> None:
    if not 1 <= len(shape) <= TENSOR_RANK_MAX or not all(1 <= size <= DIMENSION_MAX for size in shape):
        raise TrainingError(f"{what}: shape {shape} needs 1..{TENSOR_RANK_MAX} axes of 1..{DIMENSION_MAX}")
