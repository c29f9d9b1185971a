"""Logging as JSON lines on standard error, where systemd or a supervisor collects it."""

from __future__ import annotations

import json
import logging
import sys
from typing import Final

TEXT_CHARS_MAX: Final = 2_000


class JsonLines(logging.Formatter):
    """One object per record: time in seconds since 1970, level, logger, text."""

    def format(self, record: logging.LogRecord) -> str:
        """Write a record on one line; a traceback becomes part of the text."""
        text = record.getMessage()
        if record.exc_info is not None:
            text += "\n" + self.formatException(record.exc_info)
        line = {
            "time_s": round(record.created, 3),
            "level": record.levelname.lower(),
            "logger": record.name,
            "text": text[:TEXT_CHARS_MAX],
        }
        return json.dumps(line)


def log_to_stderr(*, level: int) -> None:
    """Send all logs of this process to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
