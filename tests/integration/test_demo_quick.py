"""The real demo in its short form: real processes, a real broker, real data; CI's own audit reads its report."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tools.check_report import check_report

DEMO = [sys.executable, "-m", "edge_sdk.entry", "demo", "--quick", "--no-live"]
# Ends by what it has reached, not by the clock: other work on the machine must not decide how much is learned.
UNTIL_LEARNED = ["--rounds", "15", "--max-seconds", "240"]
DEMO_TIMEOUT_S = 280


def _report(folder: Path, *options: str) -> dict[str, Any]:
    report_file = folder / "report.json"
    finished = subprocess.run(
        [*DEMO, *UNTIL_LEARNED, "--report", str(report_file), *options],
        capture_output=True,
        text=True,
        timeout=DEMO_TIMEOUT_S,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout[-3_000:] + finished.stderr[-3_000:]
    report: dict[str, Any] = json.loads(report_file.read_bytes())
    assert check_report(report) == []
    return report


def _processes_of(folder: Path) -> list[str]:
    """Command lines that name a path inside ``folder``."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if f"{folder}/" in line:
                found.append(line)
    return found


@pytest.mark.network
@pytest.mark.timeout(DEMO_TIMEOUT_S + 120)
def test_a_quick_demo_learns_and_keeps_its_promises(tmp_path: Path, mosquitto_path: Path) -> None:
    keep = tmp_path / "run"
    report = _report(tmp_path, "--keep", str(keep), "--broker", "mosquitto")

    assert report["accuracy_initial"] < 0.3
    assert report["accuracy_final"] > 0.8
    assert report["accuracy_curve"][-1][1] == report["model_version"]
    assert report["blocks_by_cause"]["tau"] >= 1
    assert report["blocks_by_cause"]["size"] >= 1
    # The attacker was heard, and none of it was taken in.
    assert report["hostile"]["published"] >= 1
    assert report["hostile"]["merged"] == 0
    assert report["certificates_verified_by_devices"] >= report["devices"]
    assert 0 < report["device_rss_mib"]["idle"] < report["device_rss_mib"]["training_peak"]
    assert report["bytes"]["payload_mean"] < report["bytes"]["fp32_equivalent"] / 3

    assert (tmp_path / "report.png").stat().st_size > 10_000
    assert {path.name for path in (keep / "miners").iterdir()} == {f"miner-{n}" for n in range(1, 5)}
    assert (keep / "miners" / "miner-1" / "ledger.sqlite3").is_file()
    assert any((keep / "miners" / "miner-1" / "blobs" / "sha256").iterdir())
    assert (keep / "devices" / "device-01" / "state.sqlite3").is_file()
    assert _processes_of(keep) == []
    _check_that_tampering_is_found(keep)


def _check_that_tampering_is_found(keep: Path) -> None:
    """An auditor with the kept files alone sees that all is well, and one changed byte of a blob."""
    verify = [sys.executable, "-m", "edge_sdk.entry", "ledger", "verify", str(keep)]
    assert subprocess.run(verify, capture_output=True, timeout=60, check=False).returncode == 0
    blob = max((keep / "miners" / "miner-2" / "blobs" / "sha256").iterdir(), key=lambda path: path.stat().st_size)
    content = bytearray(blob.read_bytes())
    content[len(content) // 2] ^= 1
    blob.write_bytes(content)
    found = subprocess.run(verify, capture_output=True, text=True, timeout=60, check=False)
    assert found.returncode == 1
    assert blob.name in found.stdout + found.stderr
    assert "Traceback" not in found.stderr


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.timeout(DEMO_TIMEOUT_S + 20)
def test_the_embedded_broker_carries_the_demo_too(tmp_path: Path) -> None:
    report = _report(tmp_path, "--broker", "embedded")
    assert report["broker"] == "amqtt"
    assert report["accuracy_final"] > 0.7


@pytest.mark.network
@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGKILL])
def test_nothing_is_left_behind_when_the_demo_is_ended(tmp_path: Path, number: signal.Signals) -> None:
    keep = tmp_path / "run"
    demo = subprocess.Popen([*DEMO, "--devices", "2", "--keep", str(keep)], stdout=subprocess.PIPE, text=True)
    try:
        assert demo.stdout is not None
        with demo.stdout as lines:
            assert any("training" in line for line in iter(lines.readline, ""))
            assert len(_processes_of(keep)) >= 7  # broker, sequencer, four miners, a device at least
            os.kill(demo.pid, number)
            text = lines.read()
        status = demo.wait(60)
    finally:
        demo.kill()
        demo.wait()
    _wait_for(lambda: not _processes_of(keep))
    if number is signal.SIGINT:
        assert status == 130
        assert "accuracy" in text  # a report of what was done until then


def _wait_for(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--dataset", "mnist"], "--dataset"),
        (["--devices", "30", "--partition", "dirichlet:0.001"], "--partition dirichlet:0.001"),
        (["--partition", "natural"], "--partition natural"),
        (["--model", "cnn1d"], "cnn1d"),
        (["--keep", "/proc"], "--keep /proc"),
    ],
)
def test_a_wrong_option_is_one_line_and_status_2(options: list[str], words: str) -> None:
    refused = subprocess.run([*DEMO, *options], capture_output=True, text=True, timeout=60, check=False)
    assert refused.returncode == 2
    assert refused.stdout == ""
    assert words in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1
