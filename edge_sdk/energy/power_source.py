"""From power samples to energy: trapezoid rule, with the gaps counted, for any sensor that shows watts."""

from __future__ import annotations

import threading
from typing import Final

from edge_sdk.errors import StoreError
from edge_sdk.ports import Clock, PowerSource, Scope
from edge_sdk.protocol.messages import EnergyQuality

GAP_MAX_S: Final = 5.0
"""Between two samples further apart the power is unknown; the trapezoid is kept, and the gap is counted."""
NS_PER_S: Final = 1e9


class SampledMeter:
    """Energy meter over a power sensor: every look at it is also a sample. Safe to use from several threads."""

    def __init__(self, source: PowerSource, clock: Clock) -> None:
        """Take the first sample.

        Raises:
            StoreError: the sensor cannot be read.
        """
        self._source = source
        self._clock = clock
        self._lock = threading.Lock()
        self._time_ns = clock.monotonic_ns()
        self._power_w = source.power_w()
        self._energy_j = 0.0
        self.samples = 1
        self.gaps = 0

    @property
    def scope(self) -> Scope:
        """Of the sensor."""
        return self._source.scope

    @property
    def quality(self) -> EnergyQuality:
        """Of the sensor."""
        return self._source.quality

    def energy_j(self) -> float:
        """Joules since the first sample."""
        return self.look()[1]

    def look(self) -> tuple[int, float]:
        """Time of a new sample in ns, and joules from the first sample to it: the two belong together exactly."""
        with self._lock:
            now_ns, power_w = self._clock.monotonic_ns(), self._source.power_w()
            step_s = (now_ns - self._time_ns) / NS_PER_S
            self._energy_j += step_s * (power_w + self._power_w) / 2
            self._time_ns, self._power_w = now_ns, power_w
            self.samples += 1
            self.gaps += step_s > GAP_MAX_S
            return now_ns, self._energy_j


def check_comparable(one: tuple[Scope, EnergyQuality], other: tuple[Scope, EnergyQuality]) -> None:
    """Refuse to put figures of different scope or quality side by side.

    Raises:
        StoreError: they differ.
    """
    if one != other:
        texts = [f"{scope.value}, {quality.name.lower()}" for scope, quality in (one, other)]
        raise StoreError(f"energy of ({texts[0]}) cannot be compared with ({texts[1]})")
