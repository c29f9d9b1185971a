"""Processor package energy of Intel and AMD: ``/sys/class/powercap/intel-rapl:N/energy_uj``.

The counter wraps at ``max_energy_range_uj`` and must be read more often than that. It covers the package, not the
board. Only root may read it since Linux 5.10 (PLATYPUS); a udev rule can give it to a group.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Final

from edge_sdk.energy.sysfs import read_integer, read_text
from edge_sdk.errors import StoreError
from edge_sdk.ports import Scope
from edge_sdk.protocol.messages import EnergyQuality

ZONES: Final = "sys/class/powercap"
MICRO: Final = 1e-6


class RaplMeter:
    """Sum of all packages."""

    scope = Scope.PACKAGE
    quality = EnergyQuality.MEASURED

    def __init__(self, *, root: Path = Path("/")) -> None:
        """Find the packages.

        Raises:
            StoreError: there are none, or they may not be read.
        """
        names = sorted((root / ZONES).glob("intel-rapl:*/name"))
        # Sub-zones (core, uncore, dram) lie inside a package and would be counted twice.
        self._packages = [path.parent for path in names if read_text(path).startswith("package")]
        if not self._packages:
            raise StoreError(f"{root / ZONES}: no RAPL package")
        self._lock = threading.Lock()
        self._ranges = [read_integer(package / "max_energy_range_uj") for package in self._packages]
        self._last = self._read()
        self._total_uj = 0

    def energy_j(self) -> float:
        """Joules since the meter was opened."""
        with self._lock:
            now = self._read()
            for before, after, wrap in zip(self._last, now, self._ranges, strict=True):
                self._total_uj += after - before if after >= before else after - before + wrap
            self._last = now
            return self._total_uj * MICRO

    def _read(self) -> list[int]:
        return [read_integer(package / "energy_uj") for package in self._packages]
