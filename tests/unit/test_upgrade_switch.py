"""The device runs again after every switch of its software, also where the disk or a person comes in between."""

import shutil
from pathlib import Path

import pytest

from edge_sdk.cli import main
from edge_sdk.errors import StoreError
from edge_sdk.upgrade import updater
from edge_sdk.upgrade.environments import COMMITTED, CURRENT
from edge_sdk.upgrade.journal import TRIALS_MAX, Journal, Phase
from edge_sdk.upgrade.updater import STOPPED, Updater
from tests.support.small_release import SmallBoard, publish_small
from tests.support.software import Publisher, RangeServer

ON_TRIAL = Journal().begin_trial(1, "0.2.0", slot="b", former="a")


@pytest.fixture
def board(tmp_path: Path) -> SmallBoard:
    """A board with nobody to ask: what is tested here is past that."""
    return SmallBoard(tmp_path, Publisher(tmp_path / "operator"), "http://nobody.test")


@pytest.fixture
def trial(board: SmallBoard, monkeypatch: pytest.MonkeyPatch) -> SmallBoard:
    """The same board in a trial that the power has cut off."""
    monkeypatch.setattr(updater, "LOOK_S", 0.01)
    shutil.copytree(board.environments.path("a"), board.environments.path("b"), symlinks=True)
    board.loaded.state_dir.mkdir()
    board.journal_file.write(ON_TRIAL)
    return board


@pytest.mark.parametrize("phase", [Phase.TRIAL, Phase.ROLLBACK])
def test_link_that_cannot_be_moved_leaves_a_board_that_runs(trial: SmallBoard, phase: Phase) -> None:
    if phase is Phase.ROLLBACK:
        trial.journal_file.write(ON_TRIAL.decide_rollback("it crashed", is_final=True))
    (trial.environments.folder / "current.new").mkdir()  # in the way of every new link
    with pytest.raises(StoreError, match="current"):
        Updater(trial.loaded).run()
    assert trial.calls() == ["stop", "start"]
    assert trial.journal_file.read().phase is phase


def test_failed_release_is_taken_back_without_room_for_the_decision(trial: SmallBoard) -> None:
    trial.state.write_text("failed")
    trial.environments.point(CURRENT, "b")
    trial.say_health(prefix=trial.environments.path("b"))
    waiting = Updater(trial.loaded)
    waiting._journal = ON_TRIAL.count_trial()
    (trial.loaded.state_dir / "journal.json.tmp").mkdir()  # in the way of every new journal
    with pytest.raises(StoreError, match=r"journal\.json"):
        waiting._watch()
    assert {trial.environments.target(link) for link in (CURRENT, COMMITTED)} == {"a"}
    assert trial.calls() == ["stop", "start"]


def test_release_that_keeps_the_board_from_coming_up_is_taken_back(trial: SmallBoard) -> None:
    """The board goes down before the timer fires, boot after boot: only what runs before the device can end that."""
    trial.environments.point(CURRENT, "b")
    trial.journal_file.write(ON_TRIAL.count_trial())
    for _ in range(TRIALS_MAX - 1):
        assert main(["upgrade", "--config", str(trial.config), "--before-device"]) == 0
        assert trial.environments.target(CURRENT) == "b"
    assert main(["upgrade", "--config", str(trial.config), "--before-device"]) == 1
    assert trial.environments.target(CURRENT) == "a"
    assert trial.calls() == []  # the device has not started yet, and nobody waits for it
    trial.say_health(prefix=trial.environments.path("a"))
    assert Updater(trial.loaded).run().text == "release 1 is rolled back: the board went down 3 times on trial"
    assert trial.calls() == []
    assert list(trial.journal_file.read().held) == ["1"]


@pytest.mark.parametrize("journal", [Journal(floor=3), ON_TRIAL.count_trial().decide_commit()])
def test_boot_without_a_trial_changes_nothing(trial: SmallBoard, journal: Journal) -> None:
    trial.journal_file.write(journal)
    assert main(["upgrade", "--config", str(trial.config), "--before-device"]) == 0
    assert trial.journal_file.read() == journal
    assert trial.environments.target(CURRENT) == "a"


def test_device_that_is_stopped_during_the_self_test_is_left_alone(tmp_path: Path) -> None:
    publisher = Publisher(tmp_path / "operator")
    server = RangeServer(publisher.path)
    with server.running():
        board = SmallBoard(tmp_path, publisher, server.url)
        stop = f"open({str(board.state)!r}, 'w').write('inactive')\n"
        good = 'print(\'{"version": "0.2.0", "state_schema": 1}\')\n'
        publish_small(publisher, tmp_path / "wheels", probe=stop + good, extra={})
        assert Updater(board.loaded).run() == STOPPED
    assert board.calls() == []
    assert board.journal_file.read() == Journal()
