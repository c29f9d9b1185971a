"""No process outlives the demo: not after its end in order, and not after its supervisor is killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from coordinator.demo.processes import Processes

# A child that ignores SIGTERM and starts a child of its own, as a broker does.
STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
inner = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(inner.pid, flush=True)
time.sleep(60)
"""

SUPERVISOR = """
import sys, time
from pathlib import Path
from coordinator.demo.processes import Processes
folder = Path(sys.argv[1])
with Processes(folder) as processes:
    child = processes.start("stubborn", ["stubborn"], environment={"PYTHONPATH": str(folder)})
    print(child.pid, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "stubborn.py").write_text(STUBBORN)
    return tmp_path


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def _wait_until_gone(pids: list[int]) -> list[int]:
    deadline_s = time.monotonic() + 10
    while any(map(_is_running, pids)) and time.monotonic() < deadline_s:
        time.sleep(0.02)
    return [pid for pid in pids if _is_running(pid)]


def _first_number(log: Path) -> int:
    deadline_s = time.monotonic() + 10
    while not (log.is_file() and log.read_text().strip()) and time.monotonic() < deadline_s:
        time.sleep(0.02)
    return int(log.read_text())


def test_leaving_the_context_ends_children_and_theirs(folder: Path) -> None:
    with Processes(folder) as processes:
        child = processes.start("stubborn", ["stubborn"], environment={"PYTHONPATH": str(folder)})
        inner = _first_number(child.log_file)
        assert processes.stop(["stubborn"], timeout_s=0.2) == ["stubborn"]
    assert _wait_until_gone([child.pid, inner]) == []


@pytest.mark.fault
def test_a_killed_supervisor_takes_the_fleet_with_it(folder: Path) -> None:
    supervisor = subprocess.Popen([sys.executable, "-c", SUPERVISOR, str(folder)], stdout=subprocess.PIPE)
    assert supervisor.stdout is not None
    with supervisor.stdout as output:
        child = int(output.readline())
    inner = _first_number(folder / "stubborn.log")
    os.kill(supervisor.pid, signal.SIGKILL)
    supervisor.wait()
    assert _wait_until_gone([child, inner]) == []


def test_a_child_that_ends_by_itself_can_be_started_again_under_its_name(tmp_path: Path) -> None:
    with Processes(tmp_path) as processes:
        for _ in range(2):
            child = processes.start("brief", ["platform"])
            while child.status is None:
                time.sleep(0.01)
            assert child.status == 0
    assert len((tmp_path / "brief.log").read_text().splitlines()) == 2
