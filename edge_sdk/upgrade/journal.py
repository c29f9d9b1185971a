"""What the updater has decided, durable before it is done: the state machine of an upgrade, and its file.

::

    IDLE ----- begin_trial -----> TRIAL ----- decide_commit -----> COMMIT ----- settle -----> IDLE
                                    |                                              (floor raised)
                                    +------- decide_rollback ----> ROLLBACK --- settle -----> IDLE
                                                                                  (release held)

Everything before TRIAL happens beside the software that runs and may be cut off anywhere. From TRIAL on the journal,
not the links, says what holds: whoever comes next, after a crash or a power cut, repeats the step that it names.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields, replace
from enum import StrEnum
from pathlib import Path
from typing import Final

from edge_sdk.adapters.durable_files import read_file, write_file
from edge_sdk.errors import CorruptStoreError

FORMAT: Final = 1
TRIALS_MAX: Final = 3
"""Starts of one trial: a release that takes the power or the updater with it must not be tried for ever."""
ATTEMPTS_MAX: Final = 3
"""Trials of one release that ended for a reason which may pass, such as no connection."""
HELD_MAX: Final = 32
_BYTES_MAX: Final = 64 * 1024


class Phase(StrEnum):
    """Where an upgrade stands."""

    IDLE = "idle"
    TRIAL = "trial"
    COMMIT = "commit"
    ROLLBACK = "rollback"


@dataclass(frozen=True, slots=True, kw_only=True)
class Journal:
    """One state; methods give the next one."""

    phase: Phase = Phase.IDLE
    floor: int = 0
    """Highest release ever committed: nothing at or below it is installed."""
    release: int = 0
    version: str = ""
    slot: str = ""
    """Environment of the release on trial."""
    former: str = ""
    """Environment to return to."""
    trials: int = 0
    boots: int = 0
    """Starts of the board within the trial."""
    reason: str = ""
    """Why it is rolled back."""
    is_final: bool = False
    """Whether that reason holds the release for good."""
    attempts: dict[str, int] = field(default_factory=dict)
    held: dict[str, str] = field(default_factory=dict)
    """Release number -> why this board does not take it any more."""

    def begin_trial(self, release: int, version: str, *, slot: str, former: str) -> Journal:
        """From now on the new environment is the one to start."""
        assert self.phase is Phase.IDLE, self.phase
        return replace(
            self,
            phase=Phase.TRIAL,
            release=release,
            version=version,
            slot=slot,
            former=former,
            trials=0,
            boots=0,
            reason="",
        )

    def count_trial(self) -> Journal:
        """One more start of the trial."""
        assert self.phase is Phase.TRIAL, self.phase
        return replace(self, trials=self.trials + 1)

    def count_boot(self) -> Journal:
        """One more start of the board, before the release on trial starts with it."""
        assert self.phase is Phase.TRIAL, self.phase
        return replace(self, boots=self.boots + 1)

    def decide_commit(self) -> Journal:
        """The release stays."""
        assert self.phase is Phase.TRIAL, self.phase
        return replace(self, phase=Phase.COMMIT)

    def decide_rollback(self, reason: str, *, is_final: bool) -> Journal:
        """The former environment returns."""
        assert self.phase is Phase.TRIAL, self.phase
        return replace(self, phase=Phase.ROLLBACK, reason=reason, is_final=is_final)

    def settle(self) -> Journal:
        """What was decided is done."""
        match self.phase:
            case Phase.COMMIT:
                return Journal(floor=self.release, release=self.release, version=self.version)
            case Phase.ROLLBACK:
                return self.failed(self.release, self.reason, is_final=self.is_final)
            case _:
                raise AssertionError(self.phase)

    def failed(self, release: int, reason: str, *, is_final: bool) -> Journal:
        """Count a failure of a release, and hold it when there is no use in trying again."""
        key = str(release)
        count = self.attempts.get(key, 0) + 1
        held = self.held
        if is_final or count >= ATTEMPTS_MAX:
            held = dict([*held.items(), (key, reason)][-HELD_MAX:])
        return Journal(floor=self.floor, attempts={key: count}, held=held)


class JournalFile:
    """The file; each write is on the disk when it returns."""

    def __init__(self, path: Path) -> None:
        """Name the file."""
        self._path = path

    def read(self) -> Journal:
        """The last state; a new one where there is no file.

        Raises:
            CorruptStoreError: it is damaged. Nothing is guessed: the links of the environments stand as they are.
        """
        data = read_file(self._path, bytes_max=_BYTES_MAX)
        if data is None:
            return Journal()
        try:
            document = json.loads(data)
            if document.pop("format") != FORMAT:
                raise CorruptStoreError(f"{self._path}: of another version of the updater")
            # A newer updater may have noted more; an older client that is published again must find its way on.
            known = {item.name: document[item.name] for item in fields(Journal) if item.name in document}
            journal = Journal(**known | {"phase": Phase(document["phase"])})
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise CorruptStoreError(f"{self._path}: damaged: {error}") from error
        numbers: tuple[object, ...] = (journal.floor, journal.release, journal.trials, journal.boots)
        if not all(isinstance(number, int) for number in numbers):
            raise CorruptStoreError(f"{self._path}: damaged: a number is none")
        return journal

    def write(self, journal: Journal) -> Journal:
        """Make a state the last one."""
        write_file(self._path, json.dumps({"format": FORMAT, **asdict(journal)}, indent=1).encode())
        return journal
