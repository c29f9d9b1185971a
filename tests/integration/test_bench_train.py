"""``flchain bench train`` as a user runs it, and the meter that it starts."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from coordinator.authoring.zoo import build
from coordinator.cli_bench import main
from coordinator.training_bench import Subject, measure
from edge_sdk.errors import ConfigError
from edge_sdk.protocol import wire
from edge_sdk.training.network import Scheme

FIELDS = {
    "model",
    "backend",
    "scheme",
    "step_ms_median",
    "ratio_to_torch_fp32",
    "ratio_to_own_fp32",
    "peak_rss_mib",
    "loss_after",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small network in two schemes, as files."""
    for scheme in (Scheme.FP32, Scheme.INT8):
        artifact, params = build("mlp", (12,), 3, batch=8, scheme=scheme, seed=0)
        (tmp_path / f"{scheme.name}.flm").write_bytes(artifact.data)
        (tmp_path / f"{scheme.name}.model.cbor").write_bytes(wire.to_bytes(params))
    return tmp_path


def test_rows_of_two_backends(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = folder / "rows.json"
    files = [str(folder / "FP32.flm"), str(folder / "INT8.flm")]
    options = ["--backends", "onnxruntime,numpy", "--rounds", "2", "--report", str(report)]
    assert main(["train", "--models", *files, *options]) == 0
    rows = json.loads(report.read_text())
    assert [(row["backend"], row["scheme"]) for row in rows] == [
        ("onnxruntime", "fp32"),
        ("numpy", "fp32"),
        ("onnxruntime", "int8"),
        ("numpy", "int8"),
    ]
    for row in rows:
        assert set(row) == FIELDS
        assert row["model"] == "mlp"
        assert row["step_ms_median"] > 0
        assert 20 < row["peak_rss_mib"] < 200
        assert row["ratio_to_torch_fp32"] is None
        assert row["ratio_to_own_fp32"] == 1 if row["scheme"] == "fp32" else row["ratio_to_own_fp32"] > 0
    onnxruntime, numpy = (row["loss_after"] for row in rows[:2])
    assert onnxruntime == pytest.approx(numpy, abs=1e-4)
    printed = capsys.readouterr().out
    assert printed.count("\nmlp ") == 4


def test_what_cannot_run_is_left_out(folder: Path) -> None:
    def subject(backend: str) -> Subject:
        return Subject(
            model="mlp",
            backend=backend,
            scheme="fp32",
            artifact_file=folder / "FP32.flm",
            params_file=folder / "FP32.model.cbor",
        )

    rows, skipped = measure([subject("abacus"), subject("numpy")], rounds=1)
    assert [row.backend for row in rows] == ["numpy"]
    assert len(skipped) == 1
    assert "abacus" in skipped[0]


def test_recipes_need_onnx_and_artifacts_do_not(folder: Path) -> None:
    """As on a board: the package onnx is hidden."""
    program = "import sys; sys.modules['onnx'] = None; from edge_sdk.entry import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", program, "bench", "train", "--rounds", "1", "--backends", "numpy", "--models"]
    on_board = subprocess.run([*command, "lenet"], capture_output=True, text=True, check=False)
    assert on_board.returncode == 2
    assert "'onnx'" in on_board.stderr
    assert "--save DIR" in on_board.stderr
    by_path = subprocess.run([*command, str(folder / "FP32.flm")], capture_output=True, text=True, check=False)
    assert by_path.returncode == 0, by_path.stderr


def test_artifacts_for_a_board(tmp_path: Path) -> None:
    assert main(["train", "--models", "lenet", "--schemes", "fp32", "--save", str(tmp_path / "out")]) == 0
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"lenet-fp32.flm", "lenet-fp32.model.cbor"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--models", "abacus"], "abacus"),
        (["--models", "missing.flm"], "missing.flm: No such file"),
        (["--models", "alone.flm"], "its parameters"),
    ],
)
def test_wrong_models_are_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], message: str
) -> None:
    monkeypatch.chdir(folder)
    (folder / "FP32.flm").rename(folder / "alone.flm")
    with pytest.raises(ConfigError, match=message):
        main(["train", *options])


@pytest.mark.parametrize("options", [["--rounds", "0"], ["--backends", "onnx"], ["--schemes", "fp32,"]])
def test_wrong_options_end_with_two(options: list[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["train", *options])
    assert end.value.code == 2
