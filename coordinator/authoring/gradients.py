"""Gradient rules, float32: those of layers with parameters and of poolings here, the others beside, all in one table.

MaxPool gives flat indices over the whole tensor, which MaxUnpool takes (windows do not overlap).
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from coordinator.authoring import activations, arrangement, conv_places, losses
from coordinator.authoring.convolutions import (
    bias_gradient,
    convolve,
    input_gradient,
    leftover,
    weight_gradient,
    window_attributes,
)
from coordinator.authoring.step import Rule, Step
from coordinator.authoring.update import ColumnSums, OuterProduct
from edge_sdk.training.artifact import state_name
from edge_sdk.training.network import Node, Op
from edge_sdk.training.numpy_windows import average_divisors


def gemm_forward(step: Step, node: Node) -> str:
    """Linear layer: y = x W + b."""
    x = step.read(node.inputs[0])
    return step.writer.add("Gemm", x, *(state_name(name) for name in node.inputs[1:]))


def gemm_backward(step: Step, node: Node, dy: str) -> None:
    """Gradients: dW = x^T dy, db = sum dy, dx = dy W^T."""
    value, weight, bias = node.inputs
    if step.needs_gradient(value):
        step.flow(value, step.writer.add("Gemm", dy, state_name(weight), transB=1))
    if step.is_trained(weight):
        step.descend(weight, OuterProduct(step.read(value), dy))
    if step.is_trained(bias):
        step.descend(bias, ColumnSums(dy))


def conv_forward(step: Step, node: Node) -> str:
    """Convolution: y = x * W + b."""
    value, weight, bias = node.inputs
    return convolve(step, node, step.read(value), state_name(weight), state_name(bias))


def conv_backward(step: Step, node: Node, dy: str) -> None:
    """Gradients of a convolution; see ``convolutions``."""
    value, weight, bias = node.inputs
    if step.needs_gradient(value):
        step.flow(value, input_gradient(step, node, dy, state_name(weight)))
    if step.is_trained(weight):
        step.descend(weight, weight_gradient(step, node, step.read(value), dy))
    if step.is_trained(bias):
        step.descend(bias, bias_gradient(step, node, dy))


def affine_forward(step: Step, node: Node) -> str:
    """One scale and one shift per channel: y = x s + t."""
    scale, shift = (_per_channel(step, node, state_name(name)) for name in node.tensors)
    return step.writer.add("Add", step.writer.add("Mul", step.read(node.inputs[0]), scale), shift)


def affine_backward(step: Step, node: Node, dy: str) -> None:
    """Gradients: ds = sum dy x, dt = sum dy, dx = dy s."""
    value, scale, shift = node.inputs
    if step.needs_gradient(value):
        step.flow(value, step.writer.add("Mul", dy, _per_channel(step, node, state_name(scale))))
    if step.is_trained(scale):
        product = step.writer.add("Mul", dy, step.read(value))
        step.descend(scale, bias_gradient(step, node, product))
    if step.is_trained(shift):
        step.descend(shift, bias_gradient(step, node, dy))


def _per_channel(step: Step, node: Node, vector: str) -> str:
    """One value per channel, shaped to broadcast over the node's input."""
    space = step.shapes[node.inputs[0]][2:]
    return step.writer.add("Reshape", vector, step.writer.shape(-1, *(1 for _ in space))) if space else vector


def max_pool_forward(step: Step, node: Node) -> str:
    """Largest value of each window; indices only when a backward will need them, since they cost the fast kernel."""
    if node.inputs[0] in step.pooled:
        return conv_places.largest(step, node)
    x = step.read(node.inputs[0])
    if not step.needs_gradient(node.inputs[0]):
        return step.writer.add("MaxPool", x, **window_attributes(node))
    y, indices = step.writer.add_many("MaxPool", 2, x, **window_attributes(node))
    step.saved[node.output] = (indices,)
    return y


def max_pool_backward(step: Step, node: Node, dy: str) -> None:
    """Gradient: dx = dy at the position of each maximum, the first of equals."""
    if node.inputs[0] in step.pooled:
        conv_places.largest_backward(step, node, dy)
        return
    shape = step.writer.shape(*step.shape(node.inputs[0]))
    indices = step.saved[node.output]
    attributes = {"kernel_shape": list(node.kernel), "strides": list(node.stride)}
    step.flow(node.inputs[0], step.writer.add("MaxUnpool", dy, *indices, shape, **attributes))


def average_pool_forward(step: Step, node: Node) -> str:
    """Mean of each window."""
    counts = int(node.counts_padding)
    return step.writer.add(
        "AveragePool", step.read(node.inputs[0]), count_include_pad=counts, **window_attributes(node)
    )


def average_pool_backward(step: Step, node: Node, dy: str) -> None:
    """Gradient: dy / divisor at every position of its window, summed: a transposed convolution with ones."""
    writer, value = step.writer, node.inputs[0]
    shape = step.shapes[value]
    share = writer.add("Div", dy, writer.constant(average_divisors(node, shape)))
    # Channels do not mix, so that each is an image of its own.
    images = writer.add("Reshape", share, writer.shape(-1, 1, *step.shapes[node.output][2:]))
    ones = writer.constant(np.ones((1, 1, *node.kernel), np.float32))
    spread = writer.add("ConvTranspose", images, ones, output_padding=leftover(step, node), **window_attributes(node))
    step.flow(value, writer.add("Reshape", spread, writer.shape(*step.shape(value))))


def global_average_pool_forward(step: Step, node: Node) -> str:
    """Mean over all spatial axes, which stay with size 1."""
    return step.writer.add("GlobalAveragePool", step.read(node.inputs[0]))


def global_average_pool_backward(step: Step, node: Node, dy: str) -> None:
    """Gradient: dy / positions everywhere, as a product of column and row: Expand takes 15 times as long."""
    writer, value = step.writer, node.inputs[0]
    positions = math.prod(step.shapes[value][2:])
    row = writer.constant(np.full((1, positions), 1.0 / positions, np.float32))
    spread = writer.add("Gemm", writer.add("Reshape", dy, writer.shape(-1, 1)), row)
    step.flow(value, writer.add("Reshape", spread, writer.shape(*step.shape(value))))


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
