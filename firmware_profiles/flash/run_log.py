"""Log of one run as JSON lines: what was checked, refused, written and verified. No secrets, no wall clock."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Self

from firmware_profiles.errors import UsageError


class RunLog:
    """Appends events with the seconds since the start of the run."""

    def __init__(self, path: Path | None) -> None:
        """Open the log; without a path nothing is written.

        Raises:
            UsageError: the file cannot be written.
        """
        self._start_s = time.monotonic()
        try:
            self._file = path.open("a", encoding="utf-8") if path is not None else None
        except OSError as error:
            raise UsageError(f"--log {path}: {error.strerror}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def event(self, name: str, **facts: object) -> None:
        """Write one line; it is out of this process when the call returns."""
        if self._file is None:
            return
        elapsed_s = round(time.monotonic() - self._start_s, 3)
        self._file.write(json.dumps({"event": name, "elapsed_s": elapsed_s, **facts}, default=str) + "\n")
        self._file.flush()
