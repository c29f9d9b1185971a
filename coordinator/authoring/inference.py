"""The int8 inference graph of a calibrated artifact: uint8 activations, int8 weights, products in integers.

A value is held on its uint8 grid, in float32, or both; each is made from the other when a node asks. A linear layer
multiplies uint8 by int8 and gives float32. A convolution writes to the grid of the value behind it, where nobody else
reads between, and what stands there (pooling, rectifier) works on bytes. Convolutions of one input channel stay in
float32, on the values of both grids: the runtime's integer kernel took 4 to 5 times as long for them. uint8 by int8 is
the only pair of types that is fast everywhere; ConvInteger never is.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np

from coordinator.authoring.arrangement import flatten_forward, reshape_forward
from coordinator.authoring.convolutions import conv_attributes
from coordinator.authoring.gradients import FLOAT_RULES, max_pool_forward
from coordinator.authoring.graph import FLOAT, INT8, INT32, GraphWriter
from coordinator.authoring.step import Forward, Step
from edge_sdk.training.artifact import LOGITS, X, scale_name, state_name
from edge_sdk.training.grids import KEEPS_GRID, Grid, Grids, output_grid
from edge_sdk.training.network import INPUT, Network, Node, Op, Role, Scheme

if TYPE_CHECKING:
    from collections.abc import Mapping

_BATCH: Final = "n"
_BIAS_MAX: Final = 2.0**30
"""In steps of its grid; what is larger saturates any uint8 output."""
_ON_BYTES: Final[dict[Op, Forward]] = {
    Op.MAX_POOL: max_pool_forward,
    Op.FLATTEN: flatten_forward,
    Op.RESHAPE: reshape_forward,
}
"""Rules that take bytes as they take floats."""


@dataclass(slots=True)
class _Inference:
    """The graph while it is written."""

    step: Step
    """Holds the float32 values."""
    grids: Grids
    bytes_: dict[str, tuple[str, Grid]] = field(default_factory=dict)
    """By value: its ONNX name as uint8, and the grid."""

    def constants(self, grid: Grid) -> tuple[str, str]:
        """Scale and zero point of a grid."""
        writer = self.step.writer
        return writer.scalar(grid.scale), writer.constant(np.array(grid.zero, np.uint8))

    def on_grid(self, value: str) -> str:
        """The value as uint8."""
        if value not in self.bytes_:
            grid = self.grids[value]
            quantized = self.step.writer.add("QuantizeLinear", self.step.values[value], *self.constants(grid))
            self.bytes_[value] = quantized, grid
        return self.bytes_[value][0]

    def as_float(self, value: str) -> str:
        """The value as float32."""
        if value not in self.step.values:
            quantized, grid = self.bytes_[value]
            self.step.values[value] = self.step.writer.add("DequantizeLinear", quantized, *self.constants(grid))
        return self.step.values[value]

    def write(self, node: Node) -> None:
        """Write one node."""
        if node.op is Op.GEMM:
            self.step.values[node.output] = self._gemm(node)
        elif node.op is Op.CONV:
            self._conv(node)
        elif node.op in KEEPS_GRID and node.values[0] not in self.step.values:
            self._on_bytes(node)
        else:
            for value in node.values:
                self.as_float(value)
            self.step.values[node.output] = FLOAT_RULES[node.op][0](self.step, node)

    def _gemm(self, node: Node) -> str:
        writer = self.step.writer
        value, weight, bias = node.inputs
        scale, zero = self.constants(self.grids[value])
        product = writer.cast(writer.add("MatMulInteger", self.on_grid(value), state_name(weight), zero), FLOAT)
        scaled = writer.add("Mul", product, writer.add("Mul", scale, scale_name(weight)))
        return writer.add("Add", scaled, state_name(bias))

    def _conv(self, node: Node) -> None:
        writer = self.step.writer
        value, weight, bias = node.inputs
        scale, zero = self.constants(self.grids[value])
        quantized = self.on_grid(value)
        grid = output_grid(self.step.network, node, self.grids)
        if grid is None or self.step.shapes[value][1] == 1:
            per_kernel = writer.shape(-1, *(1 for _ in self.step.spec(weight).shape[1:]))
            kernel = writer.add(
                "Mul", writer.cast(state_name(weight), FLOAT), writer.add("Reshape", scale_name(weight), per_kernel)
            )
            x = writer.add("DequantizeLinear", quantized, scale, zero)
            y = writer.add("Conv", x, kernel, state_name(bias), **conv_attributes(node))
            self.step.values[node.output] = y
            return
        steps = writer.add("Div", state_name(bias), writer.add("Mul", scale, scale_name(weight)))
        bounded = writer.add("Clip", writer.add("Round", steps), writer.scalar(-_BIAS_MAX), writer.scalar(_BIAS_MAX))
        weight_zero = writer.constant(np.array(0, np.int8))
        y = writer.add(
            "QLinearConv",
            *(quantized, scale, zero),
            *(state_name(weight), scale_name(weight), weight_zero),
            *self.constants(grid),
            writer.cast(bounded, INT32),
            **conv_attributes(node),
        )
        self.bytes_[node.output] = y, grid

    def _on_bytes(self, node: Node) -> None:
        """Pooling and rearrangement of bytes are those of floats; a rectifier cuts at the zero point."""
        quantized, grid = self.bytes_[node.values[0]]
        if node.op is Op.RELU:
            zero = self.constants(grid)[1]
            y = self.step.writer.add("Clip", quantized, zero) if grid.zero else quantized
        else:
            y = _ON_BYTES[node.op](_reading(self.step, node.values[0], quantized), node)
        self.bytes_[node.output] = y, grid


def _reading(step: Step, value: str, name: str) -> Step:
    """A view of the step in which a value has another name."""
    return Step(writer=step.writer, network=step.network, shapes=step.shapes, is_training=False, values={value: name})


def int8_inference(network: Network, shapes: Mapping[str, tuple[int, ...]], grids: Grids) -> bytes:
    """(x, int8 weights, scales, biases) -> logits, for any number of examples."""
    writer = GraphWriter("int8_inference")
    writer.input(X, FLOAT, (_BATCH, *network.input_shape))
    for spec in network.tensors:
        is_weight = spec.role is Role.WEIGHT
        writer.input(state_name(spec.name), INT8 if is_weight else FLOAT, spec.shape)
        if is_weight:
            writer.input(scale_name(spec.name), FLOAT, (spec.shape[spec.channel_axis],))
    step = Step(
        writer=writer, network=network, shapes=shapes, is_training=False, values={INPUT: X}, scheme=Scheme.INT8_SR
    )
    inference = _Inference(step, grids)
    for node in network.nodes[:-1]:
        inference.write(node)
    writer.output(inference.as_float(network.logits), LOGITS, FLOAT, (_BATCH, network.class_count))
    return writer.serialize()
