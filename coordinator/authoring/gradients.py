"""Reverse-mode differentiation into ONNX nodes: one forward and one backward rule per operator, float32.

``Step`` carries one training step while it is written: the ONNX name of every forward value, what a rule saved for
its backward, and each tensor's state after the update. A backward rule takes dL/d(output), updates the node's own
tensors and returns dL/d(input), or None where nothing upstream is trainable.

Facts of the runtime that the rules rest on: the weight gradient of a convolution is itself a convolution with batch
and channel exchanged and stride exchanged for dilation; MaxPool gives flat indices over the whole tensor, which
MaxUnpool takes (windows do not overlap).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np

from coordinator.authoring.graph import FLOAT, GraphWriter
from edge_sdk.training.artifact import LEARNING_RATE, SAMPLE_WEIGHT, Y, state_name
from edge_sdk.training.network import Network, Node, Op, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(slots=True, kw_only=True)
class Step:
    """One training step while it is written, or one evaluation: then nothing is saved for a backward."""

    writer: GraphWriter
    network: Network
    shapes: Mapping[str, tuple[int, ...]]
    is_training: bool
    values: dict[str, str]
    """ONNX name of each forward value."""
    saved: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """By the name of a node's output: ONNX names that its backward rule needs."""
    trainable: set[str] = field(default_factory=set)
    """Values that depend on a trainable tensor: a gradient must reach them."""
    next_states: dict[str, str] = field(default_factory=dict)

    def spec(self, name: str) -> TensorSpec:
        """The tensor's row in the table."""
        return next(spec for spec in self.network.tensors if spec.name == name)

    def needs_gradient(self, node: Node) -> bool:
        """Whether something upstream of the node's input is trainable."""
        return node.inputs[0] in self.trainable

    def descend(self, tensor: str, gradient: str) -> None:
        """Plain SGD on a float32 state: p - lr * g."""
        step = self.writer.add("Mul", LEARNING_RATE, gradient)
        self.next_states[tensor] = self.writer.add("Sub", state_name(tensor), step)


Forward = Callable[[Step, Node], str]
Backward = Callable[[Step, Node, str], str | None]
Rule = tuple[Forward, Backward]


def window_attributes(node: Node) -> dict[str, list[int]]:
    """Attributes of a sliding window, as Conv and MaxPool take them."""
    return {"kernel_shape": list(node.kernel), "strides": list(node.stride), "pads": [*node.padding, *node.padding]}


def gemm_forward(step: Step, node: Node) -> str:
    """Linear layer: y = x W + b."""
    x = step.values[node.inputs[0]]
    return step.writer.add("Gemm", x, *(state_name(name) for name in node.inputs[1:]))


def gemm_backward(step: Step, node: Node, dy: str) -> str | None:
    """Gradients: dW = x^T dy, db = sum dy, dx = dy W^T."""
    value, weight, bias = node.inputs
    dx = step.writer.add("Gemm", dy, state_name(weight), transB=1) if step.needs_gradient(node) else None
    step.descend(weight, step.writer.add("Gemm", step.values[value], dy, transA=1))
    step.descend(bias, bias_gradient(step, dy, axes=(0,)))
    return dx


def bias_gradient(step: Step, dy: str, *, axes: tuple[int, ...]) -> str:
    """Sum over every axis but the channels."""
    return step.writer.add("ReduceSum", dy, step.writer.shape(*axes), keepdims=0)


def conv_forward(step: Step, node: Node) -> str:
    """Convolution: y = x * W + b."""
    x = step.values[node.inputs[0]]
    return step.writer.add("Conv", x, *(state_name(name) for name in node.inputs[1:]), **window_attributes(node))


def conv_backward(step: Step, node: Node, dy: str) -> str | None:
    """Gradients of a convolution; see the two functions below."""
    value, weight, bias = node.inputs
    dx = conv_input_gradient(step, node, dy, state_name(weight)) if step.needs_gradient(node) else None
    step.descend(weight, conv_weight_gradient(step, node, step.values[value], dy))
    step.descend(bias, bias_gradient(step, dy, axes=(0, *range(2, 2 + len(node.kernel)))))
    return dx


def conv_weight_gradient(step: Step, node: Node, x: str, dy: str) -> str:
    """Gradient dW: x with batch and channel exchanged, convolved with dy likewise; stride becomes dilation."""
    writer, rank = step.writer, 2 + len(node.kernel)
    order = (1, 0, *range(2, rank))
    gradient = writer.add(
        "Conv",
        writer.transpose(x, *order),
        writer.transpose(dy, *order),
        dilations=list(node.stride),
        pads=[*node.padding, *node.padding],
    )
    if any(_leftover(step, node)):  # positions that no window started from make the result larger than the kernel
        axes = range(2, rank)
        gradient = writer.add(
            "Slice", gradient, writer.shape(*(0 for _ in axes)), writer.shape(*node.kernel), writer.shape(*axes)
        )
    return writer.transpose(gradient, *order)


def conv_input_gradient(step: Step, node: Node, dy: str, weight: str) -> str:
    """Gradient dx: the transposed convolution of dy."""
    return step.writer.add("ConvTranspose", dy, weight, output_padding=_leftover(step, node), **window_attributes(node))


def _leftover(step: Step, node: Node) -> list[int]:
    """Per spatial axis: positions at the end that the last window did not reach."""
    sizes = step.shapes[node.inputs[0]][2:]
    windows = zip(sizes, node.kernel, node.stride, node.padding, strict=True)
    return [(size + 2 * padding - kernel) % stride for size, kernel, stride, padding in windows]


def relu_forward(step: Step, node: Node) -> str:
    """Rectifier: y = max(x, 0)."""
    return step.writer.add("Relu", step.values[node.inputs[0]])


def relu_backward(step: Step, node: Node, dy: str) -> str | None:
    """Gradient: dx = dy where y > 0."""
    if not step.needs_gradient(node):
        return None
    is_active = step.writer.add("Greater", step.values[node.output], step.writer.scalar(0.0))
    return step.writer.add("Mul", dy, step.writer.cast(is_active, FLOAT))


def max_pool_forward(step: Step, node: Node) -> str:
    """Largest value of each window; indices only when a backward will need them, since they cost the fast kernel."""
    x = step.values[node.inputs[0]]
    if not step.is_training:
        return step.writer.add("MaxPool", x, **window_attributes(node))
    y, indices = step.writer.add_many("MaxPool", 2, x, **window_attributes(node))
    step.saved[node.output] = (indices,)
    return y


def max_pool_backward(step: Step, node: Node, dy: str) -> str | None:
    """Gradient: dx = dy at the position of each maximum, the first of equals."""
    if not step.needs_gradient(node):
        return None
    shape = step.writer.shape(*step.shapes[node.inputs[0]])
    return step.writer.add(
        "MaxUnpool", dy, *step.saved[node.output], shape, kernel_shape=list(node.kernel), strides=list(node.stride)
    )


def flatten_forward(step: Step, node: Node) -> str:
    """All axes but the first into one."""
    return step.writer.add("Flatten", step.values[node.inputs[0]], axis=1)


def flatten_backward(step: Step, node: Node, dy: str) -> str | None:
    """Back to the shape of the input."""
    if not step.needs_gradient(node):
        return None
    return step.writer.add("Reshape", dy, step.writer.shape(*step.shapes[node.inputs[0]]))


def cross_entropy_forward(step: Step, node: Node) -> str:
    """Mean over the examples of -log softmax(z)[y]; one of weight 0 counts neither in the sum nor in the mean."""
    writer = step.writer
    log_p = writer.add("LogSoftmax", step.values[node.inputs[0]], axis=1)
    column = writer.add("Unsqueeze", Y, writer.shape(1))
    classes = writer.constant(np.arange(step.network.class_count, dtype=np.int64).reshape(1, -1))
    one_hot = writer.cast(writer.add("Equal", column, classes), FLOAT)
    count = writer.add("Max", writer.add("ReduceSum", SAMPLE_WEIGHT, keepdims=0), writer.scalar(1.0))
    share = writer.add("Unsqueeze", writer.add("Div", SAMPLE_WEIGHT, count), writer.shape(1))
    step.saved[node.output] = (log_p, one_hot, share)
    chosen = writer.add("Mul", writer.add("Mul", log_p, one_hot), share)
    return writer.add("Neg", writer.add("ReduceSum", chosen, keepdims=0))


def cross_entropy_backward(step: Step, node: Node, dy: str) -> str | None:
    """Gradient: dz = (softmax(z) - onehot(y)) / count; ``dy`` is 1, since differentiation starts at the loss."""
    del dy
    if not step.needs_gradient(node):
        return None
    writer = step.writer
    log_p, one_hot, share = step.saved[node.output]
    return writer.add("Mul", writer.add("Sub", writer.add("Exp", log_p), one_hot), share)


FLOAT_RULES: Final[dict[Op, Rule]] = {
    Op.GEMM: (gemm_forward, gemm_backward),
    Op.CONV: (conv_forward, conv_backward),
    Op.RELU: (relu_forward, relu_backward),
    Op.MAX_POOL: (max_pool_forward, max_pool_backward),
    Op.FLATTEN: (flatten_forward, flatten_backward),
    Op.SOFTMAX_CROSS_ENTROPY: (cross_entropy_forward, cross_entropy_backward),
}


def write_forward(step: Step, rules: Mapping[Op, Rule], nodes: tuple[Node, ...]) -> None:
    """Write the forward pass of ``nodes`` in order."""
    for node in nodes:
        step.values[node.output] = rules[node.op][0](step, node)
        if step.needs_gradient(node) or len(node.inputs) > 1:
            step.trainable.add(node.output)


def write_backward(step: Step, rules: Mapping[Op, Rule]) -> None:
    """Write the backward pass from the loss, adding up the gradient of a value that several nodes read."""
    gradients: dict[str, str] = {step.network.nodes[-1].output: ""}
    for node in reversed(step.network.nodes):
        if node.output not in gradients:
            continue
        dx = rules[node.op][1](step, node, gradients[node.output])
        value = node.inputs[0]
        if dx is not None:
            gradients[value] = step.writer.add("Add", gradients[value], dx) if value in gradients else dx
