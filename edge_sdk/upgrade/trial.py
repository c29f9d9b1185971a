"""Is the new release well? Judged from what is seen of its process; pure, time comes as an argument.

Well means: one process of the new environment has been connected to a broker once and has lived for ``healthy_s``
since. A lost connection afterwards is no fault of the software: links of boards are bad.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from typing import Final

CRASHES_MAX: Final = 3


class Verdict(Enum):
    """What becomes of the release."""

    OPEN = "open"
    GOOD = "good"
    CRASHED = "crashed"
    """For good: it would crash again."""
    UNWELL = "unwell"
    """It never connected; that may pass."""


@dataclass(frozen=True, slots=True)
class Seen:
    """One look at the service."""

    state: str
    """active, activating, restarting, inactive or failed."""
    pid: int | None
    """Process of the new environment that says it is alive; None when there is none."""
    sessions: int
    """Connections that it has had."""


@dataclass(frozen=True, slots=True)
class Trial:
    """A trial between two looks. Times are monotonic seconds."""

    began_s: float
    healthy_s: float
    limit_s: float
    pid: int | None = None
    well_since_s: float | None = None
    crashes: int = 0
    was_restarting: bool = False

    def look(self, seen: Seen, now_s: float) -> tuple[Trial, Verdict]:
        """Take one look into account."""
        is_restart = seen.state == "restarting" and not self.was_restarting
        # The service may restart between two looks; then only the other process shows it.
        is_replaced = seen.pid is not None and self.pid is not None and seen.pid != self.pid
        crashes = self.crashes + (is_restart or is_replaced)
        since_s = None if is_replaced or seen.pid is None else self.well_since_s
        if since_s is None and seen.pid is not None and seen.sessions:
            since_s = now_s
        last_pid = None if is_restart else self.pid
        after = replace(
            self,
            pid=last_pid if seen.pid is None else seen.pid,
            well_since_s=since_s,
            crashes=crashes,
            was_restarting=seen.state == "restarting",
        )
        if seen.state == "failed" or crashes >= CRASHES_MAX:
            return after, Verdict.CRASHED
        if since_s is not None and now_s - since_s >= self.healthy_s:
            return after, Verdict.GOOD
        if now_s - self.began_s >= self.limit_s:
            return after, Verdict.CRASHED if after.pid is None or crashes else Verdict.UNWELL
        return after, Verdict.OPEN
