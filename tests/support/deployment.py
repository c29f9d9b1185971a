"""A production deployment on this machine: ``flchain miner init``, mosquitto with mutual TLS, processes, claims."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import urllib.request
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import numpy as np

from coordinator.broker.ports import free_port
from tests.support.device_process import ROOT, wait_until

WAIT_S: Final = 300.0
"""A loaded machine needs a while for five interpreters."""
MINER: Final = "m0"

KEPT_RUNNING: Final = 'trap "kill \\$!; exit" TERM; until { "$0" -c "$1" & wait $!; }; do sleep 0.2; done'
"""As its unit keeps it: mosquitto 2.0.11 may crash when it reloads its lists with sessions of devices that are away."""


class Deployment:
    """One miner that hosts the registrar, its sequencer and its broker."""

    def __init__(self, root: Path, mosquitto: Path) -> None:
        """Found it; nothing runs yet."""
        self.root = root
        self._logs = root.with_name(root.name + "-logs")
        self._logs.mkdir()
        self._mosquitto = mosquitto
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self.http_port = free_port()
        ports = ("--broker-port", str(free_port()), "--http-port", str(self.http_port))
        words = ("--miners", MINER, *ports, "--enrolment-port", str(free_port()), "--tau", "1", "--block-size", "2")
        done = self.command("miner", "init", str(root), *words)
        assert done.returncode == 0, done.stderr

    @property
    def miner_config(self) -> Path:
        """Settings of the registrar's miner."""
        return self.root / "miners" / MINER / "miner.toml"

    def start(self) -> None:
        """Broker, sequencer and miner, until the miner serves."""
        conf = self.root / "mosquitto" / "mosquitto.conf"
        self._run("broker", ["sh", "-c", KEPT_RUNNING, str(self._mosquitto), str(conf)])
        self._run_ours("sequencer", "sequencer", "run", "--config", str(self.root / "sequencer" / "sequencer.toml"))
        self._run_ours("miner", "miner", "run", "--config", str(self.miner_config))
        wait_until(self._is_healthy, WAIT_S, what="the miner serves")

    def stop(self) -> None:
        """End every process that was started here."""
        for process in reversed(self._processes.values()):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(20)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()

    def claim(self, device: str, folder: Path) -> None:
        """A claim with everything that a board needs, as an operator makes it; the data is put beside it."""
        done = self.registry("claim", device, "--folder", str(folder))
        assert done.returncode == 0, done.stderr
        write_digits(folder / "data.npz")

    def registry(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run ``flchain registry``."""
        return self.command("registry", words[0], "--config", str(self.miner_config), *words[1:])

    def command(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command of the client to its end."""
        line = [sys.executable, "-m", "edge_sdk.entry", *words]
        return subprocess.run(
            line, env=_environment(environment), capture_output=True, text=True, check=False, timeout=WAIT_S
        )

    def page(self) -> dict[str, Any]:
        """What the miner shows about its boards."""
        document: dict[str, Any] = json.loads(self._get("/v1/enrolment"))
        return document

    def page_text(self) -> str:
        """The same for people."""
        return self._get("/enrolment")

    def metric(self, name: str) -> float:
        """A sample of the miner's metrics; 0 where it is not there."""
        for line in self._get("/metrics").splitlines():
            if line.startswith(f"{name} "):
                return float(line.split()[-1])
        return 0.0

    def status_of(self, device: str) -> str:
        """Of a device at the registrar."""
        return next((row["status"] for row in self.page()["devices"] if row["device"] == device), "")

    def log(self, name: str) -> str:
        """Everything that a process said."""
        return (self._logs / f"{name}.log").read_text()

    def _is_healthy(self) -> bool:
        ended = {name: process.returncode for name, process in self._processes.items() if process.poll() is not None}
        assert not ended, (ended, {name: self.log(name)[-2_000:] for name in ended})
        try:
            return bool(json.loads(self._get("/healthz"))["status"] == "ok")
        except OSError:
            return False

    def _get(self, path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}{path}", timeout=10) as answer:
            text: str = answer.read().decode()
            return text

    def _run_ours(self, name: str, *words: str) -> None:
        self._run(name, [sys.executable, "-m", "edge_sdk.entry", *words])

    def _run(self, name: str, line: list[str]) -> None:
        with (self._logs / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(line, env=_environment({}), stdout=log, stderr=log)


def write_digits(path: Path) -> None:
    """The examples of one board."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    rows = np.random.default_rng(5).permutation(len(y))[:400]
    np.savez(path, x=(x[rows] / 16).astype(np.float32).reshape(-1, 1, 8, 8), y=y[rows].astype(np.int64))


def rows(path: Path, query: str) -> list[Any]:
    """Rows of a device's state while it runs; none while there is no such table yet."""
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
            return database.execute(query).fetchall()
    except sqlite3.OperationalError:
        return []


def _environment(further: Mapping[str, str]) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **further}
