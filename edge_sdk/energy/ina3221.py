"""Three-rail power monitor of Jetson modules.

JetPack 5 and newer (hwmon): ``/sys/bus/i2c/drivers/ina3221/*/hwmon/hwmon*/in{N}_label, in{N}_input (mV), curr{N}_input
(mA)``. JetPack 4 (iio): ``/sys/bus/i2c/devices/*/iio:device*/rail_name_{N}, in_power{N}_input (mW)``. Rails are found
by their label, since hwmon numbers move. The total is VDD_IN or POM_5V_IN where the module has it, else the sum of its
rails; "NC" rails and the "sum of shunt voltages" channel are left out. It covers the module, not its carrier board.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

from edge_sdk.energy.sysfs import read_integer, read_text
from edge_sdk.errors import StoreError
from edge_sdk.ports import Scope
from edge_sdk.protocol.messages import EnergyQuality

PATTERN: Final = "sys/bus/i2c/drivers/ina3221/*/hwmon/hwmon*/in*_label"
TOTALS: Final = ("VDD_IN", "POM_5V_IN")
CHANNELS: Final = 3
IIO_PATTERN: Final = "sys/bus/i2c/devices/*/iio:device*/rail_name_*"
MILLI: Final = 1e-3


class Ina3221:
    """Power of a Jetson module."""

    scope = Scope.MODULE
    quality = EnergyQuality.MEASURED

    def __init__(self, *, root: Path = Path("/")) -> None:
        """Find the rails.

        Raises:
            StoreError: there is no such sensor.
        """
        rails = _hwmon_rails(root) or _iio_rails(root)
        if not rails:
            raise StoreError(f"{root / PATTERN} and {root / IIO_PATTERN}: no INA3221")
        total = next((name for name in TOTALS if name in rails), None)
        self.rails = tuple(rails) if total is None else (total,)
        self._read = [rails[name] for name in self.rails]

    def power_w(self) -> float:
        """Watts now, of the rails in use."""
        return sum(read() for read in self._read)


def _hwmon_rails(root: Path) -> dict[str, Callable[[], float]]:
    """Power in watts by rail: voltage times current."""
    rails: dict[str, Callable[[], float]] = {}
    for label in sorted(root.glob(PATTERN)):
        channel = label.name.removeprefix("in").removesuffix("_label")
        name = read_text(label)
        if channel.isdecimal() and 1 <= int(channel) <= CHANNELS and name != "NC":
            volts, amperes = label.parent / f"in{channel}_input", label.parent / f"curr{channel}_input"
            rails[name] = partial(_product_w, volts, amperes)
    return rails


def _iio_rails(root: Path) -> dict[str, Callable[[], float]]:
    """Power in watts by rail, as the driver computes it."""
    rails: dict[str, Callable[[], float]] = {}
    for label in sorted(root.glob(IIO_PATTERN)):
        number, name = label.name.removeprefix("rail_name_"), read_text(label)
        if number.isdecimal() and name != "NC":
            rails[name] = partial(_milliwatts_w, label.parent / f"in_power{number}_input")
    return rails


def _product_w(volts: Path, amperes: Path) -> float:
    return read_integer(volts) * MILLI * read_integer(amperes) * MILLI


def _milliwatts_w(power: Path) -> float:
    return read_integer(power) * MILLI
