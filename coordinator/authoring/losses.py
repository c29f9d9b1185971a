"""Rules of the losses: mean over the examples of the batch; one of weight 0 counts neither in the sum nor in the mean.

Differentiation starts here: the incoming gradient is not read, and what flows on is lr dL/dz. Scaled where it is
smallest, the learning rate costs nothing per parameter.
"""

from __future__ import annotations

import numpy as np

from coordinator.authoring.step import Step
from edge_sdk.training.artifact import LEARNING_RATE, SAMPLE_WEIGHT, Y
from edge_sdk.training.network import Node


def cross_entropy_forward(step: Step, node: Node) -> str:
    """Softmax cross-entropy: -sum t log softmax(z), t = (1 - s) onehot(y) + s / classes, s the label smoothing.

    Written with -t, which needs no other sign. Source: Szegedy et al. 2016, section 7 (arXiv:1512.00567).
    """
    writer, classes = step.writer, step.network.class_count
    log_p = writer.add("LogSoftmax", step.read(node.inputs[0]), axis=1)
    smoothing = node.constants[0] if node.constants else 0.0
    off = -smoothing / classes
    values = writer.constant(np.array([off, off - (1.0 - smoothing)], np.float32))
    wanted = writer.add("OneHot", Y, writer.constant(np.array(classes, np.int64)), values)
    share = _share(step, 1.0)
    step.saved[node.output] = (log_p, wanted, share)
    chosen = writer.add("Mul", writer.add("Mul", log_p, wanted), share)
    return writer.add("ReduceSum", chosen, keepdims=0)


def cross_entropy_backward(step: Step, node: Node, dy: str) -> None:
    """Gradient: dz = lr (softmax(z) - t) / count."""
    del dy
    log_p, wanted, share = step.saved[node.output]
    difference = step.writer.add("Add", step.writer.add("Exp", log_p), wanted)
    step.flow(node.inputs[0], step.writer.add("Mul", difference, _rated(step, share)))


def squared_error_forward(step: Step, node: Node) -> str:
    """Mean squared error: (z - y)^2, mean also over the outputs."""
    writer = step.writer
    error = writer.add("Sub", step.read(node.inputs[0]), Y)
    share = _share(step, 1.0 / step.network.class_count)
    step.saved[node.output] = (error, share)
    counted = writer.add("Mul", writer.add("Mul", error, error), share)
    return writer.add("ReduceSum", counted, keepdims=0)


def squared_error_backward(step: Step, node: Node, dy: str) -> None:
    """Gradient: dz = lr 2 (z - y) / (count outputs)."""
    del dy
    writer = step.writer
    error, share = step.saved[node.output]
    step.flow(node.inputs[0], writer.add("Mul", writer.add("Mul", error, writer.scalar(2.0)), _rated(step, share)))


def binary_forward(step: Step, node: Node) -> str:
    """Binary cross-entropy of logits: max(z, 0) - z y + log(1 + exp(-|z|)), mean also over the outputs."""
    writer, z = step.writer, step.read(node.inputs[0])
    share = _share(step, 1.0 / step.network.class_count)
    step.saved[node.output] = (share,)
    linear = writer.add("Sub", writer.add("Relu", z), writer.add("Mul", z, Y))
    rest = writer.add("Softplus", writer.add("Neg", writer.add("Abs", z)))
    counted = writer.add("Mul", writer.add("Add", linear, rest), share)
    return writer.add("ReduceSum", counted, keepdims=0)


def binary_backward(step: Step, node: Node, dy: str) -> None:
    """Gradient: dz = lr (sigmoid(z) - y) / (count outputs)."""
    del dy
    writer = step.writer
    (share,) = step.saved[node.output]
    difference = writer.add("Sub", writer.add("Sigmoid", step.read(node.inputs[0])), Y)
    step.flow(node.inputs[0], writer.add("Mul", difference, _rated(step, share)))


def _rated(step: Step, share: str) -> str:
    return step.writer.add("Mul", share, LEARNING_RATE)


def _share(step: Step, factor: float) -> str:
    """(batch, 1): what each element of an example counts; 0 for padding."""
    writer = step.writer
    count = writer.add("Max", writer.add("ReduceSum", SAMPLE_WEIGHT, keepdims=0), writer.scalar(1.0))
    share = writer.add("Unsqueeze", writer.add("Div", SAMPLE_WEIGHT, count), writer.shape(1))
    return share if factor == 1.0 else writer.add("Mul", share, writer.scalar(factor))
