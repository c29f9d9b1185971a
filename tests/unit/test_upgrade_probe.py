"""The self-test of a new client holds the updater to account too: a release that broke it would be the last one."""

import os
import sys
from pathlib import Path

import pytest

from edge_sdk.upgrade.probe import main
from tests.support.small_release import DEVICE
from tests.support.software import Publisher


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    (tmp_path / "device.toml").write_text(DEVICE)
    (tmp_path / "root.json").write_bytes(Publisher(tmp_path / "operator").anchor.read_bytes())
    (tmp_path / "upgrade.toml").write_text('[upgrade]\nurls = ["http://miner:8080"]\n')
    return [str(tmp_path / "device.toml"), str(tmp_path / "upgrade.toml")]


def test_board_that_is_not_enrolled_has_a_client_and_an_updater(
    files: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(files) == 0
    assert '"checks": ["imports", "configuration", "updater"]' in capsys.readouterr().out
    assert main(files[:1]) == 0  # called by an updater that knows of no second file
    assert '"checks": ["imports", "configuration"]' in capsys.readouterr().out


def test_updater_that_cannot_be_loaded_fails(
    files: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "edge_sdk.cli_upgrade", raising=False)
    monkeypatch.setitem(sys.modules, "edge_sdk.upgrade.updater", None)
    assert main(files) == 1
    assert "edge_sdk.upgrade.updater" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [("upgrade.toml", "[upgrade]\nurls = []\n", "urls = []"), ("root.json", "{}", "signed: expected an object")],
)
def test_updater_that_cannot_use_what_the_board_has_fails(
    files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, text: str, why: str
) -> None:
    (tmp_path / name).write_text(text)
    assert main(files) == 1
    assert why in capsys.readouterr().err


@pytest.mark.parametrize("name", ["upgrade.toml", "root.json"])
def test_file_that_only_root_may_read_is_not_held_against_the_release(
    files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / name).write_text("unreadable")
    allowed = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != name and allowed(path, mode))
    assert main(files) == 0
