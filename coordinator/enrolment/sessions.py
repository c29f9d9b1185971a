"""Finds a card that was copied after its enrolment: two boards with one key take each other's session at the broker.

Every connection of a device has a number that rises, over restarts too: the run of the process times 2^20, plus an
offset that the process draws, plus one for each connection (edge_sdk/device/app.py). A broker lets one of two boards
with the same name in and throws the other out, which connects again; so their numbers alternate. A number that nobody
has seen before and that lies below the highest one cannot come from one board. A message that comes late by way of
another broker can look like that, so it takes ``STRAYS`` different ones.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from edge_sdk.protocol.ids import DeviceId
from edge_sdk.protocol.messages import PublicKey, Status

STRAYS: Final = 3
"""Sessions below the highest one, each seen for the first time after it, that make a copy."""

KNOWN: Final = 16


@dataclass(slots=True)
class _Seen:
    key: PublicKey
    top: int
    known: tuple[int, ...]
    """The last numbers that rose: a repetition of one of them is a status of the same session, sent again."""
    strays: set[int] = field(default_factory=set)


class SessionWatch:
    """Sessions of enrolled devices; one small record for each."""

    def __init__(self) -> None:
        self._seen: dict[DeviceId, _Seen] = {}

    def observe(self, device_id: DeviceId, key: PublicKey, status: Status) -> str | None:
        """Take in a verified status of an enrolled device.

        Returns:
            The evidence that two boards use the key; None while there is none.
        """
        if not status.online:  # a will of an old session may come after the birth of the next one
            return None
        seen = self._seen.get(device_id)
        if seen is None or seen.key != key:
            self._seen[device_id] = _Seen(key, status.session, (status.session,))
            return None
        if status.session >= seen.top:
            seen.top = status.session
            seen.known = (*seen.known[1 - KNOWN :], status.session)
            return None
        if status.session in seen.known:
            return None
        seen.strays.add(status.session)
        if len(seen.strays) < STRAYS:
            return None
        del self._seen[device_id]
        return f"sessions {_shown(seen.strays)} began after session {seen.top}"


def _shown(sessions: set[int]) -> str:
    return ", ".join(str(session) for session in sorted(sessions))
