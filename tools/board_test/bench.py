"""The test bench: one board, its card, and the edge servers that it talks to. All acts share it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from edge_sdk.adapters.system_clock import SystemClock
from tools.board_test.edge import Edge
from tools.board_test.machine import Hardware, Machine
from tools.board_test.shell import BoardError
from tools.board_test.software import Software

STATE: Final = "/var/lib/flchain"
RECORD: Final = f"{STATE}/run.jsonl"
PROGRAM: Final = "/opt/flchain/current/bin/flchain"
TRAINING_S: Final = 600.0


@dataclass(kw_only=True)
class Bench:
    """Leaving the context cuts the board's power."""

    folder: Path
    edge: Edge
    software: Software
    card: Path
    kernel: Path
    device_id: str
    memory_mib: int
    cpu: str
    facts: dict[str, Any] = field(default_factory=dict)
    _machine: Machine | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._machine is not None:
            self._machine.kill()

    @property
    def board(self) -> Machine:
        """The board, which answers; switched on when it is off."""
        if self._machine is None:
            return self.power_on()
        return self._machine

    @property
    def is_on(self) -> bool:
        """Whether it is switched on."""
        return self._machine is not None

    def power_on(self, *, clock: str = "utc") -> Machine:
        """Switch the board on and wait until it answers; its console log is ``boot-N/console.log``.

        Raises:
            BoardError: it does not.
        """
        assert self._machine is None
        hardware = Hardware(kernel=self.kernel, disk=self.card, memory_mib=self.memory_mib, cpu=self.cpu, clock=clock)
        count = len(list(self.folder.glob("boot-*"))) + 1
        self._machine = Machine(hardware, self.folder / f"boot-{count}")
        self._machine.wait_for_shell()
        return self._machine

    def cut_power(self) -> None:
        """Nothing that the board had not written yet gets onto its card."""
        if self._machine is not None:
            self._machine.kill()
        self._machine = None

    def power_off(self) -> None:
        """Shut the board down in order.

        Raises:
            BoardError: it does not end.
        """
        if self._machine is not None:
            self._machine.power_off()
        self._machine = None

    def status(self) -> dict[str, Any]:
        """What the device says of itself."""
        said = self.board.shell.run(f"{PROGRAM} device status --config {STATE}/device.toml")
        document: dict[str, Any] = json.loads(said)
        return document

    def version_of_client(self) -> str:
        """What the installed client says."""
        return self.board.shell.run(f"{PROGRAM} --version").strip()

    def first_merge(self) -> None:
        """Wait until an update of the board is merged, and the board runs what came of it."""
        self.edge.until(lambda: self.edge.version() >= 1, "version 1", timeout_s=TRAINING_S)
        self.board.shell.until(
            f'grep -q \'"phase":"install"\' {RECORD}', "a certified model runs", timeout_s=TRAINING_S
        )

    def one_more(self) -> str:
        """Wait until an update that the board makes from now on has its certified outcome; what became of it.

        Of a model that has learnt all there is, miners refuse many updates: either verdict shows that the board trains.
        The board's record is asked with sed: starting Python on the board takes the time of a job.
        """
        size = int(self.board.shell.run(f"stat -c %s {RECORD}"))
        new = f"tail -c +{size + 1} {RECORD}"
        made = f'{new} | sed -n \'s/.*"phase":"make_update".*"update":"\\([0-9a-f]*\\)".*/\\1/p\' | head -n 1'
        line = self.board.shell.until(
            f'made=$({made}); test -n "$made" && {new} | grep -a \'"phase":"outcome"\' | grep -a -m 1 "$made"',
            "an update is made and judged",
            timeout_s=TRAINING_S,
        )
        outcome = json.loads(line)
        return str(outcome["verdict"]) if outcome["reason"] == "none" else f"{outcome['verdict']}: {outcome['reason']}"

    def set_clock(self) -> None:
        """Give the board the time of this machine, as a time server would."""
        self.board.shell.run(f"date -s @{SystemClock().time_s()}")


def check(holds: bool, what: str) -> None:  # noqa: FBT001 - reads like the sentence that it is
    """What must be true of the board.

    Raises:
        BoardError: it is not.
    """
    if not holds:
        raise BoardError(what)
