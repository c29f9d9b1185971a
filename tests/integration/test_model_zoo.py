"""``flchain model build --zoo`` with ``--ram-limit``, and all of ``flchain model inspect``, as a user runs them."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from coordinator.authoring.memory import MIB, peak_memory
from coordinator.cli_model import main
from edge_sdk.errors import ConfigError, TrainingError
from edge_sdk.protocol import wire
from edge_sdk.protocol.messages import Codec, ModelParams
from edge_sdk.training.artifact import Artifact
from edge_sdk.training.delta import carried_specs, encode_delta, trained_positions
from edge_sdk.training.trainer import Trainer
from firmware_profiles.profile import board_ids


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "net.flm"


def build(out: Path, *options: str) -> Artifact:
    assert main(["build", "-o", str(out), "--key", str(out.with_name("author.pem")), *options]) == 0
    return Artifact.load(out.read_bytes())


@pytest.fixture
def calibration(tmp_path: Path) -> Path:
    """Windows whose class is the channel that swings."""
    rng = np.random.default_rng(2)
    y = rng.integers(0, 6, 512)
    x = rng.normal(0, 0.3, (512, 6, 128)).astype(np.float32)
    x[np.arange(512), y] += np.sin(np.arange(128) / 4, dtype=np.float32)
    path = tmp_path / "calibration.npz"
    np.savez(path, x=x, y=y)
    return path


def test_zoo_builds_what_it_is_named_for(out: Path) -> None:
    artifact = build(out, "--zoo", "mobilenetv2", "--batch", "4")
    assert artifact.network.input_shape == (3, 96, 96)
    assert sum(spec.is_trainable for spec in artifact.network.tensors) == 16
    artifact = build(out, "--zoo", "mlp", "--input-shape", "1,8,8", "--outputs", "4", "--trainable", "last:1")
    assert (artifact.network.input_shape, artifact.network.class_count) == ((1, 8, 8), 4)
    assert [spec.name for spec in artifact.network.tensors if spec.is_trainable] == ["dense2_weight", "dense2_bias"]


def test_limit_keeps_what_gains_most(out: Path, calibration: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = build(out, "--zoo", "cnn1d", "--batch", "512")
    total_mib = peak_memory(whole).total_bytes / MIB
    limit_mib = round(total_mib - 6, 1)
    limited = ("--zoo", "cnn1d", "--batch", "512", "--ram-limit", f"{limit_mib}")
    with pytest.raises(ConfigError, match="--calibrate"):
        build(out, *limited)
    capsys.readouterr()
    artifact = build(out, *limited, "--calibrate", str(calibration))
    printed = capsys.readouterr().out
    trained = {spec.name for spec in artifact.network.tensors if spec.is_trainable}
    assert 0 < len(trained) < len(whole.network.tensors)
    assert peak_memory(artifact).total_bytes <= limit_mib * MIB
    assert f"limit {limit_mib:g}: {len(trained)} are trained" in printed
    for spec in artifact.network.tensors:
        assert (f"left out: {spec.name} " in printed) == (spec.name not in trained)
        assert (f"{spec.name}.next" in artifact.train_outputs) == (spec.name in trained)


def test_limit_that_holds_everything_needs_no_calibration(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    artifact = build(out, "--zoo", "regressor", "--ram-limit", "200")
    assert all(spec.is_trainable for spec in artifact.network.tensors)
    assert "nothing is left out" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (("--zoo", "resnet"), ConfigError, "expected one of mlp, lenet"),
        (("--zoo", "mlp", "--loss", "ce"), ConfigError, "bring their loss"),
        (("--zoo", "mlp", "--outputs", "0"), ConfigError, "--outputs 0"),
        (("--zoo", "autoencoder", "--outputs", "7"), ConfigError, "expected one per value, 128"),
        (("model.onnx",), ConfigError, "--loss is missing"),
        (("model.onnx", "--loss", "ce", "--outputs", "3"), ConfigError, "--outputs belongs to --zoo"),
        (("--zoo", "mlp", "--ram-limit", "-3"), ConfigError, "MiB above 0"),
        (("--zoo", "mlp", "--calibrate", "x.npz", "--state", "fp32"), ConfigError, "--ram-limit"),
        (("--zoo", "mlp", "--ram-limit", "20", "--calibrate", "no.npz"), ConfigError, "no such file"),
    ],
)
def test_wrong_options_build_nothing(out: Path, options: tuple[str, ...], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        build(out, *options)
    assert not out.exists()


def test_limit_below_the_floor_and_data_that_do_not_fit(out: Path, calibration: Path) -> None:
    with pytest.raises(TrainingError, match="alone needs"):
        build(out, "--zoo", "cnn1d", "--ram-limit", "30", "--calibrate", str(calibration))
    with pytest.raises(TrainingError, match=r"dataset .*calibration.npz: array x: shape"):
        build(out, "--zoo", "mlp", "--ram-limit", "30", "--calibrate", str(calibration))
    assert not out.exists()


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.zeros((40, 8, 8)), np.arange(40) % 10, r"array x: shape \(40, 8, 8\)"),
        (np.zeros((40, 64), np.int64), np.arange(40) % 10, "array x: type int64"),
        (np.full((40, 64), np.nan), np.arange(40) % 10, "array x, row 0: a value is not finite"),
        (np.zeros((40, 64)), np.arange(40) % 11, "array y, row 10: label 10 is outside 0..9"),
        (np.zeros((40, 64)), np.full(40, 3), "array y: every label is 3, expected two classes"),
        (np.zeros((40, 64)), np.arange(39) % 10, "array x has 40 rows, array y has 39"),
        (np.zeros((31, 64)), np.arange(31) % 10, "31 examples, expected a batch of 32"),
    ],
)
@pytest.mark.parametrize("options", [(), ("--ram-limit", "20", "--state", "fp32")])
def test_calibration_data_are_refused_by_array_and_row(
    out: Path, x: npt.NDArray[Any], y: npt.NDArray[Any], message: str, options: tuple[str, ...]
) -> None:
    file = out.with_name("wrong.npz")
    np.savez(file, x=x, y=y)
    with pytest.raises(TrainingError, match=message):
        build(out, "--zoo", "mlp", "--input-shape", "64", "--calibrate", str(file), *options)
    assert not out.exists()


def test_frozen_tensors_do_not_travel(out: Path) -> None:
    """MobileNetV2's last two blocks: 259,090 of 401,898 parameters, one byte each."""
    artifact = build(out, "--zoo", "mobilenetv2", "--batch", "4")
    specs = artifact.network.tensors
    trainer = Trainer(artifact)
    trainer.load(wire.from_bytes(ModelParams, out.with_suffix(".model.cbor").read_bytes()))
    delta = trainer.delta()
    carried = carried_specs(specs, trained_positions(specs))
    payload = encode_delta(delta, None, carried, clip_norm=1.0, codec=Codec.INT8_DENSE).payload
    assert [tensor.name for tensor in payload.tensors] == [spec.name for spec in specs if spec.is_trainable]
    assert sum(len(tensor.values) for tensor in payload.tensors) == 259_090


def test_inspect_predicts_for_every_board_and_draws(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    artifact = build(out, "--zoo", "lenet")
    capsys.readouterr()
    picture = out.with_suffix(".png")
    assert main(["inspect", str(out), "--plot", str(picture)]) == 0
    printed = capsys.readouterr().out
    for backend in ("onnxruntime", "numpy"):
        total = peak_memory(artifact, backend=backend).total_bytes / MIB
        assert f"predicted peak with {backend}, without transport: {total:.1f} MiB" in printed
    rows = {line.split()[0]: line for line in printed.splitlines() if line}
    assert set(board_ids()) <= set(rows)
    assert rows["rpi-5"].split()[1] == "4096"
    assert float(rows["rpi-5"].split()[-2]) == pytest.approx(36.22 / 2.4, rel=0.01)  # 36.2 M at 2.4 GHz
    assert "assumed" in printed
    assert "modelled" in printed
    assert picture.read_bytes().startswith(b"\x89PNG")
    with out.with_suffix(".csv").open(encoding="utf-8") as file:
        numbers = list(csv.DictReader(file))
    assert max(int(row["alive_bytes"]) for row in numbers) > 32 * 6 * 28 * 28 * 4


def test_measured_step_gives_the_energy(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build(out, "--zoo", "mlp")
    capsys.readouterr()
    assert main(["inspect", str(out), "--step-ms", "100"]) == 0
    printed = capsys.readouterr().out
    row = next(line for line in printed.splitlines() if line.startswith("rpi-5"))
    assert row.split()[-2] == "100"
    assert float(row.split()[-1]) == pytest.approx(
        100 * (2.8 + (9.7 - 2.8) / 4), rel=0.01
    )  # idle, and one core of four
    assert "--step-ms" in printed


@pytest.mark.parametrize(
    ("options", "message"),
    [(("--plot", "memory.pdf"), "FILE.png"), (("--step-ms", "0"), "above 0"), (("--plot", "no/such/a.png"), "a.png")],
)
def test_inspect_refuses_what_it_cannot_do(out: Path, options: tuple[str, ...], message: str) -> None:
    build(out, "--zoo", "regressor")
    with pytest.raises(ConfigError, match=message):
        main(["inspect", str(out), *options])
