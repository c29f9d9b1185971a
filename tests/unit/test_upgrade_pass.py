"""One pass of ``flchain device upgrade`` on a board whose link or disk says no: what it asks for, says and leaves."""

import hashlib
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from coordinator.upgrades.repository import Repository
from coordinator.upgrades.staging import published_release
from edge_sdk.adapters.system_clock import OFFSET_VARIABLE
from edge_sdk.cli import main
from edge_sdk.upgrade import updater
from edge_sdk.upgrade.environments import COMMITTED, CURRENT, Environments
from tests.support.software import Publisher, RangeServer, pack_wheel

DAY_S = 86_400
DEVICE = (
    '[device]\nid = "board-1"\ntask = "t"\ndata = "x"\n[[broker]]\nhost = "b"\n[governor]\nmetered_file = "metered"\n'
)
UPGRADE = """
[upgrade]
urls = ["{url}"]
device_config = "device.toml"
environments = "environments"
state_dir = "updater"
[service]
stop = ["false"]
start = ["false"]
state = ["echo", "inactive"]
"""


class Board:
    """A board with one environment and a device that stands still, and the operator's server."""

    def __init__(self, folder: Path, server: RangeServer, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.server, self._capsys = folder, server, capsys
        self.environments = Environments(folder / "environments")

    def upgrade(self) -> tuple[int, str]:
        """One pass; exit status and what it printed."""
        status = main(["upgrade", "--config", str(self.folder / "upgrade.toml")])
        said = self._capsys.readouterr()
        return status, said.out or said.err


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Board]:
    monkeypatch.chdir(tmp_path)
    publisher = Publisher(tmp_path / "operator")
    info = "edge_flchain-0.2.0.dist-info"
    files = {
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: edge-flchain\nVersion: 0.2.0\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "edge_sdk/adapters/outbox.py": b"SCHEMA_VERSION: int = 1\n",
    }
    pack_wheel(tmp_path / "wheels", "edge_flchain", "0.2.0", files)
    publisher.release(tmp_path / "wheels")
    (tmp_path / "device.toml").write_text(DEVICE)
    (tmp_path / "root.json").write_bytes(publisher.anchor.read_bytes())
    environment = tmp_path / "environments" / "a"
    (environment / "bin").mkdir(parents=True)
    (environment / "bin" / "python").symlink_to(sys.executable)
    server = RangeServer(publisher.path)
    board = Board(tmp_path, server, capsys)
    for link in (CURRENT, COMMITTED):
        board.environments.point(link, "a")
    with server.running():
        (tmp_path / "upgrade.toml").write_text(UPGRADE.format(url=server.url))
        yield board


def test_metered_link_is_not_used_at_all(board: Board) -> None:
    (board.folder / "metered").touch()
    assert board.upgrade() == (0, "the link is metered\n")
    assert board.server.requests == []
    (board.folder / "metered").unlink()
    status, said = board.upgrade()
    assert (status, "the device is stopped" in said) == (0, True)
    assert (board.environments.path("b") / "release.json").exists()


def test_link_that_becomes_metered_ends_the_download(board: Board) -> None:
    """Metadata came over the good link; the wheels, which are the bulk, do not come over the dear one."""
    board.server.before_answer = lambda path: (board.folder / "metered").touch() if "release.json" in path else None
    assert board.upgrade() == (0, "the link is metered\n")
    assert not [path for path, _ in board.server.requests if path.endswith(".whl")]
    assert not board.environments.path("b").exists()


@pytest.mark.parametrize("lacks", ["environment", "download"])
def test_full_disk_is_named_before_anything_is_brought(
    board: Board, monkeypatch: pytest.MonkeyPatch, lacks: str
) -> None:
    release = published_release(Repository(board.server.folder))
    assert release is not None
    environment_bytes = round(updater.COMPILED_SHARE * release.sets[0].unpacked_bytes)
    download_bytes = next((board.folder / "wheels").glob("*.whl")).stat().st_size
    enough = updater.SPARE_BYTES + environment_bytes + download_bytes
    free = enough - (environment_bytes if lacks == "environment" else download_bytes)
    with monkeypatch.context() as disk:
        disk.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
        status, said = board.upgrade()
    assert status == 1
    assert f"environments: {free} bytes free, the upgrade needs {enough}" in said
    assert not [path for path, _ in board.server.requests if path.endswith(".whl")]
    assert not board.environments.path("b").exists()
    assert {board.environments.target(link) for link in (CURRENT, COMMITTED)} == {"a"}
    with monkeypatch.context() as disk:
        disk.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=enough))
        assert "the device is stopped" in board.upgrade()[1]


def test_download_that_fills_the_disk_is_given_up(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk had room when it began; what is on it of a wheel would otherwise stay until the disk is free again."""

    def break_wheels(path: str) -> None:
        board.server.break_after_bytes = 600 if path.endswith(".whl") else None

    board.server.before_answer = break_wheels
    free = [10**9, 0]  # at the check of the room; when the download has broken off
    with monkeypatch.context() as disk:
        disk.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free.pop(0)))
        status, said = board.upgrade()
    assert (status, "truncated after 600" in said, free) == (1, True, [])
    wheel = next((board.folder / "wheels").glob("*.whl"))
    part = board.folder / "updater" / "downloads" / hashlib.sha256(wheel.read_bytes()).hexdigest()
    assert not part.exists()
    assert board.upgrade()[0] == 1
    assert part.stat().st_size == 600


def test_silence_is_no_failure_until_what_was_heard_expires(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    """A board is offline now and then; one that nobody has answered for a week may be cut off on purpose."""
    assert board.upgrade()[0] == 0
    board.server.is_silent = True
    status, said = board.upgrade()
    assert (status, "no server can be asked now: http://127.0.0.1" in said) == (0, True)
    monkeypatch.setenv(OFFSET_VARIABLE, str(8 * DAY_S))
    status, said = board.upgrade()
    assert (status, "http://127.0.0.1" in said) == (1, True)


def test_silence_from_the_beginning_is_a_failure(board: Board) -> None:
    """Nothing was ever heard: a URL may be wrong."""
    board.server.is_silent = True
    status, said = board.upgrade()
    assert (status, "http://127.0.0.1" in said) == (1, True)
