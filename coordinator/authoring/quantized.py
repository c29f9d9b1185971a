"""The int8 training step: rules for Gemm and Conv that replace the float32 ones.

Notation: S scale per output channel, Q state, Wq what the forward pass multiplies with (Q8.8: sat8(round(Q / 2**8));
int8: Q), (xq, sx, zx) the activation as uint8 with dynamic scale and zero point (ONNX DynamicQuantizeLinear),
g = dL/dy.

    y        = (xq - zx) Wq * sx S + b
    dL/dx    = quantize(g S) Wq^T          in int8; a convolution's in float32
    dL/dW    = (xq - zx)^T quantize(g) * sx sg

Quantizing an activation passes the gradient straight through: a dynamic range clips nothing. The products of a
convolution are computed on integers held in float32, which is exact while 255 * 127 * (fan-in) < 2**24, that is up to
a fan-in of 518; there is no fast integer convolution in the runtime.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from coordinator.authoring.gradients import (
    FLOAT_RULES,
    bias_gradient,
    conv_attributes,
    conv_input_gradient,
    conv_weight_gradient,
)
from coordinator.authoring.graph import FLOAT
from coordinator.authoring.step import Rule, Step
from edge_sdk.training.artifact import scale_name, state_name
from edge_sdk.training.network import Op, Scheme
from edge_sdk.training.quantize import STATES_PER_STEP

if TYPE_CHECKING:
    from edge_sdk.training.network import Node


def gemm_forward(step: Step, node: Node) -> str:
    """Linear layer: y = float((xq - zx) Wq) * (sx S) + b."""
    writer = step.writer
    value, weight, bias = node.inputs
    xq, sx, zx = writer.add_many("DynamicQuantizeLinear", 3, step.values[value])
    wq = _int8_weight(step, weight)
    step.saved[node.output] = (xq, sx, zx, wq)
    product = writer.cast(writer.add("MatMulInteger", xq, wq, zx), FLOAT)
    scaled = writer.add("Mul", product, writer.add("Mul", sx, scale_name(weight)))
    return writer.add("Add", scaled, state_name(bias))


def gemm_backward(step: Step, node: Node, dy: str) -> None:
    """Both products of the backward pass in integers."""
    writer = step.writer
    value, weight, bias = node.inputs
    xq, sx, zx, wq = step.saved[node.output]
    if step.needs_gradient(value):
        hq, sh, zh = writer.add_many("DynamicQuantizeLinear", 3, writer.add("Mul", dy, scale_name(weight)))
        back = writer.add("MatMulInteger", hq, writer.transpose(wq, 1, 0), zh)
        step.flow(value, writer.add("Mul", writer.cast(back, FLOAT), sh))
    if step.is_trained(weight):
        gq, sg, zg = writer.add_many("DynamicQuantizeLinear", 3, dy)
        product = writer.cast(writer.add("MatMulInteger", writer.transpose(xq, 1, 0), gq, zx, zg), FLOAT)
        step.descend(weight, product, writer.add("Mul", sx, sg))
    if step.is_trained(bias):
        step.descend(bias, bias_gradient(step, dy, axes=(0,)))


def conv_forward(step: Step, node: Node) -> str:
    """Convolution: y = conv(xq - zx, Wq) * (sx S) + b, with exact products of integers in float32."""
    writer = step.writer
    value, weight, bias = node.inputs
    xq, sx, zx = writer.add_many("DynamicQuantizeLinear", 3, step.values[value])
    centred = writer.add("Sub", writer.cast(xq, FLOAT), writer.cast(zx, FLOAT))
    wq = writer.cast(_int8_weight(step, weight), FLOAT)
    step.saved[node.output] = (centred, sx, wq)
    product = writer.add("Conv", centred, wq, **conv_attributes(node))
    scaled = writer.add("Mul", product, _per_channel(step, node, writer.add("Mul", sx, scale_name(weight))))
    return writer.add("Add", scaled, _per_channel(step, node, state_name(bias)))


def conv_backward(step: Step, node: Node, dy: str) -> None:
    """Float32 gradients through the rounded weights and the quantized input."""
    writer = step.writer
    value, weight, bias = node.inputs
    centred, sx, wq = step.saved[node.output]
    if step.needs_gradient(value):
        scaled = writer.add("Mul", dy, _per_channel(step, node, scale_name(weight)))
        step.flow(value, conv_input_gradient(step, node, scaled, wq))
    if step.is_trained(weight):
        step.descend(weight, conv_weight_gradient(step, node, centred, dy), sx)
    if step.is_trained(bias):
        step.descend(bias, bias_gradient(step, dy, axes=(0, *range(2, 2 + len(node.kernel)))))


def _int8_weight(step: Step, weight: str) -> str:
    """Wq: of a Q8.8 state sat8(round(Q / 2**8)), halves to even; an int8 state as it is."""
    writer = step.writer
    if step.scheme is Scheme.INT8_SR:
        return state_name(weight)
    states = writer.scalar(STATES_PER_STEP[step.scheme])
    zero = writer.constant(np.array(0, np.int8))
    return writer.add("QuantizeLinear", writer.cast(state_name(weight), FLOAT), states, zero)


def _per_channel(step: Step, node: Node, vector: str) -> str:
    """One value per channel, shaped to broadcast over (batch, channel, *space)."""
    return step.writer.add("Reshape", vector, step.writer.shape(1, -1, *(1 for _ in node.kernel)))


INT8_RULES: Final[dict[Op, Rule]] = {
    **FLOAT_RULES,
    Op.GEMM: (gemm_forward, gemm_backward),
    Op.CONV: (conv_forward, conv_backward),
}
