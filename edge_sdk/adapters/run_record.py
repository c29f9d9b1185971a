"""The run record: one JSON object per line for every phase of the work, from which reports and studies are made.

``{"phase", "start_ns", "duration_ns", "bytes", "energy_mj", "energy_quality", ...ids}``. Times are on the monotonic
clock, which all processes of one machine share. The record is a measurement, not state: it is flushed per line but
not synced, and starts again in a new file when it reaches its bound, so that it can neither wear out nor fill an SD
card.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TypeAlias

from edge_sdk.errors import StoreError
from edge_sdk.ports import Clock, EnergyMeter
from edge_sdk.protocol.messages import EnergyQuality

RECORD_BYTES_MAX: Final = 32 * 1024 * 1024
TAIL_BYTES: Final = 64 * 1024
"""No line is longer."""
MILLI_PER_UNIT: Final = 1_000

Id: TypeAlias = str | int | float | bool | None


class Span:
    """A running phase: the code inside may add bytes and ids before it ends."""

    def __init__(self) -> None:
        """Start with nothing counted."""
        self.bytes_count = 0
        self.energy_mj: int | None = None
        self.ids: dict[str, Id] = {}


class RunRecord:
    """Appends to ``run.jsonl``. Safe to call from several threads.

    Raises:
        StoreError: at opening. Later write errors are counted in ``lost_lines``: a full disk must not stop training.
    """

    def __init__(
        self, path: Path, *, clock: Clock, meter: EnergyMeter | None = None, bytes_max: int = RECORD_BYTES_MAX
    ) -> None:
        """Open for appending. Without a meter ``energy_mj`` is null."""
        self._path = path
        self._clock = clock
        self._meter = meter
        self._bytes_max = bytes_max
        self._lock = threading.Lock()
        self.lost_lines = 0
        try:
            _cut_torn_line(path)
            self._file = path.open("a", encoding="utf-8")
        except OSError as error:
            raise StoreError(f"{path}: cannot be opened: {error.strerror}") from error

    @property
    def quality(self) -> EnergyQuality:
        """How the meter's figures come about."""
        return EnergyQuality.MODELLED if self._meter is None else self._meter.quality

    @contextmanager
    def measure(self, phase: str, **ids: Id) -> Iterator[Span]:
        """Time and meter the code inside; its line is written at the end, also of a failure (``"failed": true``)."""
        span = Span()
        span.ids.update(ids)
        start_ns, start_j = self._clock.monotonic_ns(), self._energy_j()
        try:
            yield span
        except BaseException:
            span.ids["failed"] = True
            raise
        finally:
            end_j = self._energy_j()
            if start_j is not None and end_j is not None:
                span.energy_mj = round((end_j - start_j) * MILLI_PER_UNIT)
            duration_ns = self._clock.monotonic_ns() - start_ns
            self.write(
                phase,
                start_ns=start_ns,
                duration_ns=duration_ns,
                bytes_count=span.bytes_count,
                energy_mj=span.energy_mj,
                ids=span.ids,
            )

    def mark(self, phase: str, *, bytes_count: int = 0, **ids: Id) -> None:
        """Write a moment: a phase without duration."""
        self.write(phase, start_ns=self._clock.monotonic_ns(), duration_ns=0, bytes_count=bytes_count, ids=ids)

    def write(
        self,
        phase: str,
        *,
        start_ns: int,
        duration_ns: int,
        bytes_count: int = 0,
        energy_mj: int | None = None,
        ids: Mapping[str, Id],
    ) -> None:
        """Append one line; ``ids`` say what the phase was about."""
        line = {
            "phase": phase,
            "start_ns": start_ns,
            "duration_ns": duration_ns,
            "bytes": bytes_count,
            "energy_mj": energy_mj,
            "energy_quality": self.quality.name.lower(),
        }
        text = json.dumps(line | dict(ids), separators=(",", ":")) + "\n"
        with self._lock:
            try:
                if self._file.tell() + len(text) > self._bytes_max:
                    self._start_again()
                self._file.write(text)
                self._file.flush()
            except (OSError, ValueError):  # ValueError: closed while another thread still measures
                self.lost_lines += 1

    def close(self) -> None:
        """Close the file; later lines are counted as lost."""
        with self._lock:
            try:
                self._file.close()
            except OSError:  # what could not be written before cannot be written now; the file is closed all the same
                self.lost_lines += 1

    def _energy_j(self) -> float | None:
        if self._meter is None:
            return None
        try:
            return self._meter.energy_j()
        except StoreError:
            return None

    def _start_again(self) -> None:
        """Keep one older file beside the current one."""
        self._file.close()
        self._path.replace(self._path.with_suffix(".1" + self._path.suffix))
        self._file = self._path.open("a", encoding="utf-8")


def _cut_torn_line(path: Path) -> None:
    """Drop a line that a killed process has left without an end: the next one would be written onto it."""
    if not path.is_file():
        return
    with path.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        tail_start = file.seek(max(0, size - TAIL_BYTES))
        whole = file.read().rfind(b"\n") + 1
        if tail_start + whole < size:
            file.truncate(tail_start + whole)
