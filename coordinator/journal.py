"""One place where a miner's work is timed: a line in the run record, an observation in the metrics."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from coordinator.serving.metrics import MinerMetrics, MinerPhase
from edge_sdk.adapters.run_record import Id, RunRecord, Span
from edge_sdk.ports import Clock

NANO_PER_UNIT: Final = 1e9


class Journal:
    """Run record and metrics of one miner."""

    def __init__(self, record: RunRecord, metrics: MinerMetrics, clock: Clock) -> None:
        """Join the parts."""
        self.metrics = metrics
        self._record = record
        self._clock = clock

    def now_ns(self) -> int:
        """Monotonic time, as the record has it."""
        return self._clock.monotonic_ns()

    @contextmanager
    def measure(self, phase: MinerPhase, **ids: Id) -> Iterator[Span]:
        """Time the code inside; a failure is recorded as such and not observed."""
        start_ns = self.now_ns()
        with self._record.measure(phase.value, **ids) as span:
            yield span
        self.metrics.observe(phase, (self.now_ns() - start_ns) / NANO_PER_UNIT)

    def since(self, phase: MinerPhase, start_ns: int, *, bytes_count: int = 0, **ids: Id) -> None:
        """Record a phase that began at ``start_ns`` and ends now."""
        duration_ns = self.now_ns() - start_ns
        self._record.write(phase.value, start_ns=start_ns, duration_ns=duration_ns, bytes_count=bytes_count, ids=ids)
        self.metrics.observe(phase, duration_ns / NANO_PER_UNIT)

    def mark(self, phase: str, **ids: Id) -> None:
        """Record a moment."""
        self._record.write(phase, start_ns=self.now_ns(), duration_ns=0, ids=ids)

    def close(self) -> None:
        """Close the record."""
        self._record.close()
