"""The edge servers of the test, on this machine: founded and run by the commands that an operator uses.

The board reaches this machine as 10.0.2.2, the address that qemu's user-mode network gives it; the servers find each
other on the loopback interface.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from coordinator.demo.processes import ONE_THREAD

HOST_FOR_BOARD: Final = "10.0.2.2"
"""qemu documentation, "Using the user mode network stack"."""
MINERS: Final = ("m0", "m1", "m2", "m3")
TASK: Final = "digits"
BLOCK_SIZE: Final = 1
"""One board: each of its updates is a block."""
TAU_S: Final = 10.0
START_S: Final = 120.0
STOP_S: Final = 30.0
_POLL_S: Final = 0.5


class EdgeError(Exception):
    """A server ended, or did not do its part in time."""


class Edge:
    """Broker with mutual TLS, sequencer, four miners and the registrar. Leaving the context ends them."""

    def __init__(self, root: Path) -> None:
        """Open the deployment of a folder; ``logs`` lies beside it."""
        self.root = root
        self._logs = root.parent / "logs"
        self._logs.mkdir(parents=True, exist_ok=True)
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._http = {name: int(tomllib.loads(self.config(name).read_text())["http"]["port"]) for name in MINERS}

    @classmethod
    def found(cls, root: Path, *, dataset: tuple[str, ...], model: str) -> Self:
        """Found a deployment.

        Args:
            root: Its folder.
            dataset: Options of ``flchain miner init`` that say where the folds come from.
            model: Name of the model.
        """
        first, *_ = ports = _free_ports(len(MINERS) + 2)
        flchain(
            *("miner", "init", str(root), "--task", TASK, "--host", HOST_FOR_BOARD, "--miners", ",".join(MINERS)),
            *("--http-port", str(first), "--broker-port", str(ports[-2]), "--enrolment-port", str(ports[-1])),
            *("--block-size", str(BLOCK_SIZE), "--tau", str(TAU_S), *dataset, "--model", model),
        )
        edge = cls(root)
        for miner in MINERS:
            _use_loopback(edge.config(miner))
        return edge

    def __enter__(self) -> Self:
        """Start everything and wait until the miners say that they are ready."""
        try:
            self._start()
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End all servers in order; nothing happens when they have ended."""
        for process in self._processes.values():
            process.terminate()
        deadline = time.monotonic() + STOP_S
        for process in self._processes.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.1, deadline - time.monotonic()))
            process.kill()
            process.wait()
        self._processes.clear()

    def config(self, miner: str) -> Path:
        """Settings of a miner."""
        return self.root / "miners" / miner / "miner.toml"

    def port(self, miner: str) -> int:
        """Where a miner's HTTP interface listens."""
        return self._http[miner]

    def add_to_section(self, miner: str, section: str, line: str) -> None:
        """Add a setting to miner.toml, before the miner starts."""
        config = self.config(miner)
        text = config.read_text(encoding="utf-8")
        assert text.count(f"{section}\n") == 1, section
        config.write_text(text.replace(f"{section}\n", f"{section}\n{line}\n"), encoding="utf-8")

    def claim(self, device: str, folder: Path) -> None:
        """Make the folder of a new board, with its single-use claim."""
        flchain("registry", "claim", device, "--folder", str(folder), "--config", str(self.config(MINERS[0])))

    def get(self, path: str, miner: str = MINERS[0]) -> Any:
        """A JSON document of a miner; None where it has none.

        Raises:
            EdgeError: a server has ended.
        """
        for name, process in self._processes.items():
            if process.poll() is not None:
                raise EdgeError(f"{name} ended with {process.returncode}, see {self._logs / name}.log")
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(f"http://127.0.0.1:{self._http[miner]}{path}", timeout=10.0) as answer:
                return json.load(answer)
        except (urllib.error.URLError, OSError):
            return None

    def version(self) -> int:
        """Newest certified version, 0 before the first merge."""
        model = self.get("/v1/models/latest")
        return 0 if model is None else int(model["version"])

    def until(self, is_true: Callable[[], bool], what: str, *, timeout_s: float) -> None:
        """Wait for something.

        Raises:
            EdgeError: it does not happen in that time.
        """
        deadline = time.monotonic() + timeout_s
        while not is_true():
            if time.monotonic() > deadline:
                raise EdgeError(f"not in {timeout_s:g} s: {what}; logs in {self._logs}")
            time.sleep(_POLL_S)

    # --- inside ---

    def _start(self) -> None:
        broker = shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
        if broker is None:
            raise EdgeError("no mosquitto: make board-test installs it where it runs as root")
        self._run("mosquitto", [broker, "-c", str(self.root / "mosquitto" / "mosquitto.conf")])
        sequencer = self.root / "sequencer" / "sequencer.toml"
        self._run("sequencer", [*FLCHAIN, "sequencer", "run", "--config", str(sequencer)])
        for miner in MINERS:
            self._run(miner, [*FLCHAIN, "miner", "run", "--config", str(self.config(miner))])
        for miner in MINERS:
            self.until(
                lambda miner=miner: (self.get("/healthz", miner) or {}).get("status") == "ok",  # type: ignore[misc]
                f"{miner} is ready",
                timeout_s=START_S,
            )

    def _run(self, name: str, command: list[str]) -> None:
        with (self._logs / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**os.environ, **ONE_THREAD}
            )


FLCHAIN: Final = (sys.executable, "-m", "edge_sdk.entry")


def flchain(*arguments: str) -> str:
    """Run one command of ours that must succeed; what it printed.

    Raises:
        EdgeError: it failed, with its own words.
    """
    done = subprocess.run([*FLCHAIN, *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise EdgeError(f"flchain {' '.join(arguments)}: exit status {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def _use_loopback(config: Path) -> None:
    """Broker and peers of a miner are on this machine; what boards are told stays as it is."""
    section, lines = "", []
    for line in config.read_text(encoding="utf-8").splitlines():
        section = line if line.startswith("[") else section
        is_ours = section in {"[[broker]]", "[peers]"}
        lines.append(line.replace(HOST_FOR_BOARD, "127.0.0.1") if is_ours else line)
    config.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _free_ports(count: int) -> range:
    """Ports in a row on the loopback interface: ``miner init`` numbers those of its miners."""
    while True:
        with contextlib.ExitStack() as held:
            first = held.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]
            with contextlib.suppress(OSError, OverflowError):
                for port in range(first + 1, first + count):
                    held.enter_context(socket.create_server(("127.0.0.1", port)))
                return range(first, first + count)
