"""The rules of an upgrade without any I/O: which board takes what, when a release is well, what the journal allows."""

from dataclasses import replace
from pathlib import Path

import pytest

from edge_sdk.errors import CorruptStoreError, UpgradeRefusedError
from edge_sdk.protocol.ids import DeviceId
from edge_sdk.upgrade.journal import ATTEMPTS_MAX, HELD_MAX, Journal, JournalFile, Phase
from edge_sdk.upgrade.offer import Board, Pass, consider
from edge_sdk.upgrade.release import Release, WheelSet, read_release
from edge_sdk.upgrade.trial import CRASHES_MAX, Seen, Trial, Verdict

DEVICES = [DeviceId(f"board-{number}") for number in range(2_000)]
SET = WheelSet("3.13", "aarch64", ("edge_flchain-0.2.0-py3-none-any.whl",), 1_000)
RELEASE = Release(number=7, version="0.2.0", percent=100, boards=(), state_schema=1, sets=(SET,))
BOARD = Board(DeviceId("board-1"), "rpi-5", "3.13", "aarch64", 1)


def test_release_survives_its_bytes() -> None:
    assert read_release(RELEASE.encoded()) == RELEASE


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"format":1', b'"format":2'),
        (b'"release":7', b'"release":0'),
        (b'"percent":100', b'"percent":101'),
        (b'"percent":100', b'"percent":true'),
        (b'"version":"0.2.0"', b'"version":""'),
        (b'"sets":[', b'"sets":[1,'),
    ],
)
def test_release_that_is_none_is_refused(old: bytes, new: bytes) -> None:
    data = RELEASE.encoded()
    assert old in data
    with pytest.raises(UpgradeRefusedError) as caught:
        read_release(data.replace(old, new))
    assert caught.value.reason == "malformed"


def test_percentage_is_that_share_of_the_fleet_and_only_grows() -> None:
    members: set[DeviceId] = set()
    for percent in (0, 1, 10, 50, 99, 100):
        release = replace(RELEASE, percent=percent)
        chosen = {device for device in DEVICES if release.includes(device)}
        assert members <= chosen
        assert abs(len(chosen) / len(DEVICES) - percent / 100) < 0.04
        members = chosen
    assert len(members) == len(DEVICES)


def test_another_release_begins_with_other_boards() -> None:
    first, second = (
        {device for device in DEVICES if replace(RELEASE, number=number, percent=10).includes(device)}
        for number in (1, 2)
    )
    assert len(first & second) < len(first) / 2


@pytest.mark.parametrize(
    ("release", "board", "why"),
    [
        (RELEASE, replace(BOARD, python="3.11"), "no wheels for Python 3.11 on aarch64"),
        (RELEASE, replace(BOARD, machine="armv7l"), "no wheels for Python 3.13 on armv7l"),
        (replace(RELEASE, boards=("rpi-4b",)), BOARD, "for rpi-4b, this board is rpi-5"),
        (replace(RELEASE, boards=("rpi-4b",)), replace(BOARD, profile=None), "of no profile"),
        (replace(RELEASE, percent=0), BOARD, "0 % of the fleet"),
    ],
)
def test_release_for_others_is_passed(release: Release, board: Board, why: str) -> None:
    found = consider(release, board, floor=6, held={})
    assert isinstance(found, Pass)
    assert why in found.why


def test_order_of_releases() -> None:
    assert consider(RELEASE, BOARD, floor=6, held={}) == SET
    assert consider(RELEASE, BOARD, floor=7, held={}) == Pass("release 7 (0.2.0) is installed")
    assert consider(RELEASE, BOARD, floor=6, held={"7": "it crashed"}) == Pass(
        "release 7 (0.2.0) failed here before: it crashed"
    )
    with pytest.raises(UpgradeRefusedError, match="older than release 8"):
        consider(RELEASE, BOARD, floor=8, held={})


def test_state_that_the_running_client_could_not_read_is_refused() -> None:
    with pytest.raises(UpgradeRefusedError, match="could not go on") as caught:
        consider(replace(RELEASE, state_schema=2), BOARD, floor=0, held={})
    assert caught.value.reason == "state"


def look(*seen: tuple[float, str, int | None, int]) -> Verdict:
    """Judge a trial that began at 0 s, of 10 s health and 100 s at most."""
    trial, verdict = Trial(0.0, 10.0, 100.0), Verdict.OPEN
    for now_s, state, pid, sessions in seen:
        assert verdict is Verdict.OPEN
        trial, verdict = trial.look(Seen(state, pid, sessions), now_s)
    return verdict


@pytest.mark.parametrize(
    ("seen", "verdict"),
    [
        ([(1, "activating", None, 0), (3, "active", 5, 0), (5, "active", 5, 1), (14.9, "active", 5, 1)], Verdict.OPEN),
        ([(1, "activating", None, 0), (3, "active", 5, 0), (5, "active", 5, 1), (15, "active", 5, 1)], Verdict.GOOD),
        # Another process has to be well for itself.
        ([(1, "active", 5, 1), (9, "active", 6, 1), (12, "active", 6, 1)], Verdict.OPEN),
        ([(1, "active", 5, 1), (9, "active", 6, 1), (19, "active", 6, 1)], Verdict.GOOD),
        ([(1, "failed", None, 0)], Verdict.CRASHED),
        ([(1, "activating", None, 0), (100, "activating", None, 0)], Verdict.CRASHED),
        ([(1, "active", 5, 0), (100, "active", 5, 0)], Verdict.UNWELL),
        ([(1, "active", 5, 0), (2, "active", 6, 0), (3, "active", 7, 0), (4, "active", 8, 0)], Verdict.CRASHED),
        # One crash seen twice, as a restart and as another process, is one crash.
        (
            [
                *((1, "active", 5, 1), (2, "restarting", None, 0), (3, "active", 6, 1)),
                *((4, "restarting", None, 0), (5, "active", 7, 1)),
            ],
            Verdict.OPEN,
        ),
    ],
)
def test_trial(seen: list[tuple[float, str, int | None, int]], verdict: Verdict) -> None:
    assert CRASHES_MAX == 3
    assert look(*seen) is verdict


def test_journal_goes_through_its_phases() -> None:
    trial = Journal(floor=6).begin_trial(7, "0.2.0", slot="b", former="a").count_trial()
    assert (trial.phase, trial.trials) == (Phase.TRIAL, 1)
    done = trial.decide_commit().settle()
    assert (done.phase, done.floor, done.held) == (Phase.IDLE, 7, {})
    back = trial.decide_rollback("it crashed", is_final=True).settle()
    assert (back.phase, back.floor, back.held) == (Phase.IDLE, 6, {"7": "it crashed"})


def test_reason_that_may_pass_holds_a_release_only_after_some_attempts() -> None:
    journal = Journal(floor=6)
    for attempt in range(1, ATTEMPTS_MAX + 1):
        journal = journal.begin_trial(7, "0.2.0", slot="b", former="a").count_trial()
        journal = journal.decide_rollback("no connection", is_final=False).settle()
        assert bool(journal.held) is (attempt == ATTEMPTS_MAX)


def test_held_releases_are_bounded() -> None:
    journal = Journal()
    for number in range(1, 2 * HELD_MAX):
        journal = journal.failed(number, "it crashed", is_final=True)
    assert len(journal.held) == HELD_MAX
    assert str(2 * HELD_MAX - 1) in journal.held


def test_journal_file(tmp_path: Path) -> None:
    file = JournalFile(tmp_path / "journal.json")
    assert file.read() == Journal()
    trial = Journal(floor=6).failed(5, "no", is_final=True).begin_trial(7, "0.2.0", slot="b", former="a")
    file.write(trial)
    assert file.read() == trial


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"{}", b'{"format": 2}', b'{"format": 1, "phase": "x"}', b"\xff"])
def test_damaged_journal_stops_the_updater(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "journal.json").write_bytes(data)
    with pytest.raises(CorruptStoreError):
        JournalFile(tmp_path / "journal.json").read()


def test_older_client_goes_on_with_the_journal_of_a_newer_one(tmp_path: Path) -> None:
    """It is published again under a new number to take a bad release back."""
    path = tmp_path / "journal.json"
    JournalFile(path).write(Journal(floor=6))
    path.write_text(path.read_text().replace('"floor"', '"noted_by_a_newer_one": {"x": 1},\n "floor"'))
    assert JournalFile(path).read() == Journal(floor=6)
