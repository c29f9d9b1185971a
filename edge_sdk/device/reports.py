"""What went wrong, counted by kind and said in the log: each time while it is rare, now and then in a flood.

Who sends a board false messages must not fill its log with them. Kinds come from fixed lists, never from a message.
"""

from __future__ import annotations

import logging
from collections import Counter
from typing import Final

log: Final = logging.getLogger(__name__)

LINES_PER_MINUTE_MAX: Final = 20
"""Of one kind; the rest is counted, and the count is in the next line."""
_MINUTE_MS: Final = 60_000


class Reports:
    """Counts and lines of one process. Used by the loop's thread only."""

    def __init__(self) -> None:
        """Start with nothing to report."""
        self.counts: Counter[str] = Counter()
        self._minute = -1
        self._lines: Counter[str] = Counter()
        self._unsaid: Counter[str] = Counter()

    def add(self, kind: str, text: str, *, now_ms: int, level: int = logging.WARNING) -> None:
        """Count one event, and log it unless this minute has heard enough of its kind.

        Args:
            kind: Dotted name, for instance ``model.refused.quorum``.
            text: For a person.
            now_ms: Monotonic time.
            level: Of the line.
        """
        self.counts[kind] += 1
        minute = now_ms // _MINUTE_MS
        if minute != self._minute:
            self._minute = minute
            self._lines.clear()
        if self._lines[kind] >= LINES_PER_MINUTE_MAX:
            self._unsaid[kind] += 1
            return
        self._lines[kind] += 1
        unsaid = self._unsaid.pop(kind, 0)
        suffix = f" (and {unsaid} more like it before)" if unsaid else ""
        log.log(level, "%s: %s%s", kind, text, suffix)
