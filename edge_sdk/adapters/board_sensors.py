"""What Linux says of this board and this process. The root is an argument, for recorded fixtures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edge_sdk.governor import Readings

ZONES_MAX: Final = 32
_FILE_BYTES_MAX: Final = 16_384
_PLAUSIBLE_C: Final = (-40.0, 150.0)
"""Broken or absent sensors report values outside."""


@dataclass(frozen=True, slots=True)
class ProcessMemory:
    """Resident memory of this process, in KiB."""

    rss_kib: int
    peak_kib: int


class BoardSensors:
    """Reads sysfs and procfs below a root."""

    def __init__(self, *, root: Path = Path("/"), metered_file: Path | None = None) -> None:
        """Keep the paths.

        Args:
            root: Of ``sys`` and ``proc``.
            metered_file: While it exists the link counts as metered; a hook of the network manager makes it.
        """
        self._root = root
        self._metered_file = metered_file

    def readings(self) -> Readings:
        """Everything that the governor looks at; None where the board has no such sensor."""
        percent, is_on_battery = self._battery()
        return Readings(
            temperature_c=self._temperature_c(),
            battery_percent=percent,
            is_on_battery=is_on_battery,
            is_metered=self._metered_file is not None and self._metered_file.exists(),
            memory_available_bytes=self._memory_available_bytes(),
        )

    def process_memory(self) -> ProcessMemory:
        """VmRSS and VmHWM of this process; zeros where procfs has none."""
        lines = _fields(self._root / "proc/self/status")
        return ProcessMemory(lines.get("VmRSS", 0), lines.get("VmHWM", 0))

    def _temperature_c(self) -> float | None:
        """The hottest thermal zone."""
        zones = sorted((self._root / "sys/class/thermal").glob("thermal_zone*/temp"))[:ZONES_MAX]
        found = [milli / 1000 for milli in map(_integer, zones) if milli is not None]
        low, high = _PLAUSIBLE_C
        return max((degrees for degrees in found if low <= degrees <= high), default=None)

    def _battery(self) -> tuple[float | None, bool]:
        """Charge of the first battery in percent, and whether it discharges."""
        for kind in sorted((self._root / "sys/class/power_supply").glob("*/type"))[:ZONES_MAX]:
            if _text(kind) == "Battery":
                percent = _integer(kind.parent / "capacity")
                return None if percent is None else float(percent), _text(kind.parent / "status") == "Discharging"
        return None, False

    def _memory_available_bytes(self) -> int | None:
        available_kib = _fields(self._root / "proc/meminfo").get("MemAvailable")
        return None if available_kib is None else available_kib * 1024


def _text(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            return file.read(_FILE_BYTES_MAX).decode("utf-8", "replace").strip()
    except OSError:  # sensors come and go, and some answer EAGAIN or ENODATA
        return None


def _integer(path: Path) -> int | None:
    text = _text(path)
    try:
        return None if text is None else int(text)
    except ValueError:
        return None


def _fields(path: Path) -> dict[str, int]:
    """Lines ``Name:  123 kB`` of a procfs file."""
    fields: dict[str, int] = {}
    for line in (_text(path) or "").splitlines():
        name, _, rest = line.partition(":")
        value = rest.split()
        if value and value[0].isdecimal():
            fields[name] = int(value[0])
    return fields
