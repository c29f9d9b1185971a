"""Gradient rules, float32: those of layers with parameters and of poolings here, the others beside, all in one table.

Facts of the runtime that the rules rest on: the weight gradient of a convolution is itself a convolution with batch
and channel exchanged and stride exchanged for dilation; MaxPool gives flat indices over the whole tensor, which
MaxUnpool takes (windows do not overlap).
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np

from coordinator.authoring import activations, arrangement, losses
from coordinator.authoring.step import Rule, Step
from coordinator.authoring.update import OuterProduct, Product
from edge_sdk.training.artifact import state_name
from edge_sdk.training.network import Node, Op
from edge_sdk.training.numpy_windows import average_divisors


def window_attributes(node: Node) -> dict[str, list[int]]:
    """Attributes of a sliding window, as pooling takes them."""
    begin, end = node.pads
    return {"kernel_shape": list(node.kernel), "strides": list(node.stride), "pads": [*begin, *end]}


def conv_attributes(node: Node) -> dict[str, Any]:
    """Attributes of a convolution and of its transpose."""
    attributes: dict[str, Any] = dict(window_attributes(node))
    if node.dilation:
        attributes["dilations"] = list(node.dilation)
    if node.groups > 1:
        attributes["group"] = node.groups
    return attributes


def gemm_forward(step: Step, node: Node) -> str:
    """Linear layer: y = x W + b."""
    x = step.values[node.inputs[0]]
    return step.writer.add("Gemm", x, *(state_name(name) for name in node.inputs[1:]))


def gemm_backward(step: Step, node: Node, dy: str) -> None:
    """Gradients: dW = x^T dy, db = sum dy, dx = dy W^T."""
    value, weight, bias = node.inputs
    if step.needs_gradient(value):
        step.flow(value, step.writer.add("Gemm", dy, state_name(weight), transB=1))
    if step.is_trained(weight):
        step.descend(weight, OuterProduct(step.values[value], dy))
    if step.is_trained(bias):
        step.descend(bias, bias_gradient(step, dy, axes=(0,)))


def bias_gradient(step: Step, dy: str, *, axes: tuple[int, ...]) -> Product:
    """Sum over every axis but the channels."""
    return Product(step.writer.add("ReduceSum", dy, step.writer.shape(*axes), keepdims=0))


def conv_forward(step: Step, node: Node) -> str:
    """Convolution: y = x * W + b."""
    x = step.values[node.inputs[0]]
    return step.writer.add("Conv", x, *(state_name(name) for name in node.inputs[1:]), **conv_attributes(node))


def conv_backward(step: Step, node: Node, dy: str) -> None:
    """Gradients of a convolution; see the two functions below."""
    value, weight, bias = node.inputs
    if step.needs_gradient(value):
        step.flow(value, conv_input_gradient(step, node, dy, state_name(weight)))
    if step.is_trained(weight):
        step.descend(weight, conv_weight_gradient(step, node, step.values[value], dy))
    if step.is_trained(bias):
        step.descend(bias, bias_gradient(step, dy, axes=(0, *range(2, 2 + len(node.kernel)))))


def conv_weight_gradient(step: Step, node: Node, x: str, dy: str) -> Product:
    """Gradient dW: x with batch and channel exchanged, convolved with dy likewise; stride and dilation exchange.

    Groups stay groups: the channels of one group of x become the batch, and (group, batch) its channels.
    """
    writer, rank, groups = step.writer, 2 + len(node.kernel), node.groups
    order = (1, 0, *range(2, rank))
    if groups == 1:
        exchanged = writer.transpose(x, *order)
    else:
        batch, channels, *space = step.shapes[node.inputs[0]]
        split = writer.add("Reshape", x, writer.shape(batch, groups, channels // groups, *space))
        turned = writer.transpose(split, 2, 1, 0, *range(3, rank + 1))
        exchanged = writer.add("Reshape", turned, writer.shape(channels // groups, groups * batch, *space))
    begin, end = node.pads
    gradient = writer.add(
        "Conv",
        exchanged,
        writer.transpose(dy, *order),
        dilations=list(node.stride),
        strides=list(node.dilations),
        pads=[*begin, *end],
        group=groups,
    )
    if any(_leftover(step, node)):  # positions that no window started from make the result larger than the kernel
        axes = range(2, rank)
        gradient = writer.add(
            "Slice", gradient, writer.shape(*(0 for _ in axes)), writer.shape(*node.kernel), writer.shape(*axes)
        )
    return Product(writer.transpose(gradient, *order))


def conv_input_gradient(step: Step, node: Node, dy: str, weight: str) -> str:
    """Gradient dx: the transposed convolution of dy; of a 1x1 kernel a convolution, which the runtime does faster."""
    is_pointwise = {*node.kernel, *node.stride, node.groups} == {1} and not any(node.padding)
    if is_pointwise:
        return step.writer.add("Conv", dy, step.writer.transpose(weight, 1, 0, *range(2, 2 + len(node.kernel))))
    return step.writer.add("ConvTranspose", dy, weight, output_padding=_leftover(step, node), **conv_attributes(node))


def _leftover(step: Step, node: Node) -> list[int]:
    return list(node.leftover(step.shapes[node.inputs[0]][2:]))


def affine_forward(step: Step, node: Node) -> str:
    """One scale and one shift per channel: y = x s + t."""
    scale, shift = (_per_channel(step, node, state_name(name)) for name in node.tensors)
    return step.writer.add("Add", step.writer.add("Mul", step.values[node.inputs[0]], scale), shift)


def affine_backward(step: Step, node: Node, dy: str) -> None:
    """Gradients: ds = sum dy x, dt = sum dy, dx = dy s."""
    value, scale, shift = node.inputs
    axes = (0, *range(2, len(step.shapes[value])))
    if step.needs_gradient(value):
        step.flow(value, step.writer.add("Mul", dy, _per_channel(step, node, state_name(scale))))
    if step.is_trained(scale):
        product = step.writer.add("Mul", dy, step.values[value])
        step.descend(scale, bias_gradient(step, product, axes=axes))
    if step.is_trained(shift):
        step.descend(shift, bias_gradient(step, dy, axes=axes))


def _per_channel(step: Step, node: Node, vector: str) -> str:
    """One value per channel, shaped to broadcast over the node's input."""
    space = step.shapes[node.inputs[0]][2:]
    return step.writer.add("Reshape", vector, step.writer.shape(-1, *(1 for _ in space))) if space else vector


def max_pool_forward(step: Step, node: Node) -> str:
    """Largest value of each window; indices only when a backward will need them, since they cost the fast kernel."""
    x = step.values[node.inputs[0]]
    if not step.is_training:
        return step.writer.add("MaxPool", x, **window_attributes(node))
    y, indices = step.writer.add_many("MaxPool", 2, x, **window_attributes(node))
    step.saved[node.output] = (indices,)
    return y


def max_pool_backward(step: Step, node: Node, dy: str) -> None:
    """Gradient: dx = dy at the position of each maximum, the first of equals."""
    shape = step.writer.shape(*step.shapes[node.inputs[0]])
    indices = step.saved[node.output]
    attributes = {"kernel_shape": list(node.kernel), "strides": list(node.stride)}
    step.flow(node.inputs[0], step.writer.add("MaxUnpool", dy, *indices, shape, **attributes))


def average_pool_forward(step: Step, node: Node) -> str:
    """Mean of each window."""
    counts = int(node.counts_padding)
    return step.writer.add(
        "AveragePool", step.values[node.inputs[0]], count_include_pad=counts, **window_attributes(node)
    )


def average_pool_backward(step: Step, node: Node, dy: str) -> None:
    """Gradient: dy / divisor at every position of its window, summed: a transposed convolution with ones."""
    writer, value = step.writer, node.inputs[0]
    shape = step.shapes[value]
    share = writer.add("Div", dy, writer.constant(average_divisors(node, shape)))
    # Channels do not mix, so that each is an image of its own.
    images = writer.add("Reshape", share, writer.shape(-1, 1, *step.shapes[node.output][2:]))
    ones = writer.constant(np.ones((1, 1, *node.kernel), np.float32))
    spread = writer.add("ConvTranspose", images, ones, output_padding=_leftover(step, node), **window_attributes(node))
    step.flow(value, writer.add("Reshape", spread, writer.shape(*shape)))


def global_average_pool_forward(step: Step, node: Node) -> str:
    """Mean over all spatial axes, which stay with size 1."""
    return step.writer.add("GlobalAveragePool", step.values[node.inputs[0]])


def global_average_pool_backward(step: Step, node: Node, dy: str) -> None:
    """Gradient: dy / positions everywhere."""
    writer, shape = step.writer, step.shapes[node.inputs[0]]
    share = writer.add("Mul", dy, writer.scalar(1.0 / math.prod(shape[2:])))
    step.flow(node.inputs[0], writer.add("Expand", share, writer.shape(*shape)))


FLOAT_RULES: Final[dict[Op, Rule]] = {
    Op.GEMM: (gemm_forward, gemm_backward),
    Op.CONV: (conv_forward, conv_backward),
    Op.AFFINE: (affine_forward, affine_backward),
    Op.MAX_POOL: (max_pool_forward, max_pool_backward),
    Op.AVERAGE_POOL: (average_pool_forward, average_pool_backward),
    Op.GLOBAL_AVERAGE_POOL: (global_average_pool_forward, global_average_pool_backward),
    Op.RELU: (activations.relu_forward, activations.relu_backward),
    Op.CLIP: (activations.clip_forward, activations.clip_backward),
    Op.LEAKY_RELU: (activations.leaky_relu_forward, activations.leaky_relu_backward),
    Op.SIGMOID: (activations.sigmoid_forward, activations.sigmoid_backward),
    Op.TANH: (activations.tanh_forward, activations.tanh_backward),
    Op.HARD_SWISH: (activations.hard_swish_forward, activations.hard_swish_backward),
    Op.DROPOUT: (activations.dropout_forward, activations.dropout_backward),
    Op.ADD: (arrangement.add_forward, arrangement.add_backward),
    Op.MUL: (arrangement.mul_forward, arrangement.mul_backward),
    Op.CONCAT: (arrangement.concat_forward, arrangement.concat_backward),
    Op.FLATTEN: (arrangement.flatten_forward, arrangement.reshape_backward),
    Op.RESHAPE: (arrangement.reshape_forward, arrangement.reshape_backward),
    Op.TRANSPOSE: (arrangement.transpose_forward, arrangement.transpose_backward),
    Op.SOFTMAX_CROSS_ENTROPY: (losses.cross_entropy_forward, losses.cross_entropy_backward),
    Op.MEAN_SQUARED_ERROR: (losses.squared_error_forward, losses.squared_error_backward),
    Op.BINARY_CROSS_ENTROPY: (losses.binary_forward, losses.binary_backward),
}
