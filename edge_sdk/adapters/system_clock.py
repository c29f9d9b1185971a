"""The one reader of the machine's clocks.

``FLCHAIN_CLOCK_OFFSET_S=315360000`` lets a process believe that it is ten years later, negative values earlier: for
tests of what a board with a wrong clock does. Only what this program reads is shifted, not TLS and not log lines.
"""

from __future__ import annotations

import os
import time
from typing import Final

from edge_sdk.errors import ConfigError

OFFSET_VARIABLE: Final = "FLCHAIN_CLOCK_OFFSET_S"


class SystemClock:
    """Clocks of the operating system (``ports.Clock``)."""

    def __init__(self) -> None:
        """Learn how wrong the calendar is to be.

        Raises:
            ConfigError: the variable does not hold whole seconds.
        """
        text = os.environ.get(OFFSET_VARIABLE, "0")
        try:
            self._offset_s = int(text)
        except ValueError as error:
            raise ConfigError(f"environment: {OFFSET_VARIABLE} = {text!r}: expected whole seconds") from error

    def monotonic_ns(self) -> int:
        """CLOCK_MONOTONIC: shared by all processes since boot, so that records of several processes fit together."""
        return time.monotonic_ns()

    def time_s(self) -> int:
        """Whole seconds of the calendar clock."""
        return int(time.time()) + self._offset_s
