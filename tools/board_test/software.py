"""The software repository of the test, and the two releases that a board meets: a good one and a broken one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Final

from tools.board_test.card import client_wheel
from tools.board_test.edge import HOST_FOR_BOARD, MINERS, Edge, flchain
from tools.board_test.machine import Machine
from tools.board_test.shell import BoardError
from tools.board_test.vendor import PYTHON

GOOD_VERSION: Final = "0.2.0"
BROKEN_VERSION: Final = "0.3.0"
# It passes every self-test and dies when the service runs it: what only a trial can find.
BREAKAGE: Final = """
def _broken(_: Device) -> int:
    raise RuntimeError("deliberately broken release")


Device.run = _broken  # type: ignore[method-assign]
"""
UPGRADE_S: Final = 1800.0
UNIT: Final = "flchain-upgrade.service"
SETTINGS: Final = """\
[upgrade]
urls = ["{url}"]
root_file = "root.json"

# Short, because this is a test; the defaults are for boards that nobody watches.
[trial]
healthy_s = 20
limit_s = 900
quiet_wait_s = 900
"""


class Software:
    """A repository on this machine, served by the first miner."""

    def __init__(self, folder: Path, edge: Edge, wheels: Path) -> None:
        """Make keys and metadata, and tell the miner; before the edge servers start.

        Args:
            folder: New folder.
            edge: Its first miner serves the repository.
            wheels: Wheelhouse of the board, the client's wheel included.
        """
        self._folder, self._wheels = folder, wheels
        self.repository = folder / "repository"
        folder.mkdir()
        flchain("upgrade", "init", str(self.repository), "--keys", str(folder / "keys"))
        edge.add_to_section(MINERS[0], "[http]", f"software_dir = {json.dumps(str(self.repository))}")
        self._url = f"http://{HOST_FOR_BOARD}:{edge.port(MINERS[0])}/v1/software"

    def board_settings(self) -> Path:
        """upgrade.toml with the trust anchor beside it, for ``flchain image customise``."""
        settings = self._folder / "upgrade.toml"
        settings.write_text(SETTINGS.format(url=self._url), encoding="utf-8")
        shutil.copyfile(self.repository / "metadata" / "1.root.json", self._folder / "root.json")
        return settings

    def publish(self, version: str, *, breakage: str = "") -> None:
        """Build a client of that version and publish it for all boards."""
        place = self._folder / f"wheels-{version}"
        shutil.copytree(self._wheels, place, ignore=shutil.ignore_patterns("edge_flchain-*"))
        shutil.copy(client_wheel(self._folder, version, breakage=breakage), place)
        repository = str(self.repository)
        flchain("upgrade", "add", repository, "--set", f"{PYTHON}:aarch64={place}")
        flchain("upgrade", "publish", repository, "--keys", str(self._folder / "keys"), "--percent", "100")


def upgrade_once(board: Machine) -> tuple[dict[str, Any], str]:
    """Let the board look for a release until its updater has decided; its status and its log."""
    # The timer may be running it already: then this waits for the same pass.
    board.shell.try_run(f"systemctl start {UNIT}", timeout_s=UPGRADE_S)
    status, text = board.shell.try_run(
        "/opt/flchain/committed/bin/flchain device upgrade --config /etc/flchain/upgrade.toml --status"
    )
    if status != 0:
        raise BoardError(f"flchain device upgrade --status: {text}")
    log = board.shell.run(f"journalctl --no-pager --quiet -o cat -u {UNIT}")
    document: dict[str, Any] = json.loads(text)
    return document, log
