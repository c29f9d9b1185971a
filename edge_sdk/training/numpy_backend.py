"""Runs an artifact's network with numpy alone: the oracle of the graphs, and the fallback without a runtime.

Written from the equations, not from the graph: one reverse pass over the manifest's nodes. Integer products are exact:
they are computed in float32 over blocks of at most 256 products of integers up to 255, whose sums stay below 2**24, and
added up as int64. The equations stand in this package's README.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from edge_sdk.training.backend import NO_MASKS, NO_NOISE
from edge_sdk.training.grids import NO_GRIDS, Grid, Grids, output_grid
from edge_sdk.training.network import INPUT, Network
from edge_sdk.training.numpy_functions import ACTIVATIONS, loss_and_slope
from edge_sdk.training.numpy_update import updated_states
from edge_sdk.training.numpy_windows import (
    add_columns,
    add_windows,
    as_image,
    average_divisors,
    columns,
    output_sizes,
    windows,
)
from edge_sdk.training.operators import Node, Op

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    from edge_sdk.training.artifact import Artifact
    from edge_sdk.training.backend import Batch

    F32 = npt.NDArray[np.float32]

EXACT_BLOCK: Final = 256
"""256 * 255 * 255 < 2**24: every partial sum is an integer that float32 holds."""
_STATES_PER_STEP: Final = np.float32(256.0)
_INT8_MIN, _INT8_MAX = -128, 127
_UINT8_MAX: Final = np.float32(255.0)
RUNTIME: Final = f"numpy {np.__version__}"


@dataclass(slots=True)
class Quantized:
    """An activation or gradient on a uint8 grid, centred: value = centred * scale."""

    centred: F32
    """q - zero point: integers in -255..255, as float32."""
    scale: np.float32


def quantize_static(values: F32, grid: Grid) -> Quantized:
    """Quantize to a calibrated grid, as ONNX QuantizeLinear does: to nearest, saturated."""
    scale, zero = np.float32(grid.scale), np.float32(grid.zero)
    return Quantized(np.clip(np.rint(values / scale) + zero, np.float32(0), _UINT8_MAX) - zero, scale)


def quantize_dynamic(values: F32) -> Quantized:
    """Quantize to uint8 with scale and zero point from the range, as ONNX DynamicQuantizeLinear does; zero is exact."""
    low, high = np.minimum(values.min(), np.float32(0)), np.maximum(values.max(), np.float32(0))
    scale = (high - low) / _UINT8_MAX if high > low else np.float32(1)
    zero = np.rint(np.clip(-low / scale, np.float32(0), _UINT8_MAX))
    q = np.clip(np.rint(values / scale) + zero, np.float32(0), _UINT8_MAX)
    return Quantized(q - zero, np.float32(scale))


def exact_product(a: F32, b: F32) -> F32:
    """Product of (stacks of) matrices of small integers held in float32, exact before its final rounding to float32."""
    inner = a.shape[-1]
    if inner <= EXACT_BLOCK:
        product: F32 = a @ b
        return product
    total = np.zeros((*a.shape[:-1], b.shape[-1]), np.int64)
    for start in range(0, inner, EXACT_BLOCK):
        block = slice(start, start + EXACT_BLOCK)
        total += (a[..., block] @ b[..., block, :]).astype(np.int64)
    return total.astype(np.float32)


def rounded_weight(state: npt.NDArray[Any]) -> F32:
    """What the int8 forward pass multiplies with: an int8 state; of Q8.8 the high byte, rounded, halves to even."""
    if state.dtype == np.int8:
        return state.astype(np.float32)
    rounded: F32 = np.clip(np.rint(state.astype(np.float32) / _STATES_PER_STEP), _INT8_MIN, _INT8_MAX)
    return rounded


@dataclass(slots=True)
class _Pass:
    """One forward pass and what its reverse needs."""

    network: Network
    states: Mapping[str, npt.NDArray[Any]]
    scales: Mapping[str, F32]
    masks: Mapping[str, F32]
    """Of each dropout, by its output; without one it is the identity."""
    values: dict[str, F32]
    grids: Grids = field(default_factory=lambda: NO_GRIDS)
    """Of calibrated activations."""
    trainable: frozenset[str] = frozenset()
    """Values that a gradient must reach."""
    saved: dict[str, Any] = field(default_factory=dict)
    """By output: the columns of a convolution, the winners of a pooling, the quantized input."""
    upstream: dict[str, F32] = field(default_factory=dict)
    """By value: dL/d(value), as far as it is known."""
    gradients: dict[str, F32] = field(default_factory=dict)
    """By trainable tensor: dL/d(parameter)."""

    def forward(self, node: Node) -> F32:
        """The node's output."""
        inputs = [self.values[name] for name in node.values]
        x = inputs[0]
        if node.op in ACTIVATIONS:
            activated: F32 = ACTIVATIONS[node.op][0](node, x)
            return activated
        y: F32
        match node.op:
            case Op.GEMM:
                y = self._gemm(node, x)
            case Op.CONV:
                y = self._conv(node, x)
            case Op.AFFINE:
                scale, shift = (_per_channel(self.states[name], x) for name in node.tensors)
                y = x * scale + shift
            case Op.MAX_POOL:
                y = self._max_pool(node, x)
            case Op.AVERAGE_POOL:
                sums = windows(node, x).sum(axis=(4, 5)).reshape(*x.shape[:2], *output_sizes(node, x.shape))
                y = sums / average_divisors(node, x.shape)
            case Op.GLOBAL_AVERAGE_POOL:
                y = x.mean(axis=tuple(range(2, x.ndim)), keepdims=True)
            case Op.DROPOUT:
                y = x * self.masks[node.output] if node.output in self.masks else x
            case Op.ADD:
                y = inputs[0] + inputs[1]
            case Op.MUL:
                y = inputs[0] * inputs[1]
            case _:
                y = _rearranged(node, inputs)
        return y

    def backward(self, node: Node, dy: F32) -> None:
        """Pass dL/d(output) on to the node's values, and keep the gradients of its tensors."""
        inputs = [self.values[name] for name in node.values]
        x = inputs[0]
        if node.op in ACTIVATIONS:
            self._flow(node, dy * ACTIVATIONS[node.op][1](node, x, self.values[node.output]))
            return
        match node.op:
            case Op.GEMM:
                self._gemm_reverse(node, x, dy)
            case Op.CONV:
                self._conv_reverse(node, x, dy)
            case Op.AFFINE:
                self._affine_reverse(node, x, dy)
            case Op.MAX_POOL | Op.AVERAGE_POOL | Op.GLOBAL_AVERAGE_POOL:
                self._flow(node, self._pool_reverse(node, x, dy))
            case Op.DROPOUT:
                self._flow(node, dy * self.masks[node.output] if node.output in self.masks else dy)
            case Op.ADD:
                self._flow(node, *(_summed_to(dy, value.shape) for value in inputs))
            case Op.MUL:
                self._flow(node, *(_summed_to(dy * inputs[1 - i], inputs[i].shape) for i in range(2)))
            case Op.CONCAT:
                cuts = np.cumsum([value.shape[node.axes[0]] for value in inputs])[:-1]
                self._flow(node, *np.split(dy, cuts, axis=node.axes[0]))
            case Op.TRANSPOSE:
                self._flow(node, dy.transpose(0, *(1 + np.argsort(node.axes))))
            case _:
                self._flow(node, dy.reshape(x.shape))

    def _flow(self, node: Node, *gradients: F32) -> None:
        """Add dL/d(value) for each of the node's values that a gradient must reach."""
        for value, gradient in zip(node.values, gradients, strict=True):
            if value in self.trainable:
                self.upstream[value] = self.upstream[value] + gradient if value in self.upstream else gradient

    def _quantize(self, node: Node, x: F32) -> Quantized:
        """The input of a Gemm or Conv on its uint8 grid: calibrated, or that of the batch."""
        grid = self.grids.get(node.values[0])
        return quantize_dynamic(x) if grid is None else quantize_static(x, grid)

    def _flow_inside(self, node: Node, x: F32, dx: F32) -> None:
        """Flow for the input of a Gemm or Conv: nothing where it saturated."""
        grid = self.grids.get(node.values[0])
        if grid is not None:
            low, high = grid.bounds
            dx = dx * ((x >= np.float32(low)) & (x <= np.float32(high)))
        self._flow(node, dx)

    def _is_trained(self, tensor: str) -> bool:
        return next(spec for spec in self.network.tensors if spec.name == tensor).is_trainable

    def _gemm(self, node: Node, x: F32) -> F32:
        _, weight, bias = node.inputs
        y: F32
        if weight not in self.scales:
            y = x @ self.states[weight] + self.states[bias]
            return y
        quantized = self.saved[node.output] = self._quantize(node, x)
        product = exact_product(quantized.centred, rounded_weight(self.states[weight]))
        y = product * (quantized.scale * self.scales[weight]) + self.states[bias]
        return y

    def _gemm_reverse(self, node: Node, x: F32, dy: F32) -> None:
        value, weight, bias = node.inputs
        if self._is_trained(bias):
            self.gradients[bias] = dy.sum(axis=0)
        is_quantized = weight in self.scales
        if self._is_trained(weight):
            forward = self.saved[node.output] if is_quantized else None
            self.gradients[weight] = x.T @ dy if forward is None else (forward.centred * forward.scale).T @ dy
        if value not in self.trainable:
            return
        if is_quantized:
            scaled = quantize_dynamic(dy * self.scales[weight])
            product = exact_product(scaled.centred, rounded_weight(self.states[weight]).T) * scaled.scale
            self._flow_inside(node, x, product)
        else:
            self._flow(node, dy @ self.states[weight].T)

    def _conv(self, node: Node, x: F32) -> F32:
        _, weight, bias = node.inputs
        if weight in self.scales:
            quantized = self._quantize(node, x)
            self.saved[f"{node.output}.scale"] = quantized.scale
            kernel = rounded_weight(self.states[weight])
            factor = quantized.scale * self.scales[weight]
            x = quantized.centred
        else:
            kernel, factor = self.states[weight], None
        rows = columns(node, x)
        if self._is_trained(weight):
            self.saved[node.output] = rows
        flat = _grouped(node, kernel).transpose(0, 2, 1)
        product = exact_product(rows, flat) if factor is not None else rows @ flat
        joined = product.transpose(1, 0, 2).reshape(rows.shape[1], len(kernel))
        y = (joined if factor is None else joined * factor) + self.states[bias]
        spatial = output_sizes(node, x.shape)
        return np.ascontiguousarray(np.moveaxis(y.reshape(len(x), *spatial, len(kernel)), -1, 1))

    def _conv_reverse(self, node: Node, x: F32, dy: F32) -> None:
        value, weight, bias = node.inputs
        state = self.states[weight]
        rows = np.moveaxis(dy, 1, -1).reshape(-1, len(state))
        is_quantized = weight in self.scales
        if self._is_trained(bias):
            self.gradients[bias] = rows.sum(axis=0)
        if self._is_trained(weight):
            gradient = (_split(node, rows).transpose(0, 2, 1) @ self.saved[node.output]).reshape(state.shape)
            self.gradients[weight] = gradient * self.saved[f"{node.output}.scale"] if is_quantized else gradient
        if value not in self.trainable:
            return
        if is_quantized:
            rows, state = rows * self.scales[weight], rounded_weight(state)
        dx = add_columns(node, _split(node, rows) @ _grouped(node, state), x.shape)
        if is_quantized:
            self._flow_inside(node, x, dx)
        else:
            self._flow(node, dx)

    def _affine_reverse(self, node: Node, x: F32, dy: F32) -> None:
        scale, shift = node.tensors
        others = (0, *range(2, x.ndim))
        if self._is_trained(scale):
            self.gradients[scale] = (dy * x).sum(axis=others)
        if self._is_trained(shift):
            self.gradients[shift] = dy.sum(axis=others)
        self._flow(node, dy * _per_channel(self.states[scale], x))

    def _max_pool(self, node: Node, x: F32) -> F32:
        view = windows(node, x)
        flat = view.reshape(*view.shape[:-2], -1)
        winners = self.saved[node.output] = flat.argmax(axis=-1)
        y = np.take_along_axis(flat, winners[..., np.newaxis], axis=-1)[..., 0]
        return y.reshape(*x.shape[:2], *output_sizes(node, x.shape))

    def _pool_reverse(self, node: Node, x: F32, dy: F32) -> F32:
        match node.op:
            case Op.MAX_POOL:
                return self._max_pool_reverse(node, x, dy)
            case Op.AVERAGE_POOL:
                share = as_image(dy / average_divisors(node, x.shape))
                kernel = (1,) * (2 - len(node.kernel)) + node.kernel
                return add_windows(node, np.broadcast_to(share, (*kernel, *share.shape)), x.shape)
            case _:
                return np.broadcast_to(dy / np.float32(x[0, 0].size), x.shape)

    def _max_pool_reverse(self, node: Node, x: F32, dy: F32) -> F32:
        winners = self.saved[node.output]
        flat = np.zeros((*winners.shape, int(np.prod(node.kernel))), np.float32)
        np.put_along_axis(flat, winners[..., np.newaxis], dy.reshape(winners.shape)[..., np.newaxis], axis=-1)
        dx = np.zeros(x.shape, np.float32)
        view = windows(node, dx, writeable=True)
        view[...] = flat.reshape(view.shape)  # windows do not overlap
        return dx


class _Int8Pass(_Pass):
    """Inference on grids: a convolution of several channels writes to the grid of the value behind it at once."""

    def _conv(self, node: Node, x: F32) -> F32:
        y = super()._conv(node, x)
        grid = output_grid(self.network, node, self.grids)
        if grid is None or x.shape[1] == 1:
            return y
        rounded = quantize_static(y, grid)
        return rounded.centred * rounded.scale


class NumpyBackend:
    """``Backend`` without a runtime."""

    def __init__(self, artifact: Artifact) -> None:
        """Keep the artifact."""
        self._artifact = artifact

    def step(
        self,
        batch: Batch,
        lr: float,
        states: Mapping[str, npt.NDArray[Any]],
        scales: Mapping[str, F32],
        masks: Mapping[str, F32] = NO_MASKS,
        noise: Mapping[str, F32] = NO_NOISE,
    ) -> tuple[dict[str, npt.NDArray[Any]], float]:
        """See ``Backend.step``."""
        run, logits = self._forward(batch.x, states, scales, masks, is_training=True)
        share = batch.weight / np.maximum(batch.weight.sum(), np.float32(1))
        loss, slope = loss_and_slope(run.network.nodes[-1], logits, batch.y, share)
        run.trainable = run.network.trainable_values
        run.upstream[run.network.logits] = slope
        for node in reversed(run.network.nodes[:-1]):
            if node.output in run.trainable and node.output in run.upstream:
                run.backward(node, run.upstream.pop(node.output))
        return updated_states(self._artifact, run.gradients, lr, states, scales, noise), loss

    def logits(self, x: F32, params: Mapping[str, F32]) -> F32:
        """See ``Backend.logits``."""
        return self._forward(x, params, {}, {})[1]

    def activations(self, x: F32, params: Mapping[str, F32]) -> dict[str, F32]:
        """Every value of the float32 network, by name."""
        return self._forward(x, params, {}, {})[0].values

    def int8_logits(self, x: F32, states: Mapping[str, npt.NDArray[Any]], scales: Mapping[str, F32]) -> F32:
        """See ``Backend.int8_logits``."""
        run = _Int8Pass(
            network=self._artifact.network,
            states=states,
            scales=scales,
            masks={},
            values={INPUT: x},
            grids=self._artifact.grids,
        )
        for node in run.network.nodes[:-1]:
            run.values[node.output] = run.forward(node)
        return run.values[run.network.logits]

    def release(self) -> None:
        """See ``Backend.release``; nothing is held between calls."""

    def _forward(
        self,
        x: F32,
        states: Mapping[str, npt.NDArray[Any]],
        scales: Mapping[str, F32],
        masks: Mapping[str, F32],
        *,
        is_training: bool = False,
    ) -> tuple[_Pass, F32]:
        network = self._artifact.network
        run = _Pass(
            network=network, states=states, scales=scales, masks=masks, values={INPUT: x}, grids=self._artifact.grids
        )
        ended = _values_that_end(network) if is_training else {}
        for node in network.nodes[:-1]:
            run.values[node.output] = run.forward(node)
            for name in ended.get(node.output, ()):
                del run.values[name]
        return run, run.values[network.logits]


def _values_that_end(network: Network) -> dict[str, list[str]]:
    """By a node's output: values that nobody needs after it, since no backward passes there either."""
    reached = network.trainable_values
    needed = {name for node in network.nodes if node.output in reached for name in (*node.values, node.output)}
    last = {name: node.output for node in network.nodes for name in node.values}
    ended: dict[str, list[str]] = {}
    for name, output in last.items():
        if name not in needed:
            ended.setdefault(output, []).append(name)
    return ended


def _rearranged(node: Node, inputs: list[F32]) -> F32:
    """The same values in another arrangement."""
    x = inputs[0]
    match node.op:
        case Op.CONCAT:
            return np.concatenate(inputs, axis=node.axes[0])
        case Op.TRANSPOSE:
            return x.transpose(0, *node.axes)
        case Op.RESHAPE:
            return x.reshape(len(x), *node.shape)
        case Op.FLATTEN:
            return x.reshape(len(x), -1)
        case _:
            raise AssertionError("the loss is computed by the caller")


def _per_channel(vector: F32, x: F32) -> F32:
    """One value per channel, shaped to broadcast over x."""
    return vector.reshape(-1, *(1 for _ in x.shape[2:]))


def _summed_to(dy: F32, shape: tuple[int, ...]) -> F32:
    """Adjoint of broadcasting ``shape`` to the shape of dy."""
    axes = tuple(axis for axis, (a, b) in enumerate(zip(dy.shape, shape, strict=True)) if a != b)
    return dy.sum(axis=axes, keepdims=True) if axes else dy


def _grouped(node: Node, kernel: F32) -> F32:
    """(group, channels out of a group, weights of a channel)."""
    return kernel.reshape(node.groups, len(kernel) // node.groups, -1)


def _split(node: Node, rows: F32) -> F32:
    """(row, channel out) as (group, row, channel out of a group)."""
    return rows.reshape(len(rows), node.groups, -1).transpose(1, 0, 2)
