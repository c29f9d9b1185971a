"""Mean power of a state of the board, from whatever meter it has.

A figure is energy over time between two looks at the meter; a sensor that only shows watts is sampled meanwhile. A
counter that stands still is no measurement: it is refused, never written down as 0 W.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from edge_sdk.energy.power_source import SampledMeter
from edge_sdk.errors import StoreError
from edge_sdk.ports import Clock, EnergyMeter

SAMPLE_S: Final = 0.1
NS_PER_S: Final = 1e9


@dataclass(frozen=True, slots=True)
class MeanPower:
    """Watts over a span; ``scope`` and ``quality`` are the meter's."""

    watts: float
    span_s: float
    samples: int
    scope: str
    quality: str

    @property
    def condition(self) -> str:
        """What a profile says beside the figure."""
        return f"mean of {self.span_s:.1f} s, {self.samples} samples, scope {self.scope}, {self.quality}"


class PowerSpan:
    """Looks at a meter from ``begin`` to ``end``."""

    def __init__(self, meter: EnergyMeter, clock: Clock) -> None:
        """Nothing is read yet."""
        self._meter = meter
        self._clock = clock
        self._stopping = threading.Event()
        self._samples = 0
        self._failure: StoreError | None = None
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._start_ns = 0
        self._start_j = 0.0

    def begin(self) -> None:
        """Take the first look, and go on looking."""
        self._start_ns, self._start_j = self._look()
        self._thread.start()

    def cancel(self) -> None:
        """Stop looking; what was going on has failed."""
        self._stopping.set()
        self._thread.join()

    def end(self) -> MeanPower:
        """Take the last look.

        Raises:
            StoreError: the meter failed meanwhile, or shows no energy at all.
        """
        self.cancel()
        if self._failure is not None:
            raise self._failure
        end_ns, end_j = self._look()
        span_s, energy_j = (end_ns - self._start_ns) / NS_PER_S, end_j - self._start_j
        if energy_j <= 0 or span_s <= 0:
            raise StoreError(f"meter shows {energy_j:g} J in {span_s:.1f} s: expected more than nothing")
        quality = self._meter.quality.name.lower()
        return MeanPower(energy_j / span_s, span_s, self._samples + 2, self._meter.scope.value, quality)

    def _look(self) -> tuple[int, float]:
        """Time and energy: of the sample itself where the meter samples, so that no delay comes between them."""
        if isinstance(self._meter, SampledMeter):
            return self._meter.look()
        return self._clock.monotonic_ns(), self._meter.energy_j()

    def _sample(self) -> None:
        while not self._stopping.wait(SAMPLE_S):
            try:
                self._meter.energy_j()
            except StoreError as error:
                self._failure = error
                return
            self._samples += 1


@contextmanager
def every_core_busy(cores: int) -> Iterator[None]:
    """One endless loop per core, each in a process of its own, for as long as the block lasts."""
    loops = [subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"]) for _ in range(cores)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
        for loop in loops:
            loop.wait()
