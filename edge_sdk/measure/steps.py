"""Step time and memory of one artifact: a process of its own trains, as a device would, and times each step."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from edge_sdk.errors import TrainingError

WARM_UP_STEPS: Final = 5
STOP_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class StepTimes:
    """Of one artifact on one backend."""

    median_ms: float
    slowest_tenth_ms: float
    steps: int
    peak_rss_mib: float


@dataclass(frozen=True, slots=True)
class Steps:
    """Some steps in a row, and the highest memory of the process until then."""

    step_ns: tuple[int, ...]
    peak_rss_mib: float


def summary(batches: Sequence[Steps]) -> StepTimes:
    """Figures over all steps, at least one."""
    times_ms = sorted(nanoseconds / 1e6 for batch in batches for nanoseconds in batch.step_ns)
    return StepTimes(
        median_ms=statistics.median(times_ms),
        slowest_tenth_ms=times_ms[-max(1, len(times_ms) // 10)],
        steps=len(times_ms),
        peak_rss_mib=max(batch.peak_rss_mib for batch in batches),
    )


class Training:
    """A process that trains on request; end it by leaving the block."""

    def __init__(self, artifact: Path, params: Path, *, backend: str) -> None:
        """Start it and wait until the first step is done.

        Raises:
            TrainingError: it cannot train; the text is its own.
        """
        line = [sys.executable, "-m", "edge_sdk.adapters.training_meter", str(artifact), str(params), backend]
        self._process = subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            self._answer()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def steps(self, count: int) -> Steps:
        """Take steps and time them.

        Raises:
            TrainingError: it failed.
        """
        assert self._process.stdin is not None
        self._process.stdin.write(f"steps {count}\n")
        self._process.stdin.flush()
        answer = self._answer()
        return Steps(tuple(answer["step_ns"]), float(answer["peak_rss_mib"]))

    def close(self) -> None:
        """End it: it stops when nobody can ask any more."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(OSError):  # it may have gone already
            self._process.stdin.close()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise TrainingError(f"the training process ended with status {self._process.wait()}")
        document: dict[str, Any] = json.loads(line)
        if "error" in document:
            raise TrainingError(str(document["error"]))
        return document
