"""Models from Keras and scikit-learn: exported where tensorflow is, built into artifacts here, one for LiteRT."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coordinator.cli_model import main
from edge_sdk.protocol import wire
from edge_sdk.protocol.messages import ModelParams
from edge_sdk.training.artifact import Artifact
from edge_sdk.training.backends import load_backend
from edge_sdk.training.dataset import ArrayDataset
from edge_sdk.training.operators import Op
from edge_sdk.training.quantize import dequantize
from edge_sdk.training.trainer import Trainer
from tests.support.other_environments import LITERT, TFLITE, require_environment, run_python

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
LOSSES = {
    "keras_mlp": "mse",
    "keras_image": "ce",
    "keras_series": "bce",
    "sklearn_logistic": "ce",
    "sklearn_linear": "mse",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require_environment(LITERT, "tensorflow")
    folder = tmp_path_factory.mktemp("exported")
    run_python(LITERT, "-m", "tests.support.export_models", folder)
    return folder


def options(folder: Path, name: str) -> list[str]:
    key, out = folder / "author.key", folder / f"{name}.flm"
    return ["--loss", LOSSES[name], "--state", "fp32", "--batch", "4", "--key", str(key), "-o", str(out)]


def as_printed(loss: Op, logits: Any) -> Any:
    """What the exported model gives: the end that belongs to the loss is left out of the network."""
    match loss:
        case Op.SOFTMAX_CROSS_ENTROPY:
            return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        case Op.BINARY_CROSS_ENTROPY:
            return 1 / (1 + np.exp(-logits))
        case _:
            return logits


@pytest.mark.parametrize("name", LOSSES)
def test_an_exported_model_computes_the_same_and_learns(folder: Path, name: str) -> None:
    assert main(["build", str(folder / f"{name}.onnx"), *options(folder, name)]) == 0
    artifact = Artifact.load((folder / f"{name}.flm").read_bytes())
    params = wire.from_bytes(ModelParams, (folder / f"{name}.model.cbor").read_bytes())
    with np.load(folder / f"{name}.npz") as file:
        x, expected = file["x"], file["y"]
    logits = load_backend("onnxruntime", artifact).logits(x, dequantize(params))
    np.testing.assert_allclose(as_printed(artifact.network.loss, logits), expected, rtol=1e-4, atol=1e-5)
    network = artifact.network
    y = expected.argmax(axis=1)[::-1] if network.is_classifier else np.round(1 - expected)
    data = ArrayDataset(
        x, y, input_shape=network.input_shape, class_count=network.class_count, has_labels=network.is_classifier
    )
    trainer = Trainer(artifact)
    trainer.load(params)
    report = trainer.train(data, steps=30, lr=0.05, rng=np.random.default_rng(0))
    assert report.loss_mean < report.loss_first


def test_an_exported_model_trains_on_litert(folder: Path) -> None:
    """The whole way: Keras, tf2onnx, ``model build --target litert``, ``bench train`` on a board's runtime."""
    require_environment(TFLITE, "tflite_runtime")
    name = "keras_image"
    command = ["-m", "edge_sdk.entry"]
    build: list[str | Path] = ["model", "build", folder / f"{name}.onnx", "--target", "litert", *options(folder, name)]
    assert "flatbuffer for LiteRT" in run_python(LITERT, *command, *build)
    report = folder / "rows.json"
    bench: list[str | Path] = [
        "bench",
        "train",
        "--models",
        folder / f"{name}.flm",
        "--rounds",
        "2",
        "--report",
        report,
    ]
    run_python(TFLITE, *command, *bench)
    rows = {row["backend"]: row for row in json.loads(report.read_text())}
    assert rows.keys() == {"litert", "numpy"}  # neither onnxruntime nor torch is there
    assert rows["litert"]["loss_after"] == pytest.approx(rows["numpy"]["loss_after"], abs=1e-4)
