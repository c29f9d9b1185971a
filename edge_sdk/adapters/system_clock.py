"""The one reader of the machine's clocks."""

from __future__ import annotations

import time


class SystemClock:
    """Clocks of the operating system (``ports.Clock``)."""

    def monotonic_ns(self) -> int:
        """CLOCK_MONOTONIC: shared by all processes since boot, so that records of several processes fit together."""
        return time.monotonic_ns()

    def time_s(self) -> int:
        """Whole seconds of the calendar clock."""
        return int(time.time())
