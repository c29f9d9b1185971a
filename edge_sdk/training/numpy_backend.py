"""Runs an artifact's network with numpy alone: the oracle of the graphs, and the fallback without a runtime.

Written from the equations, not from the graph: one reverse pass over the manifest's nodes. Integer products are exact:
they are computed in float32 over blocks of at most 256 products of integers up to 255, whose sums stay below 2**24, and
added up as int64. One spatial axis is treated as two with a height of 1. The equations stand in this package's README.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np

from edge_sdk.training.network import INPUT, Network, Node, Op

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
_INT16_MIN, _INT16_MAX = -32_768, 32_767
_UINT8_MAX: Final = np.float32(255.0)
_IMAGE_RANK: Final = 4


@dataclass(slots=True)
class Quantized:
    """An activation or gradient on a uint8 grid, centred: value = centred * scale."""

    centred: F32
    """q - zero point: integers in -255..255, as float32."""
    scale: np.float32


def quantize_dynamic(values: F32) -> Quantized:
    """Quantize to uint8 with scale and zero point from the range, as ONNX DynamicQuantizeLinear does; zero is exact."""
    low, high = np.minimum(values.min(), np.float32(0)), np.maximum(values.max(), np.float32(0))
    scale = (high - low) / _UINT8_MAX if high > low else np.float32(1)
    zero = np.rint(np.clip(-low / scale, np.float32(0), _UINT8_MAX))
    q = np.clip(np.rint(values / scale) + zero, np.float32(0), _UINT8_MAX)
    return Quantized(q - zero, np.float32(scale))


def exact_product(a: F32, b: F32) -> F32:
    """Product of two matrices of small integers held in float32, exact before its final rounding to float32."""
    inner = a.shape[1]
    if inner <= EXACT_BLOCK:
        return a @ b
    total = np.zeros((a.shape[0], b.shape[1]), np.int64)
    for start in range(0, inner, EXACT_BLOCK):
        total += (a[:, start : start + EXACT_BLOCK] @ b[start : start + EXACT_BLOCK]).astype(np.int64)
    return total.astype(np.float32)


def rounded_weight(state: npt.NDArray[np.int16]) -> F32:
    """What the int8 forward pass multiplies with: the high byte, rounded to nearest, halves to even."""
    rounded: F32 = np.clip(np.rint(state.astype(np.float32) / _STATES_PER_STEP), _INT8_MIN, _INT8_MAX)
    return rounded


@dataclass(slots=True)
class _Pass:
    """One forward pass and what its reverse needs."""

    network: Network
    states: Mapping[str, npt.NDArray[Any]]
    scales: Mapping[str, F32]
    values: dict[str, F32]
    saved: dict[str, Any] = field(default_factory=dict)
    """By output: the columns of a convolution, the winners of a pooling, the quantized input."""
    gradients: dict[str, F32] = field(default_factory=dict)
    """By tensor: dL/d(state) for a float32 state, dL/dW for a Q8.8 state."""

    def forward(self, node: Node) -> F32:
        x = self.values[node.inputs[0]]
        match node.op:
            case Op.GEMM:
                return self._gemm(node, x)
            case Op.CONV:
                return self._conv(node, x)
            case Op.RELU:
                return np.maximum(x, np.float32(0))
            case Op.MAX_POOL:
                return self._max_pool(node, x)
            case Op.FLATTEN:
                return x.reshape(len(x), -1)
            case Op.SOFTMAX_CROSS_ENTROPY:
                raise AssertionError("the loss is computed by the caller")

    def backward(self, node: Node, dy: F32, *, needs_input: bool) -> F32 | None:
        x = self.values[node.inputs[0]]
        match node.op:
            case Op.GEMM:
                return self._gemm_reverse(node, x, dy, needs_input=needs_input)
            case Op.CONV:
                return self._conv_reverse(node, x, dy, needs_input=needs_input)
            case Op.RELU:
                return dy * (self.values[node.output] > 0)
            case Op.MAX_POOL:
                return self._max_pool_reverse(node, x, dy)
            case Op.FLATTEN:
                return dy.reshape(x.shape)
            case Op.SOFTMAX_CROSS_ENTROPY:
                raise AssertionError("the loss is computed by the caller")

    def _gemm(self, node: Node, x: F32) -> F32:
        _, weight, bias = node.inputs
        y: F32
        if weight not in self.scales:
            y = x @ self.states[weight] + self.states[bias]
            return y
        quantized = self.saved[node.output] = quantize_dynamic(x)
        product = exact_product(quantized.centred, rounded_weight(self.states[weight]))
        y = product * (quantized.scale * self.scales[weight]) + self.states[bias]
        return y

    def _gemm_reverse(self, node: Node, x: F32, dy: F32, *, needs_input: bool) -> F32 | None:
        _, weight, bias = node.inputs
        self.gradients[bias] = dy.sum(axis=0)
        if weight not in self.scales:
            self.gradients[weight] = x.T @ dy
            return dy @ self.states[weight].T if needs_input else None
        forward, gradient = self.saved[node.output], quantize_dynamic(dy)
        product = exact_product(forward.centred.T, gradient.centred)
        self.gradients[weight] = product * (forward.scale * gradient.scale)
        if not needs_input:
            return None
        scaled = quantize_dynamic(dy * self.scales[weight])
        return exact_product(scaled.centred, rounded_weight(self.states[weight]).T) * scaled.scale

    def _conv(self, node: Node, x: F32) -> F32:
        _, weight, bias = node.inputs
        if weight in self.scales:
            quantized = self.saved[f"{node.output}.x"] = quantize_dynamic(x)
            kernel = rounded_weight(self.states[weight])
            factor = quantized.scale * self.scales[weight]
            x = quantized.centred
        else:
            kernel, factor = self.states[weight], None
        columns = self.saved[node.output] = _columns(node, x)
        flat = kernel.reshape(len(kernel), -1)
        product = exact_product(columns, flat.T) if factor is not None else columns @ flat.T
        y = (product if factor is None else product * factor) + self.states[bias]
        spatial = _output_sizes(node, x.shape)
        return np.ascontiguousarray(np.moveaxis(y.reshape(len(x), *spatial, len(kernel)), -1, 1))

    def _conv_reverse(self, node: Node, x: F32, dy: F32, *, needs_input: bool) -> F32 | None:
        _, weight, bias = node.inputs
        state, columns = self.states[weight], self.saved[node.output]
        rows = np.moveaxis(dy, 1, -1).reshape(-1, len(state))
        self.gradients[bias] = rows.sum(axis=0)
        gradient = (rows.T @ columns).reshape(state.shape)
        if weight in self.scales:
            self.gradients[weight] = gradient * self.saved[f"{node.output}.x"].scale
            rows, kernel = rows * self.scales[weight], rounded_weight(state)
        else:
            self.gradients[weight] = gradient
            kernel = state
        return _scatter(node, rows @ kernel.reshape(len(kernel), -1), x.shape) if needs_input else None

    def _max_pool(self, node: Node, x: F32) -> F32:
        windows = _windows(node, x)
        flat = windows.reshape(*windows.shape[:-2], -1)
        winners = self.saved[node.output] = flat.argmax(axis=-1)
        y = np.take_along_axis(flat, winners[..., np.newaxis], axis=-1)[..., 0]
        return y.reshape(*x.shape[:2], *_output_sizes(node, x.shape))

    def _max_pool_reverse(self, node: Node, x: F32, dy: F32) -> F32:
        winners = self.saved[node.output]
        flat = np.zeros((*winners.shape, int(np.prod(node.kernel))), np.float32)
        np.put_along_axis(flat, winners[..., np.newaxis], dy.reshape(winners.shape)[..., np.newaxis], axis=-1)
        dx = np.zeros(x.shape, np.float32)
        windows = _windows(node, dx, writeable=True)
        windows[...] = flat.reshape(windows.shape)  # windows do not overlap
        return dx


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
    ) -> tuple[dict[str, npt.NDArray[Any]], float]:
        """See ``Backend.step``."""
        run, logits = self._forward(batch.x, states, scales)
        share = batch.weight / np.maximum(batch.weight.sum(), np.float32(1))
        log_p = _log_softmax(logits)
        rows = np.arange(len(batch.y))
        loss = -float((log_p[rows, batch.y] * share).sum())
        dz = np.exp(log_p)
        dz[rows, batch.y] -= np.float32(1)
        self._reverse(run, dz * share[:, np.newaxis])
        rate = np.float32(lr)
        updated = {name: self._descend(name, state, run, rate) for name, state in states.items()}
        return updated, loss

    def logits(self, x: F32, params: Mapping[str, F32]) -> F32:
        """See ``Backend.logits``."""
        return self._forward(x, params, {})[1]

    def release(self) -> None:
        """See ``Backend.release``; nothing is held between calls."""

    def _forward(self, x: F32, states: Mapping[str, npt.NDArray[Any]], scales: Mapping[str, F32]) -> tuple[_Pass, F32]:
        network = self._artifact.network
        run = _Pass(network=network, states=states, scales=scales, values={INPUT: x})
        for node in network.nodes[:-1]:
            run.values[node.output] = run.forward(node)
        return run, run.values[network.logits]

    def _reverse(self, run: _Pass, dz: F32) -> None:
        nodes = run.network.nodes[:-1]
        trainable: set[str] = set()
        for node in nodes:
            if node.inputs[0] in trainable or len(node.inputs) > 1:
                trainable.add(node.output)
        upstream = {run.network.logits: dz}
        for node in reversed(nodes):
            value = node.inputs[0]
            needs_input = value in trainable
            if node.output not in upstream or not (needs_input or len(node.inputs) > 1):
                continue
            dx = run.backward(node, upstream.pop(node.output), needs_input=needs_input)
            if dx is not None and needs_input:
                upstream[value] = upstream[value] + dx if value in upstream else dx

    def _descend(self, name: str, state: npt.NDArray[Any], run: _Pass, rate: np.float32) -> npt.NDArray[Any]:
        gradient = run.gradients[name]
        if name not in run.scales:
            return cast("npt.NDArray[Any]", state - rate * gradient)
        spec = next(spec for spec in run.network.tensors if spec.name == name)
        shape = [1] * len(spec.shape)
        shape[spec.channel_axis] = -1
        step = rate * _STATES_PER_STEP / run.scales[name].reshape(shape) * gradient
        return np.clip(np.rint(state.astype(np.float32) - step), _INT16_MIN, _INT16_MAX).astype(np.int16)


def _log_softmax(logits: F32) -> F32:
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_p: F32 = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return log_p


def _two_axes(node: Node) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """Kernel, stride and padding of a window over (height, width); a series has height 1."""
    if len(node.kernel) == 1:
        return (1, node.kernel[0]), (1, node.stride[0]), (0, node.padding[0])
    return (
        (node.kernel[0], node.kernel[1]),
        (node.stride[0], node.stride[1]),
        (node.padding[0], node.padding[1]),
    )


def _image(x: F32) -> F32:
    """(n, c, h, w), also for a series."""
    return x if x.ndim == _IMAGE_RANK else x[:, :, np.newaxis, :]


def _output_sizes(node: Node, shape: tuple[int, ...]) -> tuple[int, ...]:
    windows = zip(shape[2:], node.kernel, node.stride, node.padding, strict=True)
    return tuple((size + 2 * pad - kernel) // stride + 1 for size, kernel, stride, pad in windows)


def _windows(node: Node, x: F32, *, writeable: bool = False) -> F32:
    """View of every window: (n, c, out_h, out_w, kernel_h, kernel_w); a copy of x where padding is needed."""
    (kh, kw), (sh, sw), (ph, pw) = _two_axes(node)
    image = _image(x)
    if ph or pw:
        image = np.pad(image, ((0, 0), (0, 0), (ph, ph), (pw, pw)))
    windows = np.lib.stride_tricks.sliding_window_view(image, (kh, kw), axis=(2, 3), writeable=writeable)
    return windows[:, :, ::sh, ::sw]


def _columns(node: Node, x: F32) -> F32:
    """One row per output position (n, out_h, out_w), one column per weight of a channel (c, kernel_h, kernel_w)."""
    windows = _windows(node, x).transpose(0, 2, 3, 1, 4, 5)
    return windows.reshape(-1, windows.shape[3] * windows.shape[4] * windows.shape[5])


def _scatter(node: Node, columns: F32, shape: tuple[int, ...]) -> F32:
    """Adjoint of ``_columns``: add every column back to where it came from."""
    (kh, kw), (sh, sw), (ph, pw) = _two_axes(node)
    n, channels, height, width = shape if len(shape) == _IMAGE_RANK else (*shape[:2], 1, shape[2])
    out_h, out_w = (height + 2 * ph - kh) // sh + 1, (width + 2 * pw - kw) // sw + 1
    blocks = columns.reshape(n, out_h, out_w, channels, kh, kw).transpose(4, 5, 0, 3, 1, 2)
    padded = np.zeros((n, channels, height + 2 * ph, width + 2 * pw), np.float32)
    for row in range(kh):
        for column in range(kw):
            padded[:, :, row : row + sh * out_h : sh, column : column + sw * out_w : sw] += blocks[row, column]
    return padded[:, :, ph : ph + height, pw : pw + width].reshape(shape)
