"""A board and a release so small that one pass of the updater takes a fraction of a second.

The release is one wheel with a self-test of its own; it is signed as any other one, but no pip has looked at it.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
from pathlib import Path
from typing import Final

from tuf.api.metadata import TargetFile

from coordinator.upgrades.keys import KeyRing
from coordinator.upgrades.repository import Repository
from edge_sdk.upgrade.config import UpgradeConfig
from edge_sdk.upgrade.environments import COMMITTED, CURRENT, Environments
from edge_sdk.upgrade.journal import JournalFile
from edge_sdk.upgrade.release import TARGET_NAME, Release, WheelSet
from tests.support.software import PYTHON, Publisher, pack_wheel

GOOD_TEST: Final = """import json
print(json.dumps({"version": "0.2.0", "state_schema": 1, "checks": []}))
"""
DEVICE: Final = '[device]\nid = "board-1"\ntask = "t"\ndata = "x"\n[[broker]]\nhost = "b"\n'


def publish_small(publisher: Publisher, folder: Path, *, probe: str = GOOD_TEST, extra: dict[str, bytes]) -> Path:
    """Sign a release whose self-test is this program; its only wheel."""
    info = "edge_flchain-0.2.0.dist-info"
    files = {
        "edge_sdk/__init__.py": b"",
        "edge_sdk/upgrade/__init__.py": b"",
        "edge_sdk/upgrade/probe.py": probe.encode(),
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: edge-flchain\nVersion: 0.2.0\n",
        **extra,
    }
    wheel = pack_wheel(folder, "edge_flchain", "0.2.0", files)
    wheels = WheelSet(PYTHON, platform.machine(), (wheel.name,), 1_000_000)
    repository = Repository(publisher.path)
    release = Release(number=1, version="0.2.0", percent=100, boards=(), state_schema=1, sets=(wheels,))
    targets = {}
    for name, data in ((wheel.name, wheel.read_bytes()), (TARGET_NAME, release.encoded())):
        (repository.targets_dir / f"{hashlib.sha256(data).hexdigest()}.{name}").write_bytes(data)
        targets[name] = TargetFile.from_data(name, data, ["sha256"])
    repository.publish(KeyRing([publisher.keys]), publisher.times, targets)
    return wheel


class SmallBoard:
    """Folder of a board whose service is three shell commands; ``calls`` holds what was asked of it."""

    def __init__(self, folder: Path, publisher: Publisher, url: str) -> None:
        self.folder = folder
        self.config = folder / "upgrade.toml"
        self.state = folder / "state"
        self._calls = folder / "calls"
        self.environments = Environments(folder / "environments")
        self.journal_file = JournalFile(folder / "updater" / "journal.json")
        environment = folder / "environments" / "a"
        (environment / "bin").mkdir(parents=True)
        (environment / "bin" / "python").symlink_to(sys.executable)
        for link in (CURRENT, COMMITTED):
            self.environments.point(link, "a")
        (folder / "device.toml").write_text(DEVICE)
        (folder / "root.json").write_bytes(publisher.anchor.read_bytes())
        self.state.write_text("active")
        commands = {
            "stop": ["sh", "-c", f"echo stop >>{self._calls}"],
            "start": ["sh", "-c", f"echo start >>{self._calls}"],
            "state": ["cat", str(self.state)],
        }
        lines = "".join(f"{name} = {json.dumps(command)}\n" for name, command in commands.items())
        self.config.write_text(
            f'[upgrade]\nurls = ["{url}"]\ndevice_config = "device.toml"\nenvironments = "environments"\n'
            f'state_dir = "updater"\nuser = "root"\n[service]\n{lines}[trial]\nquiet_wait_s = 0\n'
        )

    @property
    def loaded(self) -> UpgradeConfig:
        return UpgradeConfig.load(self.config)

    def calls(self) -> list[str]:
        """What the service was told, in order."""
        return self._calls.read_text().split() if self._calls.exists() else []

    def say_health(self, *, prefix: Path, connected: bool = True) -> None:
        """A health file in the name of this very process."""
        ticks = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]
        document = {
            "pid": os.getpid(),
            "start_ticks": int(ticks),
            "prefix": str(prefix),
            "version": "0",
            "sessions": 1,
            "connected": connected,
        }
        (self.folder / "health.json").write_text(json.dumps(document))
