"""The int8 training step: rules for Gemm and Conv that replace the float32 ones.

Notation: S scale per output channel, Q state, Wq what the forward pass multiplies with (Q8.8: sat8(round(Q / 2**8));
int8: Q), (xq, sx, zx) the activation as uint8 with dynamic scale and zero point (ONNX DynamicQuantizeLinear),
g = dL/dy.

    y        = (xq - zx) Wq * sx S + b     uint8 times int8; a convolution's on float32 values of both grids
    dL/dx    = quantize(g S) Wq^T          uint8 times int8; a convolution's in float32
    dL/dW    = ((xq - zx) sx)^T g          in float32

Quantizing an activation passes the gradient straight through: a dynamic range clips nothing. On a calibrated grid
(``edge_sdk.training.grids``) what saturates gets none. Where the runtime has no
fast integer kernel, integers would only cost time: it has none for a convolution whose weights change, and for an outer
product over a batch its integer kernel takes 2 to 3 times as long as the float one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from coordinator.authoring.convolutions import bias_gradient, convolve, input_gradient, weight_gradient
from coordinator.authoring.gradients import FLOAT_RULES
from coordinator.authoring.graph import FLOAT
from coordinator.authoring.step import Rule, Step
from coordinator.authoring.update import ColumnSums, OuterProduct
from edge_sdk.training.artifact import scale_name, state_name
from edge_sdk.training.network import Op, Scheme
from edge_sdk.training.quantize import STATES_PER_STEP

if TYPE_CHECKING:
    from edge_sdk.training.network import Node


def gemm_forward(step: Step, node: Node) -> str:
    """Linear layer: y = float((xq - zx) Wq) * (sx S) + b."""
    writer = step.writer
    value, weight, bias = node.inputs
    xq, sx, zx = _uint8(step, value)
    wq = _int8_weight(step, weight)
    step.saved[node.output] = (xq, sx, zx, wq)
    product = writer.add("MatMulInteger", xq, wq, zx)
    scaled = writer.add("DequantizeLinear", product, writer.add("Mul", sx, scale_name(weight)), axis=1)
    return writer.add("Add", scaled, state_name(bias))


def gemm_backward(step: Step, node: Node, dy: str) -> None:
    """The product with the weights in integers; the weight gradient takes g as it is, on the values of x's grid."""
    writer = step.writer
    value, weight, bias = node.inputs
    xq, sx, zx, wq = step.saved[node.output]
    if step.needs_gradient(value):
        hq, sh, zh = writer.add_many("DynamicQuantizeLinear", 3, writer.add("Mul", dy, scale_name(weight)))
        back = writer.add("MatMulInteger", hq, writer.transpose(wq, 1, 0), zh)
        _flow_inside(step, value, writer.add("DequantizeLinear", back, sh))
    if step.is_trained(weight):
        step.descend(weight, OuterProduct(writer.add("DequantizeLinear", xq, sx, zx), dy))
    if step.is_trained(bias):
        step.descend(bias, ColumnSums(dy))


def conv_forward(step: Step, node: Node) -> str:
    """Convolution: y = conv((xq - zx) sx, Wq S) + b, on float32 values of both grids."""
    writer = step.writer
    value, weight, bias = node.inputs
    quantized = _uint8(step, value)
    kernel = writer.add("DequantizeLinear", _int8_weight(step, weight), scale_name(weight), axis=0)
    step.saved[node.output] = (*quantized, kernel)
    x = writer.add("DequantizeLinear", *quantized)
    return convolve(step, node, x, kernel, state_name(bias))


def conv_backward(step: Step, node: Node, dy: str) -> None:
    """Float32 gradients through the rounded weights and the quantized input."""
    value, weight, bias = node.inputs
    *quantized, kernel = step.saved[node.output]
    if step.needs_gradient(value):
        _flow_inside(step, value, input_gradient(step, node, dy, kernel))
    if step.is_trained(weight):
        xq, sx, zx = quantized
        # Bytes are turned, not floats; and the runtime quantizes anew what it finds turned behind a DequantizeLinear.
        step.descend(
            weight,
            weight_gradient(step, node, xq, dy, lambda turned: step.writer.add("DequantizeLinear", turned, sx, zx)),
        )
    if step.is_trained(bias):
        step.descend(bias, bias_gradient(step, node, dy))


def _uint8(step: Step, value: str) -> tuple[str, str, str]:
    """(xq, sx, zx): on the calibrated grid, or on that of the batch."""
    writer = step.writer
    grid = step.grids.get(value)
    if grid is None:
        xq, sx, zx = writer.add_many("DynamicQuantizeLinear", 3, step.read(value))
        return xq, sx, zx
    scale, zero = writer.scalar(grid.scale), writer.constant(np.array(grid.zero, np.uint8))
    return writer.add("QuantizeLinear", step.read(value), scale, zero), scale, zero


def _flow_inside(step: Step, value: str, gradient: str) -> None:
    """Pass a gradient on, but not to what saturated on a calibrated grid."""
    writer, x = step.writer, step.read(value)
    grid = step.grids.get(value)
    if grid is not None:
        clipped = writer.add("Clip", x, *map(writer.scalar, grid.bounds))
        gradient = writer.add("Mul", gradient, writer.cast(writer.add("Equal", x, clipped), FLOAT))
    step.flow(value, gradient)


def _int8_weight(step: Step, weight: str) -> str:
    """Wq: of a Q8.8 state sat8(round(Q / 2**8)), halves to even; an int8 state as it is."""
    writer = step.writer
    if step.scheme is Scheme.INT8_SR:
        return state_name(weight)
    states = writer.scalar(STATES_PER_STEP[step.scheme])
    zero = writer.constant(np.array(0, np.int8))
    return writer.add("QuantizeLinear", writer.cast(state_name(weight), FLOAT), states, zero)


INT8_RULES: Final[dict[Op, Rule]] = {
    **FLOAT_RULES,
    Op.GEMM: (gemm_forward, gemm_backward),
    Op.CONV: (conv_forward, conv_backward),
}
