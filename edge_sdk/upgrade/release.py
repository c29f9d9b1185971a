"""What a release is and which boards it is for: the target ``release.json``, and where a device stands in its staging.

A release number rises by 1 with each release and never returns, whatever the version of the client is called. A board
keeps the number that it has committed as its floor. Taking a version back is publishing the older client under a new
number.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from edge_sdk.errors import DecodeError, UpgradeRefusedError
from edge_sdk.protocol.ids import DeviceId
from edge_sdk.upgrade.canonical import Json, encode, parse

TARGET_NAME: Final = "release.json"
FORMAT: Final = 1
BYTES_MAX: Final = 64 * 1024
SETS_MAX: Final = 32
WHEELS_MAX: Final = 200
BOARDS_MAX: Final = 64
UNPACKED_BYTES_MAX: Final = 2 * 1024 * 1024 * 1024
PERCENT_MAX: Final = 100
_STAGING_STEPS: Final = 10_000
_TEXT_CHARS_MAX: Final = 200


@dataclass(frozen=True, slots=True)
class WheelSet:
    """Everything that one Python on one processor needs: the client and all that it depends on."""

    python: str
    """``3.13``"""
    machine: str
    """As ``uname -m`` says: ``aarch64``."""
    wheels: tuple[str, ...]
    """Names of targets."""
    unpacked_bytes: int


@dataclass(frozen=True, slots=True)
class Release:
    """One release of the client."""

    number: int
    version: str
    percent: int
    """Of the fleet that takes it now; 0 stops it for boards that have not begun."""
    boards: tuple[str, ...]
    """Board profiles that it is for; empty for all."""
    state_schema: int
    """Schema in which this client writes a device's state."""
    sets: tuple[WheelSet, ...]

    def set_for(self, python: str, machine: str) -> WheelSet | None:
        """The wheels for a board, None where there are none."""
        return next((item for item in self.sets if (item.python, item.machine) == (python, machine)), None)

    def includes(self, device_id: DeviceId) -> bool:
        """Whether a device belongs to the percentage: the same answer each time, and still true when it rises."""
        return staging_place(self.number, device_id) < self.percent * (_STAGING_STEPS // PERCENT_MAX)

    def encoded(self) -> bytes:
        """Bytes of the target."""
        sets: list[Json] = [
            {
                "python": item.python,
                "machine": item.machine,
                "wheels": list(item.wheels),
                "unpacked_bytes": item.unpacked_bytes,
            }
            for item in self.sets
        ]
        return encode(
            {
                "format": FORMAT,
                "release": self.number,
                "version": self.version,
                "percent": self.percent,
                "boards": list(self.boards),
                "state_schema": self.state_schema,
                "sets": sets,
            }
        )


def staging_place(number: int, device_id: DeviceId) -> int:
    """Place of a device in the order in which a release reaches the fleet, 0..9999; another order for each release.

    The first boards must not always be the same ones: they bear the risk.
    """
    digest = hashlib.sha256(f"{number}:{device_id}".encode()).digest()
    return int.from_bytes(digest[:8]) % _STAGING_STEPS


def read_release(data: bytes) -> Release:
    """Read the target ``release.json``; its bytes are verified by then, so a mistake is the publisher's.

    Raises:
        UpgradeRefusedError: it is not a release that this client understands.
    """
    try:
        document = parse(data, bytes_max=BYTES_MAX)
        _integer(document, "format", FORMAT, FORMAT)
        return Release(
            number=_integer(document, "release", 1, 2**31),
            version=_text(document.get("version")),
            percent=_integer(document, "percent", 0, PERCENT_MAX),
            boards=_texts(document, "boards", BOARDS_MAX),
            state_schema=_integer(document, "state_schema", 1, 2**16),
            sets=tuple(map(_wheel_set, _list(document, "sets", SETS_MAX))),
        )
    except DecodeError as error:
        raise UpgradeRefusedError(f"{TARGET_NAME}: {error}", reason="malformed") from error


def _wheel_set(item: Json) -> WheelSet:
    if not isinstance(item, dict):
        raise DecodeError("sets: expected objects")
    return WheelSet(
        python=_text(item.get("python")),
        machine=_text(item.get("machine")),
        wheels=_texts(item, "wheels", WHEELS_MAX),
        unpacked_bytes=_integer(item, "unpacked_bytes", 0, UNPACKED_BYTES_MAX),
    )


def _texts(parent: Mapping[str, Json], name: str, count_max: int) -> tuple[str, ...]:
    return tuple(map(_text, _list(parent, name, count_max)))


def _list(parent: Mapping[str, Json], name: str, count_max: int) -> list[Json]:
    found = parent.get(name)
    if not isinstance(found, list) or len(found) > count_max:
        raise DecodeError(f"{name}: expected a list of at most {count_max}")
    return found


def _text(value: Json) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= _TEXT_CHARS_MAX:
        raise DecodeError("expected a short text")
    return value


def _integer(parent: Mapping[str, Json], name: str, low: int, high: int) -> int:
    found = parent.get(name)
    if not isinstance(found, int) or isinstance(found, bool) or not low <= found <= high:
        raise DecodeError(f"{name}: expected an integer in {low}..{high}")
    return found
