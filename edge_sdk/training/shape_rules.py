"""One shape rule per operator: what a node makes of its inputs' shapes, or why it cannot work. Allocates nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final

from edge_sdk.errors import TrainingError
from edge_sdk.training.operators import LOSSES, TENSORS_OF, WINDOWS, Node, Op, Role, TensorSpec

Shape = tuple[int, ...]
JOINED_MAX: Final = 64
"""Values of one CONCAT."""
_CONSTANTS: Final[dict[Op, int]] = {Op.CLIP: 2, Op.LEAKY_RELU: 1, Op.DROPOUT: 1}
_IMAGE_RANK: Final = 4


def output_shape(place: str, node: Node, shapes: Sequence[Shape], tensors: Sequence[TensorSpec]) -> Shape:
    """Shape of a node's output.

    Args:
        place: How an error names the node.
        node: The node.
        shapes: Of its values, batch axis first.
        tensors: Its tensors.

    Raises:
        TrainingError: the node cannot work on them.
    """
    _check_arity(place, node, shapes, tensors)
    shape = shapes[0]
    if node.op in _RULES:
        return _RULES[node.op](place, node, shape)
    match node.op:
        case Op.GEMM:
            return _gemm(place, shape, *tensors)
        case Op.CONV:
            return _conv(place, node, shape, *tensors)
        case Op.AFFINE:
            return _affine(place, shape, tensors)
        case Op.ADD | Op.MUL:
            return _broadcast(place, shape, shapes[1])
        case Op.CONCAT:
            return _concat(place, node, shapes)
        case _:
            return shape


def _check_arity(place: str, node: Node, shapes: Sequence[Shape], tensors: Sequence[TensorSpec]) -> None:
    value_count = len(node.values) if node.op is Op.CONCAT else 2 if node.op in {Op.ADD, Op.MUL} else 1
    if len(shapes) != value_count or not 1 <= value_count <= JOINED_MAX:
        raise TrainingError(f"{place}: takes {value_count} values (1..{JOINED_MAX}), found {len(shapes)}")
    if len(tensors) != TENSORS_OF.get(node.op, 0):
        raise TrainingError(f"{place}: takes {TENSORS_OF.get(node.op, 0)} tensors, found {len(tensors)}")
    expected = _CONSTANTS.get(node.op, 0)
    is_smoothed = node.op is Op.SOFTMAX_CROSS_ENTROPY and len(node.constants) == 1
    if (len(node.constants) != expected and not is_smoothed) or not all(map(math.isfinite, node.constants)):
        raise TrainingError(f"{place}: takes {expected} finite constants, found {node.constants}")
    if node.groups != 1 and node.op is not Op.CONV:
        raise TrainingError(f"{place}: only a convolution has groups")
    if node.dilation and node.op is not Op.CONV:
        raise TrainingError(f"{place}: only a convolution can be dilated")
    if node.op not in WINDOWS and (node.kernel or node.stride or node.padding):
        raise TrainingError(f"{place}: has no window")


def _same(place: str, node: Node, shape: Shape) -> Shape:
    del place, node
    return shape


def _clip(place: str, node: Node, shape: Shape) -> Shape:
    low, high = node.constants
    if not low < high:
        raise TrainingError(f"{place}: bounds {low}..{high}: expected low < high")
    return shape


def _fraction(place: str, node: Node, shape: Shape) -> Shape:
    """Dropout's rate, label smoothing: a share of at least 0 and below 1."""
    if node.constants and not 0 <= node.constants[0] < 1:
        raise TrainingError(f"{place}: a share of {node.constants[0]} is outside 0 <= share < 1")
    return shape


def _flatten(place: str, node: Node, shape: Shape) -> Shape:
    del place, node
    return (shape[0], math.prod(shape[1:]))


def _reshape(place: str, node: Node, shape: Shape) -> Shape:
    if not node.shape or min(node.shape) < 1 or math.prod(node.shape) != math.prod(shape[1:]):
        raise TrainingError(f"{place}: an example of shape {shape[1:]} does not become {node.shape}")
    return (shape[0], *node.shape)


def _transpose(place: str, node: Node, shape: Shape) -> Shape:
    if sorted(node.axes) != list(range(1, len(shape))):
        raise TrainingError(f"{place}: axes {node.axes} are not an order of 1..{len(shape) - 1}")
    return (shape[0], *(shape[axis] for axis in node.axes))


def _max_pool(place: str, node: Node, shape: Shape) -> Shape:
    if node.kernel != node.stride or any(node.padding):
        # Overlapping windows would need a gradient that adds; MaxUnpool overwrites.
        raise TrainingError(
            f"{place}: windows must not overlap (kernel {node.kernel}, stride {node.stride}) nor be padded"
        )
    return (*shape[:2], *_spatial(place, node, shape))


def _average_pool(place: str, node: Node, shape: Shape) -> Shape:
    return (*shape[:2], *_spatial(place, node, shape))


def _global_average_pool(place: str, node: Node, shape: Shape) -> Shape:
    del node
    if len(shape) not in {_IMAGE_RANK - 1, _IMAGE_RANK}:
        raise TrainingError(f"{place}: input {shape} needs 1 or 2 spatial axes")
    return (*shape[:2], *(1 for _ in shape[2:]))


def _loss(place: str, node: Node, shape: Shape) -> Shape:
    if len(shape) != 2:
        raise TrainingError(f"{place}: outputs have shape {shape}, expected (batch, outputs)")
    _fraction(place, node, shape)
    return ()


def _gemm(place: str, shape: Shape, weight: TensorSpec, bias: TensorSpec) -> Shape:
    if len(shape) != 2 or len(weight.shape) != 2 or weight.shape[0] != shape[1] or weight.channel_axis != 1:
        raise TrainingError(
            f"{place}: input {shape} does not fit the weight {weight.name} {weight.shape} with channel axis 1"
        )
    _check_bias(place, weight, bias)
    return (shape[0], weight.shape[1])


def _conv(place: str, node: Node, shape: Shape, weight: TensorSpec, bias: TensorSpec) -> Shape:
    groups = node.groups
    if groups < 1 or weight.shape[0] % groups:
        raise TrainingError(f"{place}: {weight.shape[0]} channels of {weight.name} do not split into {groups} groups")
    fits = len(weight.shape) == len(shape) and weight.shape[1] * groups == shape[1] and weight.shape[2:] == node.kernel
    if not fits or weight.channel_axis != 0:
        raise TrainingError(
            f"{place}: input {shape} does not fit the weight {weight.name} {weight.shape} with channel axis 0"
            + (f" in {groups} groups" if groups > 1 else "")
        )
    _check_bias(place, weight, bias)
    return (shape[0], weight.shape[0], *_spatial(place, node, shape))


def _spatial(place: str, node: Node, shape: Shape) -> Shape:
    """Sizes after a window slides over the spatial axes."""
    axes = len(shape) - 2
    fits = axes == len(node.kernel) == len(node.stride) == len(node.dilations)
    if axes not in {1, 2} or not fits or len(node.padding) not in {axes, 2 * axes}:
        raise TrainingError(f"{place}: input {shape} needs kernel, stride and padding for 1 or 2 spatial axes")
    if min(*node.kernel, *node.stride, *node.dilations) < 1:
        raise TrainingError(
            f"{place}: kernel {node.kernel}, stride {node.stride}, dilation {node.dilations} do not fit: below 1"
        )
    sizes = []
    for size, reach, stride, begin, end in zip(shape[2:], node.reach, node.stride, *node.pads, strict=True):
        if not 0 <= min(begin, end) <= max(begin, end) < reach or size + begin + end < reach:
            raise TrainingError(
                f"{place}: window {reach}, stride {stride}, padding {begin} and {end} do not fit an axis of {size}"
            )
        sizes.append((size + begin + end - reach) // stride + 1)
    return tuple(sizes)


def _affine(place: str, shape: Shape, tensors: Sequence[TensorSpec]) -> Shape:
    for spec in tensors:
        if spec.role is not Role.BIAS or len(shape) < 2 or spec.shape != (shape[1],):
            raise TrainingError(f"{place}: {spec.name} {spec.shape} is not one float per channel of {shape}")
    return shape


def _broadcast(place: str, a: Shape, b: Shape) -> Shape:
    if len(a) != len(b) or any(p != q and 1 not in (p, q) for p, q in zip(a[1:], b[1:], strict=True)):
        raise TrainingError(f"{place}: shapes {a} and {b} cannot be combined")
    return (a[0], *(max(p, q) for p, q in zip(a[1:], b[1:], strict=True)))


def _concat(place: str, node: Node, shapes: Sequence[Shape]) -> Shape:
    first = shapes[0]
    if len(node.axes) != 1 or not 1 <= node.axes[0] < len(first):
        raise TrainingError(f"{place}: axis {node.axes} is not one of 1..{len(first) - 1}")
    axis = node.axes[0]
    for shape in shapes[1:]:
        if (*shape[:axis], *shape[axis + 1 :]) != (*first[:axis], *first[axis + 1 :]) or len(shape) != len(first):
            raise TrainingError(f"{place}: shapes {first} and {shape} differ beside axis {axis}")
    return (*first[:axis], sum(shape[axis] for shape in shapes), *first[axis + 1 :])


def _check_bias(place: str, weight: TensorSpec, bias: TensorSpec) -> None:
    if (
        weight.role is not Role.WEIGHT
        or bias.role is not Role.BIAS
        or bias.shape != (weight.shape[weight.channel_axis],)
    ):
        raise TrainingError(
            f"{place}: needs a weight and a bias of one element per channel, found {weight.name} and {bias.name}"
        )


_RULES: Final[dict[Op, Callable[[str, Node, Shape], Shape]]] = {
    Op.RELU: _same,
    Op.CLIP: _clip,
    Op.LEAKY_RELU: _same,
    Op.SIGMOID: _same,
    Op.TANH: _same,
    Op.HARD_SWISH: _same,
    Op.DROPOUT: _fraction,
    Op.FLATTEN: _flatten,
    Op.RESHAPE: _reshape,
    Op.TRANSPOSE: _transpose,
    Op.MAX_POOL: _max_pool,
    Op.AVERAGE_POOL: _average_pool,
    Op.GLOBAL_AVERAGE_POOL: _global_average_pool,
    **dict.fromkeys(LOSSES, _loss),
}
