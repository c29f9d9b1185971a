"""``flchain model build`` and ``inspect``, as a user runs them, and training what they make."""

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from coordinator.author_key import read_author
from coordinator.authoring.cost import step_cost
from coordinator.cli_model import main
from edge_sdk.errors import ConfigError, EdgeFLError, TrainingError
from edge_sdk.protocol import wire
from edge_sdk.protocol.digest import key_fingerprint
from edge_sdk.protocol.messages import ModelParams
from edge_sdk.training.artifact import Artifact
from edge_sdk.training.dataset import ArrayDataset
from edge_sdk.training.trainer import Trainer
from edge_sdk.training.update_rule import UpdateRule


@pytest.fixture
def forward(tmp_path: Path) -> Path:
    """A convolution and two layers, for images of 1x6x6 and 3 classes."""
    rng = np.random.default_rng(4)
    weights = {
        "conv.weight": rng.normal(0, 0.3, (4, 1, 3, 3)),
        "conv.bias": np.zeros(4),
        "hidden.weight": rng.normal(0, 0.2, (8, 64)),
        "hidden.bias": np.zeros(8),
        "head.weight": rng.normal(0, 0.3, (3, 8)),
        "head.bias": np.zeros(3),
    }
    nodes = [
        helper.make_node("Conv", ["in", "conv.weight", "conv.bias"], ["c"]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Flatten", ["r"], ["f"]),
        helper.make_node("Gemm", ["f", "hidden.weight", "hidden.bias"], ["g"], transB=1),
        helper.make_node("Tanh", ["g"], ["t"]),
        helper.make_node("Gemm", ["t", "head.weight", "head.bias"], ["out"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "forward",
        [helper.make_tensor_value_info("in", TensorProto.FLOAT, ["n", 1, 6, 6])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["n", 3])],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()],
    )
    path = tmp_path / "forward.onnx"
    path.write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]).SerializeToString())
    return path


def build(forward: Path, *options: str) -> tuple[Artifact, ModelParams]:
    out, key = forward.with_name("net.flm"), forward.with_name("author.pem")
    required = ("--loss", "ce", "--batch", "16", "--key", str(key), "-o", str(out))
    assert main(["build", str(forward), *required, *options]) == 0
    params = wire.from_bytes(ModelParams, out.with_suffix(".model.cbor").read_bytes())
    return Artifact.load(out.read_bytes()), params


@pytest.mark.parametrize("state", ["q8.8", "int8-sr", "fp32"])
@pytest.mark.parametrize("trainable", ["all", "last:1"])
@pytest.mark.parametrize("backend", ["onnxruntime", "numpy"])
def test_what_is_built_learns(forward: Path, state: str, trainable: str, backend: str) -> None:
    artifact, params = build(forward, "--state", state, "--trainable", trainable)
    rng = np.random.default_rng(1)
    y = rng.integers(0, 3, 96)
    x = rng.normal(0, 0.5, (96, 1, 6, 6)).astype(np.float32)
    x[np.arange(96), 0, 2 * y] += 1.5
    data = ArrayDataset(x, y, input_shape=(1, 6, 6), class_count=3)
    trainer = Trainer(artifact, backend=backend)
    trainer.load(params)
    report = trainer.train(data, steps=60, lr=0.1, rng=np.random.default_rng(0))
    assert report.loss_mean < 0.8 * report.loss_first
    moved = {name for name, delta in trainer.delta().items() if delta.any()}
    assert ("conv_weight" in moved) == (trainable == "all")


@pytest.mark.parametrize("state", ["q8.8", "int8-sr", "fp32"])
def test_options_of_the_step_arrive_in_the_artifact(
    forward: Path, state: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--optimizer", "momentum", "--clip", "1.5", "--prox", "0.25", "--state", state)
    artifact, _ = build(forward, *options)
    assert artifact.state_kind == state
    assert artifact.rule == UpdateRule(momentum=float(np.float32(0.9)), clip_norm=1.5, prox=0.25)
    assert f"{state} state" in capsys.readouterr().out
    assert main(["inspect", str(forward.with_name("net.flm"))]) == 0
    assert "step: momentum 0.9, gradient clipped to 1.5, proximal term 0.25" in capsys.readouterr().out


def test_calibration_fixes_the_ranges_and_adds_the_int8_network(
    forward: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(1)
    examples = forward.with_name("examples.npz")
    x, y = rng.normal(0, 0.5, (40, 1, 6, 6)).astype(np.float32), rng.integers(0, 3, 40)
    np.savez(examples, x=x, y=y)
    artifact, params = build(forward, "--calibrate", str(examples))
    assert len(artifact.grids) == 3
    assert "activations: uint8, 3 calibrated ranges" in capsys.readouterr().out
    plain, _ = build(forward)
    assert not plain.grids
    assert "activations: uint8, the range of each batch" in capsys.readouterr().out
    calibrated, exact = (Trainer(each).evaluate(params, x, y) for each in (artifact, plain))
    assert calibrated.loss_mean == pytest.approx(exact.loss_mean, rel=0.05)
    with pytest.raises(ConfigError, match="needs an int8 state"):
        build(forward, "--calibrate", str(examples), "--state", "fp32")


def test_int8_rounded_to_nearest_is_refused_with_the_reason(forward: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        build(forward, "--state", "int8")
    assert stopped.value.code == 2
    printed = capsys.readouterr().err
    assert "does not learn" in printed
    assert "23.0 % where float32 reached 93.0 %" in printed
    assert not list(forward.parent.glob("*.flm"))


def test_inspect_prints_layers_and_costs(forward: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build(forward, "--trainable", "last:1")
    capsys.readouterr()
    assert main(["inspect", str(forward.with_name("net.flm"))]) == 0
    printed = capsys.readouterr().out
    assert "input 1x6x6, 3 classes, loss softmax_cross_entropy" in printed
    assert "trained: 27 of 587 parameters" in printed
    assert "conv conv" in printed
    assert main(["inspect", str(forward.with_name("net.model.cbor"))]) == 0
    assert "587 parameters" in capsys.readouterr().out


def test_what_is_built_is_signed_with_one_key(forward: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, _ = build(forward)
    author = read_author(forward.with_name("author.pub"))
    printed = capsys.readouterr().out
    assert f"{forward.with_name('author.pem')}: new key" in printed
    assert f"signed by {key_fingerprint(author)}" in printed
    assert build(forward, "--trainable", "last:1")[0].author == first.author == author
    capsys.readouterr()
    main(["inspect", str(forward.with_name("net.flm"))])
    assert f"signed by {key_fingerprint(author)}" in capsys.readouterr().out


def test_a_changed_artifact_is_not_shown(forward: Path) -> None:
    build(forward)
    path = forward.with_name("net.flm")
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(EdgeFLError, match=rf"{path}: .*signature .* does not hold"):
        main(["inspect", str(path)])


def test_costs_are_those_of_hand(forward: Path) -> None:
    artifact, _ = build(forward, "--state", "fp32")
    cost = step_cost(artifact)
    conv, hidden, head = 16 * 16 * 36, 16 * 64 * 8, 16 * 8 * 3
    assert cost.macs == 2 * conv + 3 * hidden + 3 * head  # no gradient to the input of the network
    assert cost.parameter_bytes == 2 * 4 * 587
    largest = 4 * 16 * 4 * 4 * 4  # the convolution's output and its gradient, at least
    assert 2 * largest < cost.activation_bytes < 12 * largest
    frozen = step_cost(build(forward, "--state", "fp32", "--trainable", "last:1")[0])
    assert frozen.macs == conv + hidden + 2 * head
    assert frozen.parameter_bytes == 4 * (587 + 27)
    assert frozen.activation_bytes < cost.activation_bytes


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (("--trainable", "nothing"), TrainingError, "trainable 'nothing'"),
        (("--batch", "0"), TrainingError, "batch 0"),
        (("-o", "model.onnx"), ConfigError, "NAME.flm"),
        (("--label-smoothing", "2"), TrainingError, "share"),
        (("--momentum", "0.9"), ConfigError, "needs --optimizer momentum"),
        (("--optimizer", "momentum", "--momentum", "0"), ConfigError, "expected more than 0"),
        (("--optimizer", "momentum", "--momentum", "1.5"), TrainingError, "momentum 1.5: expected 0..0.999"),
        (("--clip", "nan"), TrainingError, "clip norm nan"),
        (("--prox", "-1"), TrainingError, "prox -1"),
    ],
)
def test_wrong_options_build_nothing(
    forward: Path, options: tuple[str, ...], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        build(forward, *options)
    assert not list(forward.parent.glob("*.flm"))
