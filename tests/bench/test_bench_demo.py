"""Accuracy, safety and memory of whole runs: the demo as users start it, over several seeds; rows from its reports.

The seeds are $FLCHAIN_BENCH_SEEDS (default 1 to 5) for digits and $FLCHAIN_BENCH_SEEDS_LONG (default 1) for MNIST and
HAPT, which need the optional data folder. Each run takes one to four minutes; its report stays in
``bench-results/reports``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Final

import numpy as np
import pytest

from coordinator.datasets.digits import load_digits
from tests.support.measurements import RESULTS, Row, of_values, record

pytestmark = [pytest.mark.bench, pytest.mark.network]

Report = dict[str, Any]
RUN_SECONDS_MAX: Final = 600
IMAGE_SIDE: Final = 28
MEMORY_SECONDS: Final = 45


def seeds_of(variable: str, default: str) -> list[int]:
    return [int(seed) for seed in os.environ.get(variable, default).split(",")]


SEEDS: Final = seeds_of("FLCHAIN_BENCH_SEEDS", "1,2,3,4,5")
SEEDS_LONG: Final = seeds_of("FLCHAIN_BENCH_SEEDS_LONG", "1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One data set and what is expected of it."""

    place: str
    """Sorts its rows."""
    name: str
    options: tuple[str, ...]
    accuracy_bar: float
    wall_bar_s: float | None


DIGITS: Final = Case(place="5-1", name="digits", options=(), accuracy_bar=0.92, wall_bar_s=90)
MNIST: Final = Case(
    place="5-2",
    name="MNIST, lenet, 20 devices",
    options=("--dataset=idx", "--model=lenet", "--devices=20", "--partition=dirichlet:0.5", "--max-seconds=225"),
    accuracy_bar=0.97,
    wall_bar_s=240,
)
HAPT: Final = Case(
    place="5-3", name="HAPT, 9 unseen people", options=("--dataset", "hapt"), accuracy_bar=0.86, wall_bar_s=None
)


def run_demo(name: str, *options: str) -> Report:
    """Run the demo as a user does; its report, which is kept."""
    folder = RESULTS / "reports"
    folder.mkdir(parents=True, exist_ok=True)
    report_file = folder / f"{name}.json"
    command = [sys.executable, "-m", "edge_sdk.entry", "demo", "--no-live", "--report", str(report_file), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=RUN_SECONDS_MAX, check=False)
    assert done.returncode == 0, done.stdout[-3_000:] + done.stderr[-3_000:]
    report: Report = json.loads(report_file.read_bytes())
    return report


def of_mean(values: Sequence[float]) -> dict[str, Any]:
    """Mean and spread, as arguments of ``Row``."""
    return of_values(values) | {"figure": fmean(values)}


def record_case(case: Case, reports: Sequence[Report]) -> None:
    """Rows of one data set; the figure of accuracy is the mean over the seeds."""
    base = fmean(report["baseline"]["accuracy"] for report in reports)
    seeds = ", ".join(str(report["seed"]) for report in reports)
    note = f"seeds {seeds}; centralized fp32 {base:.3f}; versions {[report['model_version'] for report in reports]}"
    accuracies = of_mean([report["accuracy_final"] for report in reports])
    harm = [
        report["hostile"]["merged"] + report["updates"]["lost"] + report["updates"]["duplicated"] for report in reports
    ]
    honest = [report["refused_honest"] for report in reports]
    walls = of_values([report["wall_s"] for report in reports])
    record(
        Row(
            key=f"{case.place}-1-accuracy",
            what=f"{case.name}: accuracy_final, mean",
            unit="share",
            bar=case.accuracy_bar,
            is_bar_upper=False,
            **accuracies,
            note=note,
        )
    )
    record(
        Row(
            key=f"{case.place}-2-harm",
            what=f"{case.name}: hostile merged + lost + duplicated, most",
            unit="updates",
            bar=0,
            **(of_values(harm) | {"figure": max(harm)}),
            note=f"hostile published {[report['hostile']['published'] for report in reports]}",
        )
    )
    record(
        Row(
            key=f"{case.place}-3-honest",
            what=f"{case.name}: refused_honest, mean",
            unit="share",
            bar=0.05,
            **of_mean(honest),
        )
    )
    record(
        Row(
            key=f"{case.place}-4-wall",
            what=f"{case.name}: wall time of the whole run",
            unit="s",
            bar=case.wall_bar_s,
            **(walls | {"figure": walls["high"]}),
            note="the slowest run",
        )
    )
    peaks = of_values([report["device_rss_mib"]["training_peak"] for report in reports])
    record(
        Row(
            key=f"{case.place}-5-peak",
            what=f"{case.name}: training peak of a device process",
            unit="MiB",
            bar=100,
            **(peaks | {"figure": peaks["high"]}),
            note="VmHWM of the largest device",
        )
    )


@pytest.mark.timeout(len(SEEDS) * RUN_SECONDS_MAX)
def test_digits(mosquitto_path: Path) -> None:
    record_case(DIGITS, [run_demo(f"digits-{seed}", "--seed", str(seed)) for seed in SEEDS])


@pytest.mark.timeout(len(SEEDS_LONG) * RUN_SECONDS_MAX)
@pytest.mark.parametrize(("case", "folder"), [(MNIST, "mnist"), (HAPT, "hapt_har")], ids=["mnist", "hapt"])
def test_data_sets_of_the_optional_folder(case: Case, folder: str, data_dir: Path, mosquitto_path: Path) -> None:
    options = (*case.options, "--data", str(data_dir / folder))
    record_case(case, [run_demo(f"{folder}-{seed}", *options, "--seed", str(seed)) for seed in SEEDS_LONG])


@pytest.mark.timeout(RUN_SECONDS_MAX)
def test_memory_of_a_device_with_lenet(tmp_path: Path, mosquitto_path: Path) -> None:
    """Digits enlarged to the size of MNIST, so that the row needs no download; each figure is the worst device's."""
    digits = load_digits()

    def enlarge(images: np.ndarray[Any, np.dtype[np.float32]]) -> np.ndarray[Any, np.dtype[np.float32]]:
        places = np.arange(IMAGE_SIDE) * images.shape[-1] // IMAGE_SIDE
        return images[..., places, :][..., places]

    data = tmp_path / "digits28.npz"
    np.savez(data, x=enlarge(digits.x_train), y=digits.y_train, x_test=enlarge(digits.x_test), y_test=digits.y_test)
    options = ("--dataset", "npz", "--data", str(data), "--model", "lenet", "--devices", "4", "--block-size", "3")
    report = run_demo("memory", *options, "--byzantine", "none", "--max-seconds", str(MEMORY_SECONDS))
    memory = report["device_rss_mib"]
    assert report["updates"]["merged"] > 0, "no device has trained"
    bars = {"idle": 45, "training_peak": 100, "idle_after": 80}
    texts = {
        "idle": "connected, before numpy and the runtime are loaded",
        "training_peak": "VmHWM, lenet on 28 x 28 images",
        "idle_after": "median between jobs",
    }
    for place, (name, bar) in enumerate(bars.items(), start=1):
        row = Row(
            key=f"4-memory-{place}-{name}",
            what=f"resident memory of a device process: {name}",
            unit="MiB",
            bar=bar,
            **of_values([memory[name]]),
            note=f"{texts[name]}; largest of 4 processes",
        )
        record(row)
