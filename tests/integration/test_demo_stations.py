"""The real demo on real measurements: a whole fleet learns a regression, and its report is audited."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tools.check_report import check_report

pytestmark = [pytest.mark.slow, pytest.mark.network, pytest.mark.timeout(400)]


def test_stations_learn_fine_dust_together(tmp_path: Path, data_dir: Path, mosquitto_path: Path) -> None:
    assert mosquitto_path.is_file()
    file = tmp_path / "report.json"
    demo = [
        sys.executable,
        "-m",
        "edge_sdk.entry",
        "demo",
        "--no-live",
        "--dataset",
        "beijing",
        "--data",
        str(data_dir),
    ]
    bounds = ["--rounds", "15", "--max-seconds", "300", "--report", str(file)]
    finished = subprocess.run([*demo, *bounds], capture_output=True, text=True, timeout=380, check=False)
    assert finished.returncode == 0, finished.stdout[-3_000:] + finished.stderr[-3_000:]
    report = json.loads(file.read_bytes())
    assert check_report(report) == []
    assert (report["measure"], report["model"], report["partition"]) == ("R2", "regressor", "natural")
    assert report["accuracy_final"] > 0.7
    assert report["hostile"]["merged"] == 0
