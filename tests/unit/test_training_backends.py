"""Choosing a backend: what is unknown, absent or without its device is refused by name."""

import sys
from typing import Any

import onnxruntime
import pytest

from coordinator.authoring.zoo import build
from edge_sdk.errors import ConfigError, TrainingError
from edge_sdk.training.backends import BACKEND_NAMES, describe_backend, load_backend
from edge_sdk.training.network import Scheme
from edge_sdk.training.onnx_backend import GPU_BYTES_MAX, OnnxBackend
from edge_sdk.training.trainer import Trainer

ARTIFACT, PARAMS = build("mlp", (4,), 2, batch=4, scheme=Scheme.FP32, seed=0)


@pytest.mark.parametrize("name", ["onnx", "numpy:cpu", "onnxruntime:gpu", "litert:cpu", "torch:cuda:1", ":", ""])
def test_unknown_name_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="expected one of onnxruntime, onnxruntime:cpu"):
        load_backend(name, ARTIFACT)


def test_names() -> None:
    assert {"onnxruntime", "onnxruntime:tensorrt", "numpy", "litert", "torch", "torch:cuda"} <= set(BACKEND_NAMES)
    assert isinstance(load_backend("onnxruntime:cpu", ARTIFACT), OnnxBackend)


def test_absent_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("edge_sdk.training.litert_backend", "ai_edge_litert", "tflite_runtime"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setitem(sys.modules, "ai_edge_litert", None)
    monkeypatch.setitem(sys.modules, "tflite_runtime", None)
    with pytest.raises(ConfigError, match=r"'litert' cannot be loaded: .*pip install 'edge-flchain\[litert\]'"):
        Trainer(ARTIFACT, backend="litert")


@pytest.mark.parametrize("device", ["cuda", "tensorrt"])
def test_absent_provider_is_refused(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(ConfigError, match=f"onnxruntime:{device}: this onnxruntime has CPUExecutionProvider and not"):
        load_backend(f"onnxruntime:{device}", ARTIFACT)
    with pytest.raises(ConfigError, match="CUDAExecutionProvider"):
        describe_backend(f"onnxruntime:{device}")


def test_provider_that_does_not_start_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The runtime would go on with the CPU."""
    providers = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: providers)
    asked: list[object] = []
    real = onnxruntime.InferenceSession

    def start_on_cpu(graph: bytes, options: object, providers: list[object], **rest: object) -> object:
        asked.extend(providers)
        return real(graph, options, providers=["CPUExecutionProvider"], **rest)

    monkeypatch.setattr(onnxruntime, "InferenceSession", start_on_cpu)
    trainer = Trainer(ARTIFACT, backend="onnxruntime:tensorrt")
    with pytest.raises(ConfigError, match="only CPUExecutionProvider started"):
        trainer.evaluate(PARAMS, *_examples())
    assert [entry if isinstance(entry, str) else entry[0] for entry in asked] == providers  # type: ignore[index]
    assert asked[0][1] == {"trt_max_workspace_size": GPU_BYTES_MAX}  # type: ignore[index]


def test_runtimes_are_described() -> None:
    assert describe_backend("onnxruntime") == f"onnxruntime {onnxruntime.__version__}"
    assert describe_backend("numpy").startswith("numpy ")


@pytest.mark.torch
def test_absent_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="finds no GPU"):
        load_backend("torch:cuda", ARTIFACT)
    assert describe_backend("torch:cpu") == f"torch {torch.__version__}"


def test_artifact_without_flatbuffer_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """With any interpreter: it is not asked."""
    import types

    interpreter = types.ModuleType("ai_edge_litert.interpreter")
    interpreter.Interpreter = type("Interpreter", (), {"__module__": "ai_edge_litert.interpreter"})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ai_edge_litert", types.ModuleType("ai_edge_litert"))
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", interpreter)
    monkeypatch.delitem(sys.modules, "edge_sdk.training.litert_backend", raising=False)
    try:
        with pytest.raises(TrainingError, match="has no flatbuffer; build it with flchain model build --target litert"):
            load_backend("litert", ARTIFACT)
    finally:
        sys.modules.pop("edge_sdk.training.litert_backend", None)


def _examples() -> tuple[Any, Any]:
    import numpy as np

    return np.zeros((2, 4), np.float32), np.zeros(2, np.int64)
