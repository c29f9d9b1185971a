"""Is a release for this board, now? Pure: what is offered against what the board is and has decided before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from edge_sdk.errors import UpgradeRefusedError
from edge_sdk.protocol.ids import DeviceId
from edge_sdk.upgrade.release import Release, WheelSet


@dataclass(frozen=True, slots=True)
class Board:
    """What a release is held against."""

    device_id: DeviceId
    profile: str | None
    python: str
    """``3.13``"""
    machine: str
    state_schema: int
    """Newest schema of the device's state that the running client reads."""


@dataclass(frozen=True, slots=True)
class Pass:
    """Nothing to install, and why."""

    why: str


def consider(release: Release, board: Board, *, floor: int, held: Mapping[str, str]) -> WheelSet | Pass:
    """The wheels to install, or why there are none.

    Raises:
        UpgradeRefusedError: the release is older than what runs, or there would be no way back from it.
    """
    name = f"release {release.number} ({release.version})"
    if release.number < floor:
        text = f"{name}: older than release {floor}, which is installed"
        raise UpgradeRefusedError(text, reason="release")
    if release.number == floor:
        return Pass(f"{name} is installed")
    reason = held.get(str(release.number))
    if reason is not None:
        return Pass(f"{name} failed here before: {reason}")
    if release.boards and board.profile not in release.boards:
        return Pass(f"{name} is for {', '.join(release.boards)}, this board is {board.profile or 'of no profile'}")
    found = release.set_for(board.python, board.machine)
    if found is None:
        return Pass(f"{name} has no wheels for Python {board.python} on {board.machine}")
    if not release.includes(board.device_id):
        return Pass(f"{name} is for {release.percent} % of the fleet by now, and not yet for this board")
    if release.state_schema > board.state_schema:
        text = f"{name}: writes state of schema {release.state_schema}, the client that runs reads {board.state_schema}"
        raise UpgradeRefusedError(
            f"{text}; after a rollback it could not go on: publish a release that reads both before", reason="state"
        )
    return found
