"""Progress for people: bytes, MB/s and time left; one line that is rewritten on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, TextIO

from firmware_profiles.flash.survey import Advance

TERMINAL_PERIOD_S: Final = 0.25
PLAIN_PERIOD_S: Final = 5.0
MEGA: Final = 10**6


class Progress:
    """Counts the bytes of one phase after the other and writes where they stand."""

    def __init__(self, output: TextIO | None, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Write to ``output``; to nothing when None."""
        self._output = output
        self._clock = clock
        self._is_terminal = output is not None and output.isatty()
        self._period_s = TERMINAL_PERIOD_S if self._is_terminal else PLAIN_PERIOD_S

    def phase(self, name: str, total_bytes: int) -> Advance:
        """Begin a phase; the total is 0 when it is not known."""
        start_s = self._clock()
        done, shown_s = 0, start_s

        def advance(count: int) -> None:
            nonlocal done, shown_s
            done += count
            now_s = self._clock()
            is_last = done == total_bytes
            if is_last or now_s - shown_s >= self._period_s:
                shown_s = now_s
                self._show(line(name, done, total_bytes, now_s - start_s), is_last=is_last)

        return advance

    def _show(self, text: str, *, is_last: bool) -> None:
        if self._output is None:
            return
        if self._is_terminal:
            self._output.write(f"\r\x1b[K{text}" + ("\n" if is_last else ""))
        else:
            self._output.write(f"{text}\n")
        self._output.flush()


def line(name: str, done_bytes: int, total_bytes: int, elapsed_s: float) -> str:
    """One line: ``writing 12.0 of 48.0 MB (25 %), 6.0 MB/s, 6 s left``."""
    rate = done_bytes / elapsed_s if elapsed_s > 0 else 0.0
    speed = f"{rate / MEGA:.1f} MB/s" if rate else "- MB/s"
    if not total_bytes:
        return f"{name} {done_bytes / MEGA:.1f} MB, {speed}"
    share = 100 * done_bytes // total_bytes
    left = f"{round((total_bytes - done_bytes) / rate)} s left" if rate else "? s left"
    return f"{name} {done_bytes / MEGA:.1f} of {total_bytes / MEGA:.1f} MB ({share} %), {speed}, {left}"
