"""From a forward ONNX model to a fleet that learns it: build, found, and the real demo."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits

from coordinator import cli
from coordinator.authoring import zoo
from coordinator.config import load_config
from coordinator.genesis_file import load_genesis
from coordinator.identity import load_identity
from coordinator.worker import Worker
from edge_sdk.errors import ConfigError
from edge_sdk.protocol.wire import to_bytes
from edge_sdk.training.artifact import Artifact
from tools.check_report import check_report

WIDTH, HIDDEN, CLASSES = 64, 32, 10
DEMO_TIMEOUT_S = 400


def write_onnx(path: Path) -> None:
    rng = np.random.default_rng(2)
    weights = {
        "hidden.weight": rng.normal(0, (2 / WIDTH) ** 0.5, (HIDDEN, WIDTH)),
        "hidden.bias": np.zeros(HIDDEN),
        "head.weight": rng.normal(0, (2 / HIDDEN) ** 0.5, (CLASSES, HIDDEN)),
        "head.bias": np.zeros(CLASSES),
    }
    nodes = [
        helper.make_node("Gemm", ["in", "hidden.weight", "hidden.bias"], ["h"], transB=1),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "head.weight", "head.bias"], ["out"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "forward",
        [helper.make_tensor_value_info("in", TensorProto.FLOAT, ["n", WIDTH])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["n", CLASSES])],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()],
    )
    path.write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]).SerializeToString())


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what a user has after ``flchain model build``, and the data as arrays."""
    folder = tmp_path_factory.mktemp("own")
    write_onnx(folder / "net.onnx")
    digits = load_digits()
    np.savez(folder / "mine.npz", x=(digits.data / 16).astype(np.float32), y=digits.target)
    np.savez(folder / "wide.npz", x=np.zeros((400, WIDTH + 1), np.float32), y=digits.target[:400])
    np.savez(folder / "more.npz", x=np.zeros((400, WIDTH), np.float32), y=digits.target[:400] + 1)
    for name in ("author", "other"):
        options = ["--loss", "ce", "--batch", "16", "--key", str(folder / f"{name}.pem")]
        built = ["model", "build", str(folder / "net.onnx"), *options, "-o", str(folder / f"{name}.flm")]
        assert cli.main(built) == 0
    return folder


def init(work: Path, root: Path, *options: str, model: str = "author.flm", data: str = "mine.npz") -> int:
    chosen = ["--model", str(work / model), "--dataset", "npz", "--data", str(work / data), "--miners", "m0,m1"]
    return cli.main(["miner", "init", str(root), *chosen, *options])


def test_a_fleet_is_founded_on_the_model_and_pins_its_author(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "fleet"
    assert init(work, root, "--author", str(work / "author.pub")) == 0
    artifact = Artifact.load((work / "author.flm").read_bytes())
    assert f"author.flm: signed by {artifact.authored_by}" in capsys.readouterr().out
    genesis = load_genesis(root / "genesis.cbor")
    assert genesis.artifact_author == artifact.author
    assert genesis.artifact_bytes == len(artifact.data)
    assert genesis.params.batch == 16
    config = load_config(root / "miners" / "m0" / "miner.toml")
    assert load_identity(config).artifact == artifact
    assert (root / "miners" / "m0" / "model.cbor").read_bytes() == (work / "author.model.cbor").read_bytes()

    config.artifact_file.write_bytes((work / "other.flm").read_bytes())
    with pytest.raises(ConfigError, match=rf"{config.artifact_file}: artifact digest"):
        load_identity(config)


@pytest.mark.parametrize(
    ("options", "model", "data", "message"),
    [
        (("--author", "author.pub"), "other.flm", "mine.npz", "other.flm: artifact is signed by"),
        (("--author", "author.pem"), "author.flm", "mine.npz", "author.pem: expected an author's public key"),
        ((), "author.flm", "wide.npz", "takes examples of 64, the data has 65"),
        ((), "author.flm", "more.npz", "has 10 classes, the data labels up to 10"),
        ((), "none.flm", "mine.npz", "none.flm: no such file"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_is_written(
    work: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    *,
    options: tuple[str, ...],
    model: str,
    data: str,
    message: str,
) -> None:
    resolved = [option if option.startswith("--") else str(work / option) for option in options]
    assert init(work, tmp_path / "fleet", *resolved, model=model, data=data) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "fleet").exists()


@pytest.fixture
def regression(tmp_path: Path) -> Path:
    """An artifact with two outputs and squared error, and data for it."""
    artifact, params = zoo.build("regressor", (5,), 2, batch=8, seed=0)
    (tmp_path / "net.flm").write_bytes(artifact.data)
    (tmp_path / "net.model.cbor").write_bytes(to_bytes(params))
    x = np.random.default_rng(0).normal(size=(600, 5))
    np.savez(tmp_path / "good.npz", x=x, y=np.stack([x.sum(1), x[:, 0]], 1))
    np.savez(tmp_path / "labels.npz", x=x, y=np.arange(600))
    np.savez(tmp_path / "one.npz", x=x, y=x.sum(1))
    np.savez(tmp_path / "nan.npz", x=np.where(x == x[7, 0], np.nan, x), y=np.stack([x.sum(1), x[:, 0]], 1))
    return tmp_path


def test_a_fleet_is_founded_on_a_network_without_classes(regression: Path, tmp_path: Path) -> None:
    root = tmp_path / "fleet"
    assert init(regression, root, model="net.flm", data="good.npz") == 0
    rows = []
    for miner in ("m0", "m1"):
        config = load_config(root / "miners" / miner / "miner.toml")
        Worker(load_identity(config).artifact, config.fold_file, backend="numpy")
        with np.load(config.fold_file) as fold:
            assert fold["y"].shape == (75, 2)
            np.testing.assert_allclose(fold["y"][:, 0], fold["x"].sum(1), atol=1e-5)
            rows.append({tuple(row) for row in fold["x"].tolist()})
    assert not rows[0] & rows[1], "an example is in two folds"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("labels.npz", "expected float targets"),
        ("one.npz", "has 2 outputs, the data has 1 targets"),
        ("nan.npz", "x[7] holds a value that is not finite"),
    ],
)
def test_targets_that_do_not_fit_are_named(
    regression: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], data: str, message: str
) -> None:
    assert init(regression, tmp_path / "fleet", model="net.flm", data=data) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "fleet").exists()


def test_an_author_needs_a_model_of_ones_own(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["miner", "init", str(tmp_path / "fleet"), "--author", str(work / "author.pub")]
    assert cli.main(arguments) == 2
    assert "expected NAME.flm" in capsys.readouterr().err


def demo(work: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edge_sdk.entry", "demo", "--quick", "--no-live", "--dataset", "npz", *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, cwd=work, env=environment, capture_output=True, text=True, timeout=DEMO_TIMEOUT_S, check=False
    )


def test_the_demo_refuses_data_of_another_shape(work: Path) -> None:
    done = demo(work, "--model", "author.flm", "--data", "wide.npz")
    assert done.returncode == 2
    assert "takes examples of 64, the data has 65" in done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--data", "labels.npz"), "expected float targets"),
        (("--data", "good.npz", "--personal", "search"), "judged by labels"),
        (("--data", "good.npz", "--byzantine", "labelflip:1"), "no labels to flip"),
    ],
)
def test_the_demo_refuses_what_needs_labels(regression: Path, options: tuple[str, ...], message: str) -> None:
    done = demo(regression, "--model", "net.flm", *options)
    assert done.returncode == 2
    assert message in done.stderr


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.timeout(DEMO_TIMEOUT_S + 60)
def test_the_demo_learns_targets(regression: Path, mosquitto_path: Path) -> None:
    report_file = regression / "report.json"
    fleet = ["--model", "net.flm", "--data", "good.npz", "--partition", "iid", "--byzantine", "none"]
    done = demo(regression, *fleet, "--rounds", "12", "--max-seconds", "300", "--report", str(report_file))
    assert done.returncode == 0, done.stdout[-3_000:] + done.stderr[-3_000:]
    report = json.loads(report_file.read_bytes())
    assert check_report(report) == []
    assert report["accuracy_final"] > max(0.0, report["accuracy_initial"])


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.timeout(DEMO_TIMEOUT_S + 60)
def test_the_demo_learns_the_model_and_keeps_personal_ones(work: Path, tmp_path: Path, mosquitto_path: Path) -> None:
    report_file, run = tmp_path / "report.json", tmp_path / "run"
    fleet = ["--model", "author.flm", "--data", "mine.npz", "--partition", "dirichlet:0.1", "--byzantine", "none"]
    until = ["--rounds", "15", "--max-seconds", "300", "--keep", str(run), "--report", str(report_file)]
    done = demo(work, *fleet, *until, "--personal", "search")
    assert done.returncode == 0, done.stdout[-3_000:] + done.stderr[-3_000:]
    report = json.loads(report_file.read_bytes())
    assert check_report(report) == []
    assert report["accuracy_final"] > report["accuracy_initial"] + 0.2
    personal = report["personal"]
    assert personal["accuracy_personal_mean"] > personal["accuracy_global_mean"]
    assert len(personal["devices"]) >= 4
    author = Artifact.load((work / "author.flm").read_bytes()).author
    assert load_genesis(run / "genesis.cbor").artifact_author == author


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.timeout(DEMO_TIMEOUT_S + 60)
@pytest.mark.parametrize(
    "options", [("--state", "int8-sr"), ("--optimizer", "momentum"), ("--state", "fp32", "--clip", "1")], ids=str
)
def test_the_demo_learns_in_every_state(tmp_path: Path, mosquitto_path: Path, options: tuple[str, ...]) -> None:
    """Devices that train otherwise send the same updates: the fleet merges and verifies as ever."""
    network = ["--zoo", "lenet", "--input-shape", "1,8,8", "--outputs", "10", "--batch", "16"]
    assert cli.main(["model", "build", *network, *options, "-o", str(tmp_path / "net.flm")]) == 0
    digits = load_digits()
    np.savez(tmp_path / "mine.npz", x=(digits.images[:, None] / 16).astype(np.float32), y=digits.target)
    report_file = tmp_path / "report.json"
    fleet = ["--model", "net.flm", "--data", "mine.npz", "--partition", "iid", "--rounds", "15"]
    done = demo(tmp_path, *fleet, "--max-seconds", "300", "--report", str(report_file))
    assert done.returncode == 0, done.stdout[-3_000:] + done.stderr[-3_000:]
    report = json.loads(report_file.read_bytes())
    assert check_report(report) == []
    assert report["accuracy_final"] > report["accuracy_initial"] + 0.2
    assert report["hostile"]["merged"] == 0
