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
from edge_sdk.training.operators import LOSSES, Node, Op, Role, TensorSpec
from edge_sdk.training.shape_rules import output_shape

__all__ = ("Network", "Node", "Op", "Role", "Scheme", "TensorSpec", "check_network", "infer_shapes")

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


class Scheme(IntEnum):
    """Arithmetic of the training step."""

    FP32 = 1
    INT8 = 2
    """Weights int8 with an int16 Q8.8 state."""
    INT8_SR = 3
    """Weights int8, which are the state, rounded stochastically."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """Nodes, tensors, and the shape of one example without the batch axis."""

    input_shape: tuple[int, ...]
    class_count: int
    """Columns of the logits: classes, or the outputs of a network that is not a classifier."""
    tensors: tuple[TensorSpec, ...]
    nodes: tuple[Node, ...]

    @property
    def logits(self) -> str:
        """Name of the value that the loss reads."""
        return self.nodes[-1].inputs[0]

    @property
    def parameter_count(self) -> int:
        """Elements of all tensors."""
        return sum(spec.size for spec in self.tensors)

    @property
    def loss(self) -> Op:
        """The loss; it decides what the targets are."""
        return self.nodes[-1].op

    @property
    def is_classifier(self) -> bool:
        """Whether a target is one label per example, not one float per output."""
        return self.loss is Op.SOFTMAX_CROSS_ENTROPY

    @property
    def trainable_values(self) -> frozenset[str]:
        """Values that depend on a trainable tensor: a gradient must reach them."""
        changing = {spec.name for spec in self.tensors if spec.is_trainable}
        for node in self.nodes:
            if changing.intersection(node.inputs):
                changing.add(node.output)
        return frozenset(node.output for node in self.nodes if node.output in changing)


def check_network(network: Network, *, batch: int) -> dict[str, tuple[int, ...]]:
    """Check structure and bounds before anything is allocated.

    Returns:
        The shape of every value at this batch size, from ``infer_shapes``.

    Raises:
        TrainingError: a bound is broken, or a node cannot work; the text names the tensor or node.
    """
    if not 1 <= batch <= BATCH_MAX:
        raise TrainingError(f"batch {batch} is outside 1..{BATCH_MAX}")
    if not 1 <= len(network.nodes) <= NODES_MAX or not 1 <= len(network.tensors) <= TENSORS_MAX:
        raise TrainingError(
            f"{len(network.nodes)} nodes, {len(network.tensors)} tensors: expected 1..{NODES_MAX}, 1..{TENSORS_MAX}"
        )
    classes_min = 2 if network.loss is Op.SOFTMAX_CROSS_ENTROPY else 1
    if not classes_min <= network.class_count <= CLASSES_MAX:
        raise TrainingError(f"class count {network.class_count} is outside {classes_min}..{CLASSES_MAX}")
    _check_shape("input", network.input_shape)
    names: set[str] = {INPUT}
    for spec in network.tensors:
        _check_tensor(spec)
        if spec.name in names:
            raise TrainingError(f"tensor {spec.name} is defined twice")
        names.add(spec.name)
    if network.parameter_count > PARAMETERS_MAX:
        raise TrainingError(f"{network.parameter_count} parameters, at most {PARAMETERS_MAX}")
    if not any(spec.is_trainable for spec in network.tensors):
        raise TrainingError("every tensor is frozen: nothing is left to train")
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
        if (node.op in LOSSES) != (index == len(network.nodes) - 1):
            raise TrainingError(f"{place}: the loss must be the last node and the only one")
        if not node.values or any(name not in shapes for name in node.values):
            raise TrainingError(f"{place}: its first input is not a value that an earlier node makes")
        if not unused.issuperset(node.tensors) or len(set(node.tensors)) != len(node.tensors):
            raise TrainingError(f"{place}: needs tensors that are unknown or already in use: {node.tensors}")
        unused.difference_update(node.tensors)
        inputs = [shapes[name] for name in node.values]
        shape = output_shape(place, node, inputs, [specs[name] for name in node.tensors])
        if node.op in LOSSES and inputs[0][1:] != (network.class_count,):
            raise TrainingError(
                f"{place}: logits have shape {inputs[0]}, expected one column per class ({network.class_count})"
            )
        if math.prod(shape) > VALUE_ELEMENTS_MAX:
            raise TrainingError(f"{place}: its output {shape} has more than {VALUE_ELEMENTS_MAX} elements")
        shapes[node.output] = shape
    if unused:
        raise TrainingError(f"tensors that no node uses: {sorted(unused)}")
    return shapes


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
