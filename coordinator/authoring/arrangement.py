"""Rules that combine values or arrange them anew: Add, Mul, Concat, Flatten, Reshape, Transpose."""

from __future__ import annotations

import numpy as np

from coordinator.authoring.step import Step
from edge_sdk.training.network import Node


def add_forward(step: Step, node: Node) -> str:
    """Sum of two values; an axis of size 1 is repeated."""
    return step.writer.add("Add", *(step.read(name) for name in node.inputs))


def add_backward(step: Step, node: Node, dy: str) -> None:
    """Gradient: dy for both, summed over repeated axes."""
    for value in node.inputs:
        if step.needs_gradient(value):
            step.flow(value, _summed(step, node, dy, value))


def mul_forward(step: Step, node: Node) -> str:
    """Product of two values; an axis of size 1 is repeated."""
    return step.writer.add("Mul", *(step.read(name) for name in node.inputs))


def mul_backward(step: Step, node: Node, dy: str) -> None:
    """Gradient: dy times the other value, summed over repeated axes."""
    for value, other in (node.inputs, node.inputs[::-1]):
        if step.needs_gradient(value):
            product = step.writer.add("Mul", dy, step.read(other))
            step.flow(value, _summed(step, node, product, value))


def _summed(step: Step, node: Node, gradient: str, value: str) -> str:
    """Adjoint of repeating ``value`` to the shape of the node's output."""
    pairs = zip(step.shape(node.output), step.shape(value), strict=True)
    axes = [axis for axis, (size, own) in enumerate(pairs) if size != own]
    return step.writer.add("ReduceSum", gradient, step.writer.shape(*axes), keepdims=1) if axes else gradient


def concat_forward(step: Step, node: Node) -> str:
    """Values one after the other along an axis."""
    return step.writer.add("Concat", *(step.read(name) for name in node.inputs), axis=node.axes[0])


def concat_backward(step: Step, node: Node, dy: str) -> None:
    """Gradient: each value's part of dy."""
    writer, axis, start = step.writer, node.axes[0], 0
    for value in node.inputs:
        end = start + step.shapes[value][axis]
        if step.needs_gradient(value):
            step.flow(value, writer.add("Slice", dy, writer.shape(start), writer.shape(end), writer.shape(axis)))
        start = end


def flatten_forward(step: Step, node: Node) -> str:
    """All axes but the first into one."""
    return step.writer.add("Flatten", step.read(node.inputs[0]), axis=1)


def reshape_forward(step: Step, node: Node) -> str:
    """Another shape for each example; 0 keeps the batch axis, whatever its size."""
    return step.writer.add("Reshape", step.read(node.inputs[0]), step.writer.shape(0, *node.shape))


def reshape_backward(step: Step, node: Node, dy: str) -> None:
    """Back to the shape of the input."""
    value = node.inputs[0]
    step.flow(value, step.writer.add("Reshape", dy, step.writer.shape(*step.shapes[value])))


def transpose_forward(step: Step, node: Node) -> str:
    """Axes in another order; the batch axis stays."""
    return step.writer.transpose(step.read(node.inputs[0]), 0, *node.axes)


def transpose_backward(step: Step, node: Node, dy: str) -> None:
    """Gradient: the inverse order."""
    step.flow(node.inputs[0], step.writer.transpose(dy, 0, *(int(axis) + 1 for axis in np.argsort(node.axes))))
