"""Rules of activations and dropout: y = f(x), dL/dx = dL/dy f'(x). Each passes no gradient where f is flat."""

from __future__ import annotations

from coordinator.authoring.graph import FLOAT
from coordinator.authoring.step import Step
from edge_sdk.training.artifact import mask_name
from edge_sdk.training.network import Node


def relu_forward(step: Step, node: Node) -> str:
    """Rectifier: y = max(x, 0)."""
    return step.writer.add("Relu", step.read(node.inputs[0]))


def relu_backward(step: Step, node: Node, dy: str) -> None:
    """Gradient: dx = dy where y > 0."""
    is_active = step.writer.add("Greater", step.read(node.output), step.writer.scalar(0.0))
    step.flow(node.inputs[0], step.writer.add("Mul", dy, step.writer.cast(is_active, FLOAT)))


def clip_forward(step: Step, node: Node) -> str:
    """Bounded: y = min(max(x, low), high); ReLU6 has 0 and 6."""
    return step.writer.add("Clip", step.read(node.inputs[0]), *map(step.writer.scalar, node.constants))


def clip_backward(step: Step, node: Node, dy: str) -> None:
    """Gradient: dx = dy where low < y < high."""
    writer, y = step.writer, step.read(node.output)
    low, high = map(writer.scalar, node.constants)
    is_active = writer.add("And", writer.add("Greater", y, low), writer.add("Less", y, high))
    step.flow(node.inputs[0], writer.add("Mul", dy, writer.cast(is_active, FLOAT)))


def leaky_relu_forward(step: Step, node: Node) -> str:
    """Leaky rectifier: y = x where x >= 0, else alpha x."""
    return step.writer.add("LeakyRelu", step.read(node.inputs[0]), alpha=node.constants[0])


def leaky_relu_backward(step: Step, node: Node, dy: str) -> None:
    """Gradient: dx = dy where x >= 0, else alpha dy."""
    writer = step.writer
    is_below = writer.add("Less", step.read(node.inputs[0]), writer.scalar(0.0))
    slope = writer.add("Where", is_below, writer.scalar(node.constants[0]), writer.scalar(1.0))
    step.flow(node.inputs[0], writer.add("Mul", dy, slope))


def sigmoid_forward(step: Step, node: Node) -> str:
    """Logistic function: y = 1 / (1 + exp(-x))."""
    return step.writer.add("Sigmoid", step.read(node.inputs[0]))


def sigmoid_backward(step: Step, node: Node, dy: str) -> None:
    """Gradient: dx = dy y (1 - y)."""
    writer, y = step.writer, step.read(node.output)
    slope = writer.add("Mul", y, writer.add("Sub", writer.scalar(1.0), y))
    step.flow(node.inputs[0], writer.add("Mul", dy, slope))


def tanh_forward(step: Step, node: Node) -> str:
    """Hyperbolic tangent."""
    return step.writer.add("Tanh", step.read(node.inputs[0]))


def tanh_backward(step: Step, node: Node, dy: str) -> None:
    """Gradient: dx = dy (1 - y^2)."""
    writer, y = step.writer, step.read(node.output)
    slope = writer.add("Sub", writer.scalar(1.0), writer.add("Mul", y, y))
    step.flow(node.inputs[0], writer.add("Mul", dy, slope))


def hard_swish_forward(step: Step, node: Node) -> str:
    """Hard swish: y = x min(max(x / 6 + 1/2, 0), 1) (Howard et al. 2019, arXiv:1905.02244)."""
    x = step.read(node.inputs[0])
    return step.writer.add("Mul", x, step.writer.add("HardSigmoid", x, alpha=1.0 / 6.0, beta=0.5))


def hard_swish_backward(step: Step, node: Node, dy: str) -> None:
    """Gradient: dx = dy times 0 where x <= -3, x / 3 + 1/2 where |x| < 3, else 1."""
    writer, x = step.writer, step.read(node.inputs[0])
    is_inside = writer.add("Less", writer.add("Abs", x), writer.scalar(3.0))
    line = writer.add("Add", writer.add("Div", x, writer.scalar(3.0)), writer.scalar(0.5))
    beyond = writer.cast(writer.add("Greater", x, writer.scalar(0.0)), FLOAT)
    step.flow(node.inputs[0], writer.add("Mul", dy, writer.add("Where", is_inside, line, beyond)))


def dropout_forward(step: Step, node: Node) -> str:
    """Multiply with the mask of this step; the identity in evaluation."""
    x = step.read(node.inputs[0])
    return step.writer.add("Mul", x, mask_name(node.output)) if step.is_training else x


def dropout_backward(step: Step, node: Node, dy: str) -> None:
    """Gradient: dx = dy mask."""
    step.flow(node.inputs[0], step.writer.add("Mul", dy, mask_name(node.output)))
