"""``flchain model build --from-torch``: a person's own module becomes an artifact that computes what torch computes."""

from pathlib import Path

import numpy as np
import pytest

from coordinator.cli_model import main
from edge_sdk.errors import ConfigError, EdgeFLError, TrainingError
from edge_sdk.protocol import wire
from edge_sdk.protocol.messages import ModelParams
from edge_sdk.training.artifact import Artifact
from edge_sdk.training.backends import load_backend
from edge_sdk.training.quantize import dequantize

pytestmark = pytest.mark.torch

SOURCE = """
import torch
from torch import nn
from sizes import CLASSES

torch.manual_seed(3)

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.3))
        self.head = nn.Linear(4 * 3 * 3, CLASSES)

    def forward(self, x):
        return self.head(self.body(x).flatten(1))

ready = Net()

def pair():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 2)), 1

class Sorting(nn.Module):
    def forward(self, x):
        return x.flatten(1).sort(dim=1).values

class Broken(nn.Module):
    def __init__(self):
        raise ValueError("no weights at hand")
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "net.py").write_text(SOURCE)
    (tmp_path / "sizes.py").write_text("CLASSES = 3\n")
    return tmp_path / "net.py"


def build(source: Path, name: str, shape: str = "1,8,8", *options: str) -> Path:
    out = source.with_name("net.flm")
    key = source.with_name("author.key")
    arguments = ["--loss", "ce", "--state", "fp32", "--batch", "4", "--key", str(key), "-o", str(out)]
    assert main(["build", "--from-torch", f"{source}:{name}", "--input-shape", shape, *arguments, *options]) == 0
    return out


@pytest.mark.parametrize("name", ["Net", "ready"])
def test_artifact_computes_what_the_module_computes(source: Path, name: str) -> None:
    import torch

    out = build(source, name)
    scope: dict[str, object] = {"__name__": "net"}
    exec(SOURCE.replace("from sizes import CLASSES", "CLASSES = 3"), scope)
    module = scope["ready"]
    assert isinstance(module, torch.nn.Module)
    if name == "Net":  # made after the one that is ready
        module = scope["Net"]()  # type: ignore[operator]
    x = np.random.default_rng(0).normal(size=(5, 1, 8, 8)).astype(np.float32)
    expected = module.eval()(torch.tensor(x)).detach().numpy()
    params = dequantize(wire.from_bytes(ModelParams, out.with_suffix(".model.cbor").read_bytes()))
    found = load_backend("numpy", Artifact.load(out.read_bytes())).logits(x, params)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize(
    ("name", "shape", "error", "message"),
    [
        ("Missing", "1,8,8", ConfigError, "defines no Missing"),
        ("Broken", "1,8,8", ConfigError, r"Broken\(\) fails: ValueError: no weights at hand"),
        ("pair", "1,8,8", ConfigError, "is no torch.nn.Module"),
        ("Net", "2,8,8", TrainingError, r"input of shape \(2, 8, 8\)"),
        ("Sorting", "1,8,8", TrainingError, r"node .*TopK.* is not supported"),
    ],
)
def test_what_cannot_be_built_is_named(
    source: Path, name: str, shape: str, error: type[EdgeFLError], message: str
) -> None:
    with pytest.raises(error, match=message):
        build(source, name, shape)
    assert not source.with_name("net.flm").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--from-torch", "net.onnx:Net", "--input-shape", "1,8,8"], "expected FILE.py:NAME"),
        (["--from-torch", "absent.py:Net", "--input-shape", "1,8,8"], "absent.py does not exist"),
        (["--from-torch", "net.py:Net"], "needs --input-shape"),
        (["model.onnx", "--input-shape", "1,8,8"], "an ONNX model says its own"),
    ],
)
def test_wrong_options_are_named(
    source: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], message: str
) -> None:
    monkeypatch.chdir(source.parent)
    with pytest.raises(ConfigError, match=message):
        main(["build", *options, "--loss", "ce", "-o", "net.flm"])


def test_a_file_that_fails_is_named(source: Path) -> None:
    source.write_text("import nothing_of_this_name\n")
    with pytest.raises(ConfigError, match="fails: ModuleNotFoundError"):
        build(source, "Net")
