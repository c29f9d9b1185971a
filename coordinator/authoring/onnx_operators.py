"""ONNX nodes without parameters: activations, poolings, and arrangement."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from onnx import TensorProto

from coordinator.authoring.onnx_folding import attribute
from coordinator.authoring.onnx_windows import window_of
from edge_sdk.errors import TrainingError
from edge_sdk.training.operators import Op

if TYPE_CHECKING:
    from onnx import NodeProto

    from coordinator.authoring.onnx_trunk import Trunk

Handler = Callable[["Trunk", Any], None]
_FLOAT_MAX: Final = float(np.finfo(np.float32).max)


def _plain(op: Op) -> Handler:
    """An operator without attributes."""

    def handle(trunk: Trunk, node: NodeProto) -> None:
        trunk.add(op, trunk.value(node.input[0]), name=node.output[0])

    return handle


def leaky_relu(trunk: Trunk, node: NodeProto) -> None:
    """LeakyRelu."""
    slope = attribute(node, "alpha", 0.01)
    trunk.add(Op.LEAKY_RELU, trunk.value(node.input[0]), name=node.output[0], constants=(slope,))


def clip(trunk: Trunk, node: NodeProto) -> None:
    """Clip; its bounds are attributes before opset 11, then inputs, each may be missing."""
    bounds = []
    for index, (name, default) in enumerate((("min", -_FLOAT_MAX), ("max", _FLOAT_MAX)), 1):
        if len(node.input) > index and node.input[index]:
            bounds.append(float(trunk.constant(node.input[index]).item()))
        else:
            bounds.append(float(attribute(node, name, default)))
    trunk.add(Op.CLIP, trunk.value(node.input[0]), name=node.output[0], constants=tuple(bounds))


def dropout(trunk: Trunk, node: NodeProto) -> None:
    """Dropout, in whatever mode it was exported: it drops in the training step and nowhere else."""
    rate = attribute(node, "ratio", 0.5)
    if len(node.input) > 1 and node.input[1]:
        rate = trunk.constant(node.input[1]).item()
    trunk.add(Op.DROPOUT, trunk.value(node.input[0]), name=node.output[0], constants=(float(rate),))


def same(trunk: Trunk, node: NodeProto) -> None:
    """Identity, and a Cast that changes nothing."""
    if node.op_type == "Cast" and attribute(node, "to") != TensorProto.FLOAT:
        raise TrainingError("a cast of values to another type is not supported: compute in float32")
    trunk.alias(node.output[0], trunk.value(node.input[0]))


def max_pool(trunk: Trunk, node: NodeProto) -> None:
    """MaxPool with windows that do not overlap."""
    value = trunk.value(node.input[0])
    window = window_of(node, trunk.shapes[value], kernel=tuple(attribute(node, "kernel_shape", ())))
    if window["kernel"] != window["stride"] or any(window["padding"]) or "dilation" in window:
        raise TrainingError(
            f"windows overlap or are padded (kernel {window['kernel']}, stride {window['stride']}): "
            "use stride = kernel, or AveragePool"
        )
    trunk.add(Op.MAX_POOL, value, name=node.output[0], **window)


def average_pool(trunk: Trunk, node: NodeProto) -> None:
    """AveragePool."""
    value = trunk.value(node.input[0])
    window = window_of(node, trunk.shapes[value], kernel=tuple(attribute(node, "kernel_shape", ())))
    if "dilation" in window:
        raise TrainingError("a dilated average is not supported: use Conv with stride")
    counts = bool(attribute(node, "count_include_pad", 0)) or not any(window["padding"])
    trunk.add(Op.AVERAGE_POOL, value, name=node.output[0], counts_padding=counts, **window)


def global_max_pool(trunk: Trunk, node: NodeProto) -> None:
    """GlobalMaxPool: one window over everything."""
    value = trunk.value(node.input[0])
    sizes = trunk.shapes[value][2:]
    trunk.add(Op.MAX_POOL, value, name=node.output[0], kernel=sizes, stride=sizes, padding=(0,) * len(sizes))


def reduce_mean(trunk: Trunk, node: NodeProto) -> None:
    """ReduceMean over all spatial axes is GlobalAveragePool."""
    value = trunk.value(node.input[0])
    rank = len(trunk.shapes[value])
    axes = _axes(trunk, node, rank)
    if sorted(axes) != list(range(2, rank)):
        raise TrainingError(f"a mean over the axes {axes}: only over all spatial axes: use GlobalAveragePool")
    keeps = attribute(node, "keepdims", 1)
    pooled = trunk.add(Op.GLOBAL_AVERAGE_POOL, value, name=node.output[0])
    if not keeps:
        trunk.add(Op.FLATTEN, pooled, name=node.output[0])


def flatten(trunk: Trunk, node: NodeProto) -> None:
    """Flatten from axis 1 on."""
    value = trunk.value(node.input[0])
    rank = len(trunk.shapes[value])
    if attribute(node, "axis", 1) % rank != 1:
        raise TrainingError(f"flattens from axis {attribute(node, 'axis', 1)}: expected 1, so that examples stay apart")
    _arrange(trunk, node, value, (math.prod(trunk.shapes[value][1:]),))


def reshape(trunk: Trunk, node: NodeProto) -> None:
    """Reshape that leaves the batch axis alone."""
    value = trunk.value(node.input[0])
    shape = trunk.shapes[value]
    target = [int(size) for size in trunk.constant(node.input[1]).ravel()]
    if not target or (target[0] != -1 and not trunk.is_batch(target[0])):
        raise TrainingError(f"reshapes to {target}: the first axis has to stay the batch (0 or -1)")
    if attribute(node, "allowzero", 0):
        raise TrainingError("allowzero is not supported: shapes without empty axes need none")
    sizes = [shape[axis] if size == 0 and axis < len(shape) else size for axis, size in enumerate(target)][1:]
    elements = math.prod(shape[1:])
    if sizes.count(-1) == 1 and target[0] != -1:
        known = math.prod(size for size in sizes if size != -1)
        sizes = [elements // known if size == -1 and known > 0 else size for size in sizes]
    if not sizes or min(sizes) < 1 or math.prod(sizes) != elements:
        raise TrainingError(f"reshapes examples of {shape[1:]} to {target}: that mixes or splits examples")
    _arrange(trunk, node, value, tuple(sizes))


def squeeze(trunk: Trunk, node: NodeProto) -> None:
    """Squeeze and Unsqueeze of axes other than the batch."""
    value = trunk.value(node.input[0])
    shape = list(trunk.shapes[value])
    if node.op_type == "Squeeze":
        axes = _axes(trunk, node, len(shape)) or [axis for axis, size in enumerate(shape) if axis and size == 1]
        if any(not 0 < axis < len(shape) or shape[axis] != 1 for axis in axes):
            raise TrainingError(f"squeezes the axes {axes} of {shape[1:]}: expected axes of size 1, not the batch")
        sizes = [size for axis, size in enumerate(shape) if axis not in axes]
    else:
        count = _axis_count(trunk, node)
        axes = sorted(_axes(trunk, node, len(shape) + count))
        if not axes or axes[0] < 1 or axes[-1] >= len(shape) + count:
            raise TrainingError(f"inserts the axes {axes}: expected axes behind the batch")
        sizes = shape
        for axis in axes:
            sizes.insert(axis, 1)
    if len(sizes) < 2:
        raise TrainingError("leaves examples without an axis")
    _arrange(trunk, node, value, tuple(sizes[1:]))


def transpose(trunk: Trunk, node: NodeProto) -> None:
    """Transpose that leaves the batch axis alone."""
    value = trunk.value(node.input[0])
    rank = len(trunk.shapes[value])
    order = list(attribute(node, "perm", tuple(reversed(range(rank)))))
    if sorted(order) != list(range(rank)) or order[0] != 0:
        raise TrainingError(f"transposes to {order}: the batch axis has to stay first")
    if order == list(range(rank)):
        trunk.alias(node.output[0], value)
    else:
        trunk.add(Op.TRANSPOSE, value, name=node.output[0], axes=tuple(order[1:]))


def concat(trunk: Trunk, node: NodeProto) -> None:
    """Concat along any axis but the batch."""
    values = [trunk.value(name) for name in node.input]
    rank = len(trunk.shapes[values[0]])
    axis = attribute(node, "axis") % rank
    if axis == 0:
        raise TrainingError("joins along the batch: expected another axis")
    trunk.add(Op.CONCAT, *values, name=node.output[0], axes=(axis,))


def _arrange(trunk: Trunk, node: NodeProto, value: str, sizes: tuple[int, ...]) -> None:
    """Another shape for each example, with the simplest node that gives it."""
    if sizes == trunk.shapes[value][1:]:
        trunk.alias(node.output[0], value)
    elif len(sizes) == 1:
        trunk.add(Op.FLATTEN, value, name=node.output[0])
    else:
        trunk.add(Op.RESHAPE, value, name=node.output[0], shape=sizes)


def _axis_count(trunk: Trunk, node: NodeProto) -> int:
    return len(_raw_axes(trunk, node))


def _axes(trunk: Trunk, node: NodeProto, rank: int) -> list[int]:
    return [axis + rank if axis < 0 else axis for axis in _raw_axes(trunk, node)]


def _raw_axes(trunk: Trunk, node: NodeProto) -> list[int]:
    """Axes as attribute (before opset 13 or 18) or as input."""
    if len(node.input) > 1 and node.input[1]:
        return [int(axis) for axis in trunk.constant(node.input[1]).ravel()]
    return list(attribute(node, "axes", ()))


OPERATORS: Final[dict[str, Handler]] = {
    "Relu": _plain(Op.RELU),
    "Sigmoid": _plain(Op.SIGMOID),
    "Tanh": _plain(Op.TANH),
    "HardSwish": _plain(Op.HARD_SWISH),
    "GlobalAveragePool": _plain(Op.GLOBAL_AVERAGE_POOL),
    "LeakyRelu": leaky_relu,
    "Clip": clip,
    "Dropout": dropout,
    "Identity": same,
    "Cast": same,
    "MaxPool": max_pool,
    "AveragePool": average_pool,
    "GlobalMaxPool": global_max_pool,
    "ReduceMean": reduce_mean,
    "Flatten": flatten,
    "Reshape": reshape,
    "Squeeze": squeeze,
    "Unsqueeze": squeeze,
    "Transpose": transpose,
    "Concat": concat,
}
