"""The software repository of the test, and the two releases that a board meets: a good one and a broken one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Final, Self

from tools.board_test.card import client_wheel
from tools.board_test.edge import HOST_FOR_BOARD, MINERS, Edge, flchain
from tools.board_test.vendor import PYTHON

GOOD_VERSION: Final = "0.2.0"
BROKEN_VERSION: Final = "0.3.0"
# It passes every self-test and dies when the service runs it: what only a trial can find.
BREAKAGE: Final = """
def _broken(_: Device) -> int:
    raise RuntimeError("deliberately broken release")


Device.run = _broken  # type: ignore[method-assign]
"""
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
        """Open what ``found`` made.

        Args:
            folder: Its folder.
            edge: Its first miner serves the repository.
            wheels: Wheelhouse of the board, the client's wheel included.
        """
        self._folder, self._wheels = folder, wheels
        self._repository = folder / "repository"
        self._url = f"http://{HOST_FOR_BOARD}:{edge.port(MINERS[0])}/v1/software"

    @classmethod
    def found(cls, folder: Path, edge: Edge, wheels: Path) -> Self:
        """Make keys and metadata, and tell the miner; before the edge servers start."""
        software = cls(folder, edge, wheels)
        folder.mkdir()
        flchain("upgrade", "init", str(software._repository), "--keys", str(folder / "keys"))
        edge.add_to_section(MINERS[0], "[http]", f"software_dir = {json.dumps(str(software._repository))}")
        return software

    def board_settings(self) -> Path:
        """upgrade.toml with the trust anchor beside it, for ``flchain image customise``."""
        settings = self._folder / "upgrade.toml"
        settings.write_text(SETTINGS.format(url=self._url), encoding="utf-8")
        shutil.copyfile(self._repository / "metadata" / "1.root.json", self._folder / "root.json")
        return settings

    def publish(self, version: str, *, breakage: str = "") -> None:
        """Build a client of that version and publish it for all boards."""
        place = self._folder / f"wheels-{version}"
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(self._wheels, place, ignore=shutil.ignore_patterns("edge_flchain-*"))
        shutil.copy(client_wheel(self._folder, version, breakage=breakage), place)
        repository = str(self._repository)
        flchain("upgrade", "add", repository, "--set", f"{PYTHON}:aarch64={place}")
        flchain("upgrade", "publish", repository, "--keys", str(self._folder / "keys"), "--percent", "100")
