"""A board with two environments, a device that runs as a service, and an updater, all of them real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from edge_sdk.adapters.health_file import Health, read_health
from edge_sdk.protocol.messages import Genesis
from edge_sdk.upgrade.environments import COMMITTED, CURRENT, Environments
from edge_sdk.upgrade.journal import Journal, JournalFile
from tests.support.device_process import DeviceProcess, wait_until
from tests.support.fake_miners import FakeMiners
from tests.support.software import Publisher, RangeServer

PROGRAM = Path(__file__).with_name("service_program.py")
WAIT_S = 60.0


class Board:
    """Folder of one board; the client of ``wheels`` is installed in environment a."""

    def __init__(self, folder: Path, genesis: Genesis, wheels: Path, publisher: Publisher, *, broker_port: int) -> None:
        folder.mkdir()
        self.folder = folder
        self.device = DeviceProcess(folder / "device", genesis, broker_port=broker_port)
        # As on a read-only root: the place has its usual name and leads to the partition that can be written.
        (folder / "data").mkdir()
        (folder / "environments").symlink_to("data")
        self.environments = Environments(folder / "environments")
        self.environments.build("a", sorted(wheels.glob("*.whl")), b"image", bytes_max=2**30)
        for link in (CURRENT, COMMITTED):
            self.environments.point(link, "a")
        self.config = folder / "upgrade.toml"
        (folder / "root.json").write_bytes(publisher.anchor.read_bytes())

    def configure(
        self,
        url: str,
        *,
        more_urls: tuple[str, ...] = (),
        healthy_s: int = 1,
        limit_s: int = 60,
        quiet_wait_s: int = 60,
    ) -> None:
        commands = "".join(
            f"{name} = {json.dumps([sys.executable, str(PROGRAM), name, str(self.folder)])}\n"
            for name in ("start", "stop", "state")
        )
        self.config.write_text(
            f"[upgrade]\nurls = {json.dumps([url, *more_urls])}\n"
            'device_config = "device/device.toml"\nuser = "root"\n'
            'environments = "environments"\nstate_dir = "updater"\n'
            f"[service]\n{commands}"
            f"[trial]\nhealthy_s = {healthy_s}\nlimit_s = {limit_s}\nquiet_wait_s = {quiet_wait_s}\n"
        )

    def upgrade(
        self, *, failpoint: str = "", clock_offset_s: int = 0, prefix: tuple[str, ...] = ()
    ) -> subprocess.CompletedProcess[str]:
        """One pass of the updater, from the committed environment; ``prefix`` is a program that runs it."""
        program = self.environments.folder / COMMITTED / "bin" / "flchain"
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")} | {
            "FLCHAIN_FAILPOINT": failpoint,
            "FLCHAIN_CLOCK_OFFSET_S": str(clock_offset_s),
            "OMP_NUM_THREADS": "1",
        }
        return subprocess.run(
            [*prefix, str(program), "device", "upgrade", "--config", str(self.config)],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=110,
        )

    def service(self, command: str) -> str:
        done = subprocess.run(
            [sys.executable, str(PROGRAM), command, str(self.folder)], capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    def health(self) -> Health | None:
        return read_health(self.device.folder)

    def power_cut(self) -> None:
        """Kill the service manager and the device at once."""
        try:
            keeper = int((self.folder / "service.pid").read_text())
        except OSError:
            return  # stopped at that moment
        # They are a session of their own, see service_program.
        with suppress(ProcessLookupError):
            os.killpg(keeper, signal.SIGKILL)
        wait_until(lambda: self.health() is None, what="the end of the device")
        (self.folder / "service.pid").unlink()

    def journal(self) -> Journal:
        return JournalFile(self.folder / "updater" / "journal.json").read()

    def wait_connected(self, *versions: str) -> None:
        """Until a device of one of these versions is connected."""

        def is_well() -> bool:
            health = self.health()
            return health is not None and health.version in versions and health.connected

        wait_until(is_well, WAIT_S, what=f"a connected device of version {versions}")

    @contextmanager
    def running(self) -> Iterator[Board]:
        self.service("start")
        try:
            yield self
        finally:
            self.service("stop")


class Site(NamedTuple):
    """One board and what it is connected to."""

    board: Board
    publisher: Publisher
    server: RangeServer
    open_miners: Callable[[], FakeMiners]


Wheels = Mapping[str, Path]
"""Folder of wheels by the name of the release."""
