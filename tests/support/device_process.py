"""A real device process of the real command line, with its files."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from coordinator.authoring.zoo import build
from edge_sdk.adapters.keys import create_key
from edge_sdk.protocol.digest import genesis_digest
from edge_sdk.protocol.messages import Algorithm, Genesis, ModelParams
from edge_sdk.protocol.wire import to_bytes
from edge_sdk.training.artifact import Artifact

ROOT = Path(__file__).resolve().parents[2]
CLASSES, FEATURES = 4, 16


def make_model(seed: int = 1) -> tuple[Artifact, ModelParams]:
    """A small network for four blobs of points."""
    return build("mlp", (FEATURES,), CLASSES, batch=16, seed=seed)


def write_data(path: Path, *, count: int = 96, seed: int = 0) -> None:
    """Four clusters that a small network learns at once."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, CLASSES, count)
    centres = np.random.default_rng(7).normal(0, 1, (CLASSES, FEATURES))
    x = (centres[y] + rng.normal(0, 0.3, (count, FEATURES))).astype(np.float32)
    np.savez(path, x=x, y=y)


class DeviceProcess:
    """Folder and process of one device."""

    def __init__(self, folder: Path, genesis: Genesis, *, broker_port: int, urls: tuple[str, ...] = ()) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        self.config = folder / "device.toml"
        (folder / "genesis.cbor").write_bytes(to_bytes(genesis))
        write_data(folder / "data.npz")
        create_key(folder / "key.pem", Algorithm.EDDSA)
        self.process: subprocess.Popen[bytes] | None = None
        self.write_config(genesis, broker_port=broker_port, urls=urls)

    def write_config(
        self, genesis: Genesis, *, broker_port: int, urls: tuple[str, ...] = (), extra: str = "", protocol: str = "auto"
    ) -> None:
        self.config.write_text(
            f'[device]\nid = "d1"\ntask = "{genesis.task}"\ndata = "data.npz"\n'
            f'[trust]\ngenesis_digest = "{genesis_digest(genesis).hex()}"\n'
            f'[[broker]]\nhost = "127.0.0.1"\nport = {broker_port}\nprotocol = "{protocol}"\n'
            f"[miners]\nurls = {list(urls)!r}\n"
            '[board]\nprofile = "rpi-4b"\n' + extra
        )

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def start(self, *, failpoint: str = "") -> None:
        environment = os.environ | {
            "PYTHONPATH": str(ROOT),
            "FLCHAIN_FAILPOINT": failpoint,
            "OMP_NUM_THREADS": "1",
        }
        with (self.folder / "log.jsonl").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "edge_sdk.entry", "device", "run", "--config", str(self.config)],
                env=environment,
                stdout=log,
                stderr=log,
            )

    def wait(self, timeout_s: float = 30) -> int:
        assert self.process is not None
        return self.process.wait(timeout_s)

    def kill(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def terminate(self, timeout_s: float = 15) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout_s)

    def log(self) -> str:
        return (self.folder / "log.jsonl").read_text()

    def query(self, sql: str) -> list[Any]:
        with sqlite3.connect(f"file:{self.folder}/state.sqlite3?mode=ro", uri=True) as db:
            rows = db.execute(sql).fetchall()
        db.close()
        return rows

    def phases(self) -> list[dict[str, Any]]:
        lines = (self.folder / "run.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines if line.endswith("}")]

    def rss_mib(self, field: str = "VmRSS") -> float:
        status = Path(f"/proc/{self.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith(field))
        return int(line.split()[1]) / 1024


def wait_until(condition: Callable[[], bool], timeout_s: float = 30, *, what: str = "") -> None:
    """Poll until a condition holds."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, f"timed out: {what}"
        time.sleep(0.05)
