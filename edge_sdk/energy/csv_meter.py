"""A recording of an external meter: lines ``seconds,watts``, with an offset that brings its clock to ours.

A USB meter has a clock of its own: find the offset by a marker, for instance a step of load at a known time.
"""

from __future__ import annotations

import csv
import math
from bisect import bisect_right
from pathlib import Path
from typing import Final

from edge_sdk.errors import StoreError
from edge_sdk.ports import Clock, Scope
from edge_sdk.protocol.messages import EnergyQuality

ROWS_MAX: Final = 10_000_000
NS_PER_S: Final = 1e9


class CsvMeter:
    """Energy by the trapezoid rule over the recording, up to the present moment of the clock."""

    quality = EnergyQuality.MEASURED

    def __init__(self, path: Path, *, clock: Clock, offset_s: float, scope: Scope = Scope.WALL) -> None:
        """Read the recording.

        Args:
            path: CSV file without a header; times must rise.
            clock: Ours.
            offset_s: Added to the recording's times, gives seconds of our monotonic clock.
            scope: Where the meter sits.

        Raises:
            StoreError: the file cannot be read; the text names the line.
        """
        self._clock = clock
        self.scope = scope
        self._times_s: list[float] = []
        self._powers_w: list[float] = []
        self._energies_j: list[float] = []
        try:
            with path.open(newline="", encoding="utf-8") as file:
                for number, row in enumerate(csv.reader(file), start=1):
                    self._add(path, number, row, offset_s)
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise StoreError(f"{path}: {error}") from error
        if not self._times_s:
            raise StoreError(f"{path}: no samples")

    def energy_j(self) -> float:
        """Joules from the first sample until now; none before it, no more after the last."""
        now_s = self._clock.monotonic_ns() / NS_PER_S
        index = bisect_right(self._times_s, now_s) - 1
        if index < 0:
            return 0.0
        energy_j = self._energies_j[index]
        if index + 1 < len(self._times_s):
            start_s, stop_s = self._times_s[index : index + 2]
            start_w, stop_w = self._powers_w[index : index + 2]
            step_s = now_s - start_s
            now_w = start_w + (stop_w - start_w) * step_s / (stop_s - start_s)
            energy_j += step_s * (start_w + now_w) / 2
        return energy_j

    def _add(self, path: Path, number: int, row: list[str], offset_s: float) -> None:
        try:
            time_s, power_w = (float(cell) for cell in row)
        except ValueError as error:
            raise StoreError(f"{path}:{number}: {row}: expected seconds,watts") from error
        is_valid = math.isfinite(time_s) and math.isfinite(power_w) and power_w >= 0
        if not is_valid or number > ROWS_MAX or (self._times_s and time_s + offset_s <= self._times_s[-1]):
            raise StoreError(f"{path}:{number}: {row}: expected rising times, watts >= 0, at most {ROWS_MAX} lines")
        energy_j = 0.0
        if self._times_s:
            step_s = time_s + offset_s - self._times_s[-1]
            energy_j = self._energies_j[-1] + step_s * (power_w + self._powers_w[-1]) / 2
        self._times_s.append(time_s + offset_s)
        self._powers_w.append(power_w)
        self._energies_j.append(energy_j)
