"""What training one tensor alone would gain, measured on calibration data.

Source of the idea: contribution analysis of Lin et al. 2022, "On-Device Training Under 256KB Memory" (arXiv:2206.15472,
section 3.2), which trains each layer alone and compares accuracies. Here each tensor alone takes one step along its
gradient over the whole calibration set, at several rates, and the largest decrease of the loss counts: one backward
pass for all tensors, then forward passes only. Tensors with gradients of very different size are comparable, since
each may choose its rate.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from coordinator.authoring.builder import build_artifact
from edge_sdk.errors import TrainingError
from edge_sdk.training.backend import Batch
from edge_sdk.training.dataset import ArrayDataset
from edge_sdk.training.network import Op, Scheme, infer_shapes
from edge_sdk.training.onnx_backend import OnnxBackend
from edge_sdk.training.trainer import Trainer

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    from edge_sdk.training.network import Network

    F32 = npt.NDArray[np.float32]

EXAMPLES_MAX: Final = 128
"""Examples that are looked at; more make the ranking steadier and the wait longer."""
_RATES: Final = (0.01, 0.1, 1.0)
_BATCH: Final = 32


def contributions(network: Network, arrays: Mapping[str, F32], data: ArrayDataset) -> dict[str, float]:
    """By trainable tensor: how far the loss falls when it alone takes a step; 0 where it does not fall.

    Args:
        network: Its trainable tensors are the candidates.
        arrays: Where training starts, by tensor name.
        data: Calibration examples; the first ``EXAMPLES_MAX`` are used.

    Raises:
        TrainingError: the loss on these data is not finite.
    """
    rows = slice(0, EXAMPLES_MAX)
    x, y = data.features(rows), data.y[rows]
    artifact = build_artifact("contribution", network, batch=min(_BATCH, len(y)), scheme=Scheme.FP32)
    trainer = Trainer(artifact)
    before = trainer.evaluate(arrays, x, y).loss_mean
    if not np.isfinite(before):
        raise TrainingError(f"calibration: the loss before any step is {before}")
    found: dict[str, float] = {}
    for name, gradient in _gradients(network, arrays, x, y).items():
        losses = [trainer.evaluate({**arrays, name: arrays[name] - rate * gradient}, x, y).loss_mean for rate in _RATES]
        found[name] = max(0.0, before - min(losses))
    return found


def _gradients(network: Network, arrays: Mapping[str, F32], x: F32, y: npt.NDArray[Any]) -> dict[str, F32]:
    """Mean gradient of each trainable tensor over the examples: what a step of rate 1 takes away."""
    batch = min(_BATCH, len(y))
    backend = OnnxBackend(build_artifact("gradient", network, batch=batch, scheme=Scheme.FP32))
    shapes = infer_shapes(network, batch=batch)
    masks = {node.output: np.ones(shapes[node.output], np.float32) for node in network.nodes if node.op is Op.DROPOUT}
    names = [spec.name for spec in network.tensors if spec.is_trainable]
    sums: dict[str, Any] = {name: np.zeros(arrays[name].shape, np.float64) for name in names}
    for start in range(0, len(y), batch):
        part = slice(start, start + batch)
        filled = _filled(x[part], y[part], batch)
        moved, _ = backend.step(filled, 1.0, arrays, {}, masks)
        for name in names:
            sums[name] += (arrays[name] - moved[name]) * float(filled.weight.sum())
    return {name: (total / len(y)).astype(np.float32) for name, total in sums.items()}


def _filled(x: F32, y: npt.NDArray[Any], batch: int) -> Batch:
    """A batch of fixed size; what is missing has weight 0."""
    missing = batch - len(y)
    weight = np.concatenate([np.ones(len(y), np.float32), np.zeros(missing, np.float32)])
    widths = ((0, missing), *((0, 0) for _ in x.shape[1:]))
    return Batch(np.pad(x, widths), np.pad(y, ((0, missing), *((0, 0) for _ in y.shape[1:]))), weight)


def with_trained(network: Network, names: frozenset[str]) -> Network:
    """The network with exactly these tensors trainable."""
    return replace(network, tensors=tuple(replace(spec, is_trainable=spec.name in names) for spec in network.tensors))
