"""Convolutions in a training step: forward and gradients.

Some are written as products instead (``conv_products``), some as one convolution with the pool behind them
(``conv_places``).
The weight gradient of a convolution is itself a convolution with batch and channel exchanged and stride exchanged for
dilation. The kernel is passed in, because in an int8 step it is not the state.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from coordinator.authoring import conv_products
from coordinator.authoring.conv_places import folded_bias, folded_kernel, placed_kernel, repeated_bias, widened
from coordinator.authoring.update import Product

if TYPE_CHECKING:
    from collections.abc import Callable

    from coordinator.authoring.step import Step
    from edge_sdk.training.network import Node


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


def leftover(step: Step, node: Node) -> list[int]:
    """Per spatial axis: positions at the end that no window reaches."""
    return list(node.leftover(step.shapes[node.inputs[0]][2:]))


def convolve(step: Step, node: Node, x: str, kernel: str, bias: str) -> str:
    """Convolution: y = x * W + b."""
    if step.is_channel_major:
        return conv_products.forward(step, node, x, kernel, bias)
    kernel, bias = placed_kernel(step, node, kernel), repeated_bias(step, node, bias)
    return step.writer.add("Conv", x, kernel, bias, **conv_attributes(widened(step, node)))


def input_gradient(step: Step, node: Node, dy: str, kernel: str) -> str:
    """Gradient dx: the transposed convolution of dy."""
    if step.is_channel_major:
        return conv_products.input_gradient(step, node, dy, kernel)
    kernel, node = placed_kernel(step, node, kernel), widened(step, node)
    return step.writer.add("ConvTranspose", dy, kernel, output_padding=leftover(step, node), **conv_attributes(node))


def bias_gradient(step: Step, node: Node, dy: str) -> Product:
    """Gradient db: the sum of dy over every axis but the channels."""
    channel_axis = 0 if step.is_channel_major else 1
    axes = (axis for axis in range(len(step.shapes[node.output])) if axis != channel_axis)
    return Product(folded_bias(step, node, step.writer.add("ReduceSum", dy, step.writer.shape(*axes), keepdims=0)))


def weight_gradient(step: Step, node: Node, x: str, dy: str, decode: Callable[[str], str] = str) -> Product:
    """Gradient dW; ``decode`` makes float32 of an x that is quantized, once its axes are where they must be."""
    if step.is_channel_major:
        return conv_products.weight_gradient(step, node, decode(x), dy)
    return Product(folded_kernel(step, node, _kernel_gradient(step, widened(step, node), x, dy, decode)))


def _kernel_gradient(step: Step, node: Node, x: str, dy: str, decode: Callable[[str], str]) -> str:
    """X with batch and channel exchanged, convolved with dy likewise; stride and dilation exchange.

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
        decode(exchanged),
        writer.transpose(dy, *order),
        dilations=list(node.stride),
        strides=list(node.dilations),
        pads=[*begin, *end],
        group=groups,
    )
    if any(leftover(step, node)):  # positions that no window started from make the result larger than the kernel
        axes = range(2, rank)
        gradient = writer.add(
            "Slice", gradient, writer.shape(*(0 for _ in axes)), writer.shape(*node.kernel), writer.shape(*axes)
        )
    return writer.transpose(gradient, *order)
