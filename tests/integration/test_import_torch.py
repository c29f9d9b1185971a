"""Networks exported by torch: the imported network computes what the exported file computes, and learns."""

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from coordinator.authoring.builder import build_artifact
from coordinator.authoring.trainable import with_trainable
from coordinator.onnx_files import import_file
from edge_sdk.training.network import Op, Scheme
from edge_sdk.training.onnx_backend import OnnxBackend
from edge_sdk.training.quantize import dequantize, to_params

pytestmark = pytest.mark.torch


def export(
    module: Any, shape: tuple[int, ...], path: Path, *, is_dynamic: bool = True, is_training: bool = False
) -> None:
    import torch

    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            (torch.zeros(1, *shape),),
            buffer,
            dynamo=False,
            opset_version=17,
            input_names=["input"],
            output_names=["output"],
            dynamic_axes={"input": {0: "batch"}, "output": {0: "batch"}} if is_dynamic else None,
            training=torch.onnx.TrainingMode.PRESERVE if is_training else torch.onnx.TrainingMode.EVAL,
            do_constant_folding=not is_training,
        )
    path.write_bytes(buffer.getvalue())


def randomized(module: Any) -> Any:
    """Normalizations with statistics that are not 0 and 1."""
    import torch

    generator = torch.Generator().manual_seed(5)
    for layer in module.modules():
        if isinstance(layer, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d):
            for tensor, low in ((layer.running_mean, -0.5), (layer.running_var, 0.5), (layer.weight.data, 0.5)):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + low)
    return module.eval()


def classifier() -> tuple[Any, tuple[int, ...]]:
    from torch import nn

    body = nn.Sequential(
        nn.Conv2d(1, 6, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU6(),
        nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False),
        nn.BatchNorm2d(6),
        nn.Hardswish(),
        nn.AvgPool2d(3, stride=2, padding=1),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(6 * 4 * 4, 12),
        nn.LeakyReLU(0.1),
        nn.Linear(12, 3),
        nn.Softmax(dim=1),
    )
    return randomized(body), (1, 16, 16)


def residual() -> tuple[Any, tuple[int, ...]]:
    import torch
    from torch import nn

    class Block(nn.Module):  # type: ignore[misc]
        """Inverted residual with squeeze and excitation, then features joined and flattened by shape arithmetic."""

        def __init__(self) -> None:
            super().__init__()
            self.expand = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.SiLU())
            self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 8, 1), nn.Hardsigmoid())
            self.project = nn.Conv2d(8, 3, 3, padding=2, dilation=2)
            self.norm = nn.BatchNorm2d(3)
            self.head = nn.Linear(6, 4)

        def forward(self, x: Any) -> Any:
            wide = self.expand(x)
            y = self.norm(x + self.project(wide * self.gate(wide)))
            joined = torch.cat([y, torch.tanh(y)], dim=1).mean(dim=(2, 3))
            return self.head(joined.view(joined.size(0), -1))

    return randomized(Block()), (3, 8, 8)


def series() -> tuple[Any, tuple[int, ...]]:
    from torch import nn

    body = nn.Sequential(
        nn.Conv1d(2, 4, 5, stride=2, dilation=2, padding=3),
        nn.BatchNorm1d(4),
        nn.Sigmoid(),
        nn.MaxPool1d(2),
        nn.Flatten(),
        nn.Linear(4 * 7, 3),
        nn.BatchNorm1d(3),
    )
    return randomized(body), (2, 32)


@pytest.mark.parametrize("make", [classifier, residual, series], ids=lambda make: make.__name__)
@pytest.mark.parametrize("is_dynamic", [True, False], ids=["dynamic", "fixed"])
def test_imported_network_computes_what_the_file_computes(make: Any, tmp_path: Path, *, is_dynamic: bool) -> None:
    module, shape = make()
    path = tmp_path / "model.onnx"
    export(module, shape, path, is_dynamic=is_dynamic)
    imported = import_file(path, loss="ce")
    artifact = build_artifact("imported", with_trainable(imported, "all"), batch=2, scheme=Scheme.FP32)
    x = np.random.default_rng(0).normal(size=(1, *shape)).astype(np.float32)
    original = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    expected = original.run(None, {"input": x})[0]
    params = dequantize(to_params(artifact.network.tensors, imported.arrays))
    found = OnnxBackend(artifact).logits(x, params)
    if imported.notes:  # the softmax is part of the loss
        found = np.exp(found) / np.exp(found).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-6)


def test_normalization_goes_into_the_layers_before(tmp_path: Path) -> None:
    module, shape = classifier()
    export(module.train(), shape, tmp_path / "train.onnx", is_training=True)
    with pytest.raises(Exception, match=r"BatchNormalization\): is in training mode"):
        import_file(tmp_path / "train.onnx", loss="ce")
    export(module.eval(), shape, tmp_path / "eval.onnx", is_training=True)
    network = import_file(tmp_path / "eval.onnx", loss="ce").network
    assert [node.op for node in network.nodes].count(Op.AFFINE) == 0
    assert len(network.tensors) == 8


def test_reused_value_is_not_folded_away(tmp_path: Path) -> None:
    module, shape = residual()
    export(module, shape, tmp_path / "model.onnx")
    network = import_file(tmp_path / "model.onnx", loss="ce").network
    assert [node.op for node in network.nodes].count(Op.AFFINE) == 2  # the norm behind the sum, and the hard sigmoid
