"""Logs as JSON lines on standard error: one object per record, whatever a peer managed to put into a value."""

from __future__ import annotations

import json
import logging
import sys
from typing import Final, TextIO

VALUE_CHARS_MAX: Final = 2_000
_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}


class JsonLines(logging.Formatter):
    """``{"time_s", "level", "logger", "message", ...}`` with the record's extra fields; line breaks are escaped."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        line: dict[str, object] = {
            "time_s": round(record.created, 3),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage()[:VALUE_CHARS_MAX],
        }
        for key, value in vars(record).items():
            if key not in _STANDARD:
                line[key] = value if isinstance(value, int | float) else str(value)[:VALUE_CHARS_MAX]
        if record.exc_info is not None:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


def log_json_lines(stream: TextIO | None = None, *, level: int = logging.INFO) -> None:
    """Send every record of this process to a stream, standard error when None."""
    handler = logging.StreamHandler(sys.stderr if stream is None else stream)
    handler.setFormatter(JsonLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    # One line per request of a library says nothing that the metrics do not count.
    for chatty in ("httpx", "uvicorn.access"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
