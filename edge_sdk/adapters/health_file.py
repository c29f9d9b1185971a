"""``health.json``: what a running device says of itself to whoever watches it on the same board.

The process that wrote it is named by its id and the tick of its start (field 22 of /proc/PID/stat, proc(5)), so a file
that outlived its process, or a reboot, is never taken for a living device. Not synced to the disk: after a power cut it
means nothing.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edge_sdk import __version__

log: Final = logging.getLogger(__name__)

NAME: Final = "health.json"
_BYTES_MAX: Final = 4_096


@dataclass(frozen=True, slots=True)
class Health:
    """A device process that is alive."""

    pid: int
    prefix: Path
    """Environment that it runs from."""
    version: str
    sessions: int
    """Connections to a broker since its start."""
    connected: bool


class HealthFile:
    """Written by the device's loop at its start and whenever the link comes or goes."""

    def __init__(self, work_dir: Path) -> None:
        """Name the file."""
        self._path = work_dir / NAME
        self._sessions = 0

    def write(self, *, connected: bool) -> None:
        """Say how things are; a full disk costs the word, not the device."""
        self._sessions += connected
        document = {
            "pid": os.getpid(),
            "start_ticks": _start_ticks(os.getpid()),
            "prefix": sys.prefix,
            "version": __version__,
            "sessions": self._sessions,
            "connected": connected,
        }
        temporary = self._path.with_suffix(".tmp")
        try:
            temporary.write_text(json.dumps(document), encoding="utf-8")
            temporary.replace(self._path)
        except OSError as error:
            log.warning("%s: %s", self._path, error.strerror)


def read_health(work_dir: Path) -> Health | None:
    """The living device of a folder; None where there is no file, or nobody lives behind it."""
    try:
        # The reader may be root and the folder somebody else's: no link is followed, no pipe waited for.
        descriptor = os.open(work_dir / NAME, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            document = json.loads(file.read(_BYTES_MAX))
    except (OSError, ValueError, RecursionError):
        return None
    match document:
        case {
            "pid": int(pid),
            "start_ticks": int(ticks),
            "prefix": str(prefix),
            "version": str(version),
            "sessions": int(sessions),
            "connected": bool(connected),
        } if pid > 0 and _start_ticks(pid) == ticks:
            return Health(pid, Path(prefix), version[:64], sessions, connected)
        case _:
            return None


def _start_ticks(pid: int) -> int | None:
    """When a process started, in ticks since boot; None when there is none, or it only waits to be reaped."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # The command's name, in parentheses, may hold anything.
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in {"Z", "X"} else int(fields[19])
