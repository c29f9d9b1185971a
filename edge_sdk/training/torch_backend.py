"""Runs an artifact's network with torch autograd: the reference of the other backends, and the one with a GPU.

Reads the network of the manifest, not the graphs. The int8 products are those of this package's README, computed on
integers in float64, which is exact; their gradients stand in ``torch_quantized``. The update is numpy's: states live
in the trainer, and travel to the GPU and back in each step, where there is one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional

from edge_sdk.errors import ConfigError
from edge_sdk.training.backend import NO_MASKS, NO_NOISE
from edge_sdk.training.grids import NO_GRIDS, Grid, Grids
from edge_sdk.training.network import INPUT, Scheme
from edge_sdk.training.numpy_backend import NumpyBackend
from edge_sdk.training.numpy_update import updated_states
from edge_sdk.training.numpy_windows import average_divisors
from edge_sdk.training.operators import Node, Op
from edge_sdk.training.quantize import STATES_PER_STEP
from edge_sdk.training.torch_quantized import QuantizedConv, QuantizedGemm

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    from edge_sdk.training.artifact import Artifact
    from edge_sdk.training.backend import Batch

    F32 = npt.NDArray[np.float32]

_INT8_MIN, _INT8_MAX = -128, 127
_SERIES_RANK = 3
RUNTIME = f"torch {torch.__version__}"


def check_device(device: str) -> None:
    """Look for a device.

    Raises:
        ConfigError: there is none.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("backend torch:cuda: torch finds no GPU here; expected torch, which is torch:cpu")


class TorchBackend:
    """``Backend`` over torch, on one thread of the processor or on a GPU."""

    def __init__(self, artifact: Artifact, *, device: str = "cpu") -> None:
        """Choose the device.

        Args:
            artifact: Artifact.
            device: ``cpu`` or ``cuda``.

        Raises:
            ConfigError: there is no such device.
        """
        check_device(device)
        self._device = torch.device(device)
        self._artifact = artifact
        torch.set_num_threads(1)

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
        specs = self._artifact.network.tensors
        params = {spec.name: self._parameter(spec.name, states[spec.name]) for spec in specs}
        trained = [spec.name for spec in specs if spec.is_trainable]
        for name in trained:
            params[name].requires_grad_()
        run = _Pass(params, self._on_device(scales), self._on_device(masks), self._artifact.grids)
        logits = self._forward(run, self._tensor(batch.x))
        # A full batch takes torch's own mean: the general one costs an eighth of a small network's step.
        weight = None if batch.weight.all() else self._tensor(batch.weight)
        loss = _loss(self._artifact.network.nodes[-1], logits, self._tensor(batch.y), weight)
        found = torch.autograd.grad(loss, [params[name] for name in trained])
        gradients = {name: gradient.cpu().numpy() for name, gradient in zip(trained, found, strict=True)}
        return updated_states(self._artifact, gradients, lr, states, scales, noise), float(loss.detach())

    def logits(self, x: F32, params: Mapping[str, F32]) -> F32:
        """See ``Backend.logits``."""
        with torch.no_grad():
            run = _Pass(self._on_device(params), {}, {})
            logits: F32 = self._forward(run, self._tensor(x)).cpu().numpy()
        return logits

    def int8_logits(self, x: F32, states: Mapping[str, npt.NDArray[Any]], scales: Mapping[str, F32]) -> F32:
        """See ``Backend.int8_logits``; numpy's, since torch has no such kernels of its own to add."""
        return NumpyBackend(self._artifact).int8_logits(x, states, scales)

    def release(self) -> None:
        """See ``Backend.release``."""
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _forward(self, run: _Pass, x: Any) -> Any:
        network = self._artifact.network
        values = {INPUT: x}
        for node in network.nodes[:-1]:
            values[node.output] = run.forward(node, [values[name] for name in node.values])
        return values[network.logits]

    def _parameter(self, name: str, state: npt.NDArray[Any]) -> Any:
        """What the forward pass multiplies with: a float32 state, or the int8 weight as float32."""
        scheme = self._artifact.scheme
        if state.dtype == np.float32:
            return self._tensor(state)
        if scheme is Scheme.FP32:
            raise TypeError(f"state of {name} is {state.dtype}")
        rounded = np.rint(state.astype(np.float32) / np.float32(STATES_PER_STEP[scheme]))
        return self._tensor(np.clip(rounded, _INT8_MIN, _INT8_MAX))

    def _on_device(self, arrays: Mapping[str, F32]) -> dict[str, Any]:
        return {name: self._tensor(array) for name, array in arrays.items()}

    def _tensor(self, array: npt.NDArray[Any]) -> Any:
        """Shares the array's memory on the CPU; read-only arrays are copied, as torch knows none."""
        return torch.from_numpy(array if array.flags.writeable else array.copy()).to(self._device)


class _Pass:
    """One forward pass: parameters, scales, masks and calibrated grids by name."""

    def __init__(
        self, params: Mapping[str, Any], scales: Mapping[str, Any], masks: Mapping[str, Any], grids: Grids = NO_GRIDS
    ) -> None:
        self.params = params
        self.scales = scales
        self.masks = masks
        self.grids = grids

    def forward(self, node: Node, inputs: list[Any]) -> Any:
        """The node's output."""
        x = inputs[0]
        match node.op:
            case Op.GEMM:
                return self._gemm(node, x)
            case Op.CONV:
                return self._conv(node, x)
            case Op.AFFINE:
                scale, shift = (_per_channel(self.params[name], x) for name in node.tensors)
                return x * scale + shift
            case Op.DROPOUT:
                return x * self.masks[node.output] if node.output in self.masks else x
            case Op.MAX_POOL | Op.AVERAGE_POOL | Op.GLOBAL_AVERAGE_POOL:
                return _pool(node, x)
            case Op.ADD | Op.MUL | Op.CONCAT | Op.RESHAPE | Op.FLATTEN | Op.TRANSPOSE:
                return _arranged(node, inputs)
            case _:
                return _activation(node, x)

    def _gemm(self, node: Node, x: Any) -> Any:
        weight, bias = (self.params[name] for name in node.tensors)
        scale = self.scales.get(node.tensors[0])
        if scale is None:
            return torch.addmm(bias, x, weight)
        return QuantizedGemm.apply(*self._bounded(node, x, weight, scale)) + bias

    def _conv(self, node: Node, x: Any) -> Any:
        weight, bias = (self.params[name] for name in node.tensors)
        scale = self.scales.get(node.tensors[0])
        padding, x = _padding(node, x)
        settings = (list(node.stride), padding, list(node.dilations), node.groups)
        if scale is not None:
            return _per_channel(bias, x) + QuantizedConv.apply(*self._bounded(node, x, weight, scale), settings)
        convolve = functional.conv1d if x.ndim == _SERIES_RANK else functional.conv2d
        return convolve(x, weight, bias, *settings)

    def _bounded(self, node: Node, x: Any, weight: Any, scale: Any) -> tuple[Any, Any, Any, Grid | None]:
        """With a calibrated grid, no gradient flows to what lies outside of it."""
        grid = self.grids.get(node.values[0])
        return (x if grid is None else x.clamp(*grid.bounds)), weight, scale, grid


def _arranged(node: Node, inputs: list[Any]) -> Any:
    """Values combined, or in another arrangement."""
    x = inputs[0]
    match node.op:
        case Op.ADD:
            return x + inputs[1]
        case Op.MUL:
            return x * inputs[1]
        case Op.CONCAT:
            return torch.cat(inputs, dim=node.axes[0])
        case Op.RESHAPE:
            return x.reshape(len(x), *node.shape)
        case Op.TRANSPOSE:
            return x.permute(0, *node.axes)
        case _:
            return x.flatten(1)


def _activation(node: Node, x: Any) -> Any:
    """Activations; where the slope jumps, it is that of the graphs."""
    match node.op:
        case Op.RELU:
            return functional.relu(x)
        case Op.CLIP:
            low, high = node.constants
            return functional.hardtanh(x, low, high)
        case Op.LEAKY_RELU:
            return torch.where(x >= 0, x, x * node.constants[0])
        case Op.SIGMOID:
            return torch.sigmoid(x)
        case Op.TANH:
            return torch.tanh(x)
        case Op.HARD_SWISH:
            return functional.hardswish(x)
        case _:
            raise AssertionError("the loss is computed by the caller")


def _pool(node: Node, x: Any) -> Any:
    is_series = x.ndim == _SERIES_RANK
    match node.op:
        case Op.MAX_POOL:
            return (functional.max_pool1d if is_series else functional.max_pool2d)(x, node.kernel)
        case Op.AVERAGE_POOL:
            padding, padded = _padding(node, x)
            pool = functional.avg_pool1d if is_series else functional.avg_pool2d
            means = pool(padded, node.kernel, node.stride, padding)  # divided by the whole window
            share = average_divisors(node, tuple(x.shape)) / np.float32(np.prod(node.kernel))
            return means / torch.from_numpy(share).to(x.device)
        case _:
            return x.mean(dim=tuple(range(2, x.ndim)), keepdim=True)


def _padding(node: Node, x: Any) -> tuple[list[int], Any]:
    """Padding for torch's own argument; what that cannot say (uneven, or of a pooling) is put around x beforehand."""
    begin, end = node.pads
    if begin == end and node.op is Op.CONV:
        return list(begin), x
    sides = [side for pair in zip(reversed(begin), reversed(end), strict=True) for side in pair]
    return [0] * len(begin), functional.pad(x, sides)


def _loss(node: Node, z: Any, y: Any, weight: Any | None) -> Any:
    """Mean loss over the examples that count; over all without weights."""
    reduction = "mean" if weight is None else "none"
    match node.op:
        case Op.MEAN_SQUARED_ERROR:
            each = functional.mse_loss(z, y, reduction=reduction)
        case Op.BINARY_CROSS_ENTROPY:
            each = functional.binary_cross_entropy_with_logits(z, y, reduction=reduction)
        case _:
            smoothing = node.constants[0] if node.constants else 0.0
            each = functional.cross_entropy(z, y, reduction=reduction, label_smoothing=smoothing)
    if weight is None:
        return each
    return (each.reshape(len(z), -1).mean(dim=1) * weight).sum() / torch.clamp(weight.sum(), min=1.0)


def _per_channel(vector: Any, x: Any) -> Any:
    """One value per channel, shaped to broadcast over x."""
    return vector.reshape(-1, *(1 for _ in x.shape[2:]))
