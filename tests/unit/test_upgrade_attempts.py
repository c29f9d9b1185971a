"""A release that cannot be built or tested is not tried for ever, whatever its attempts take down with them."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from edge_sdk.errors import ConfigError, UpgradeRefusedError
from edge_sdk.upgrade import updater
from edge_sdk.upgrade.journal import ATTEMPTS_MAX, Journal
from edge_sdk.upgrade.updater import Outcome, Result, Updater
from tests.support.small_release import SmallBoard, publish_small
from tests.support.software import ROOT, Publisher, RangeServer

SPENT = Journal(attempts={"1": ATTEMPTS_MAX - 1})
"""All attempts of release 1 but one."""


@pytest.fixture
def publisher(tmp_path: Path) -> Publisher:
    return Publisher(tmp_path / "operator")


@pytest.fixture
def server(publisher: Publisher) -> Iterator[RangeServer]:
    server = RangeServer(publisher.path)
    with server.running():
        yield server


@pytest.fixture
def board(tmp_path: Path, publisher: Publisher, server: RangeServer) -> SmallBoard:
    return SmallBoard(tmp_path, publisher, server.url)


def pass_of(board: SmallBoard) -> Outcome:
    return Updater(board.loaded).run()


def test_wheels_that_cannot_be_unpacked_hold_their_release(
    publisher: Publisher, board: SmallBoard, tmp_path: Path
) -> None:
    """Otherwise a card would be written with the same environment every hour."""
    publish_small(publisher, tmp_path / "wheels", extra={"../outside.py": b""})
    for _ in range(ATTEMPTS_MAX):
        with pytest.raises(UpgradeRefusedError, match="outside"):
            pass_of(board)
    assert "failed here before: its wheels" in pass_of(board).text
    assert board.calls() == []


def test_self_test_that_ends_the_updater_counts(publisher: Publisher, board: SmallBoard, tmp_path: Path) -> None:
    """The kernel ends both when memory runs out; a brown-out ends the board."""
    kill = f"import os\nos.kill(os.getppid(), {int(signal.SIGKILL)})\n"
    publish_small(publisher, tmp_path / "wheels", probe=kill, extra={})
    board.loaded.state_dir.mkdir()
    board.journal_file.write(SPENT)
    command = [sys.executable, "-m", "edge_sdk.entry", "device", "upgrade", "--config", str(board.config)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=False, timeout=100)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert pass_of(board) == Outcome(Result.NOTHING, "release 1 (0.2.0) failed here before: self-test: it was cut off")


def test_self_test_that_passes_costs_no_attempt(
    publisher: Publisher, board: SmallBoard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(updater, "LOOK_S", 0.01)
    publish_small(publisher, tmp_path / "wheels", extra={})
    board.loaded.state_dir.mkdir()
    board.journal_file.write(SPENT)
    board.state.write_text("failed")  # seen by the first look of the trial
    outcome = pass_of(board)
    assert outcome.text == "release 1 is rolled back: it did not come up"
    # The trial itself was the last one, and for its own reason.
    assert board.journal_file.read() == replace(SPENT, attempts={"1": ATTEMPTS_MAX}, held={"1": "it did not come up"})
    assert board.calls() == ["stop", "start", "stop", "start"]


def test_release_that_is_withdrawn_while_a_job_is_waited_for_is_not_tried(
    publisher: Publisher, board: SmallBoard, server: RangeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job may take hours; 0 % stops a release for every board that has not begun its trial."""
    monkeypatch.setattr(updater, "LOOK_AGAIN_S", -1.0)  # any wait is a long one
    publish_small(publisher, tmp_path / "wheels", extra={})

    def withdraw(path: str) -> None:
        if path.endswith("timestamp.json") and any(name.endswith(".whl") for name, _ in server.requests):
            server.before_answer = None
            publisher.publish(percent=0)

    server.before_answer = withdraw
    assert "is for 0 % of the fleet by now" in pass_of(board).text
    assert board.calls() == []
    assert board.journal_file.read() == Journal()


def test_mistake_in_the_configuration_is_not_held_against_the_release(
    publisher: Publisher, board: SmallBoard, tmp_path: Path
) -> None:
    if os.geteuid():
        pytest.skip("not root: there are no rights to drop")
    publish_small(publisher, tmp_path / "wheels", extra={})
    board.config.write_text(board.config.read_text().replace('user = "root"', 'user = "nobody-of-this-name"'))
    with pytest.raises(ConfigError, match="nobody-of-this-name"):
        pass_of(board)
    assert board.journal_file.read() == Journal()


def test_self_test_may_say_what_is_no_text(publisher: Publisher, board: SmallBoard, tmp_path: Path) -> None:
    probe = "import os\nos.write(2, b'broken \\xff')\nos._exit(1)\n"
    publish_small(publisher, tmp_path / "wheels", probe=probe, extra={})
    assert pass_of(board) == Outcome(Result.FAILED, "release 1 (0.2.0) failed its self-test: broken \ufffd")


def test_self_test_is_given_the_updater_s_configuration_too(
    publisher: Publisher, board: SmallBoard, tmp_path: Path
) -> None:
    publish_small(publisher, tmp_path / "wheels", probe="import sys\nsys.exit(' '.join(sys.argv[1:]))\n", extra={})
    files = f"{tmp_path / 'device.toml'} {tmp_path / 'upgrade.toml'}"
    assert pass_of(board) == Outcome(Result.FAILED, f"release 1 (0.2.0) failed its self-test: {files}")
