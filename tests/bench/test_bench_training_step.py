"""What a training step costs beside torch's, and the memory of each backend: ``flchain bench train``, as rows."""

import json
from pathlib import Path
from typing import Any, Final

import pytest

from coordinator.cli_bench import main
from tests.support.measurements import Row, record
from tests.support.other_environments import LITERT, require_environment, run_python

pytestmark = [pytest.mark.bench, pytest.mark.timeout(1200)]

ROUNDS: Final = {"mlp": 30, "lenet": 20, "cnn1d": 20, "mobilenetv2": 3}
TORCH_BARS: Final = {"mlp": 0.45, "lenet": 0.75, "mobilenetv2": 0.5}
OWN_BARS: Final = {"mlp": 1.3, "lenet": 1.05}
MEMORY_BARS_MIB: Final = {"onnxruntime": 75.0, "numpy": 52.0, "litert": 60.0}


def once(value: float) -> dict[str, Any]:
    """A figure that is a median already."""
    return {"figure": value, "low": value, "high": value}


@pytest.mark.torch
@pytest.mark.parametrize("model", ROUNDS)
def test_training_step(tmp_path: Path, model: str) -> None:
    """Ratios of processor time, paired, one thread."""
    report, rounds = tmp_path / "rows.json", ROUNDS[model]
    backends = "onnxruntime,torch" if model == "mobilenetv2" else "onnxruntime,numpy,torch"
    options = ["--models", model, "--backends", backends, "--rounds", str(rounds), "--report", str(report)]
    assert main(["train", *options]) == 0
    rows = {(row["backend"], row["scheme"]): row for row in json.loads(report.read_text())}
    ours, own = rows["onnxruntime", "fp32"], rows["onnxruntime", "int8"]
    record(
        Row(
            key=f"training_step_{model}_torch",
            what=f"{model}: float32 step / torch eager step",
            unit="ratio",
            **once(ours["ratio_to_torch_fp32"]),
            count=rounds,
            bar=TORCH_BARS.get(model),
            note=f"batch 32, one thread, processor time; step {ours['step_ms_median']:.3f} ms",
        )
    )
    record(
        Row(
            key=f"training_step_{model}_int8",
            what=f"{model}: int8 step / own float32 step",
            unit="ratio",
            **once(own["ratio_to_own_fp32"]),
            count=rounds,
            bar=OWN_BARS.get(model),
            note="onnxruntime, Q8.8",
        )
    )
    if model == "lenet":
        for backend in ("onnxruntime", "numpy"):
            _record_memory(backend, max(rows[backend, scheme]["peak_rss_mib"] for scheme in ("fp32", "int8")))


def test_training_step_litert(tmp_path: Path) -> None:
    """Memory of LeNet on ai-edge-litert, in its environment."""
    require_environment(LITERT, "tensorflow")
    saved, report = tmp_path / "saved", tmp_path / "rows.json"
    command = ["-m", "edge_sdk.entry", "bench", "train", "--schemes", "fp32", "--backends", "litert", "--models"]
    run_python(LITERT, *command, "lenet", "--save", saved)
    run_python(LITERT, *command, saved / "lenet-fp32.flm", "--report", report)
    (row,) = json.loads(report.read_text())
    _record_memory("litert", row["peak_rss_mib"])


def _record_memory(backend: str, peak_mib: float) -> None:
    record(
        Row(
            key=f"training_memory_{backend}",
            what=f"lenet: peak memory of training, {backend}",
            unit="MiB",
            **once(peak_mib),
            count=1,
            bar=MEMORY_BARS_MIB[backend],
            note="VmHWM of a process of its own, batch 32, without transport",
        )
    )
