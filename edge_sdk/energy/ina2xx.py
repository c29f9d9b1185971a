"""INA219, INA226, INA230, INA231, INA260 on I2C by the kernel driver: ``hwmon*/power1_input`` in microwatts.

The honest sensor for boards without one, such as a Raspberry Pi up to 4. It measures what flows through its shunt:
with the sensor in the supply line that is the board.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from edge_sdk.energy.sysfs import read_integer, read_text
from edge_sdk.errors import StoreError
from edge_sdk.ports import Scope
from edge_sdk.protocol.messages import EnergyQuality

PATTERN: Final = "sys/class/hwmon/hwmon*/name"
NAMES: Final = ("ina219", "ina220", "ina226", "ina230", "ina231", "ina260")
MICRO: Final = 1e-6


class Ina2xx:
    """Power through the first shunt monitor found."""

    scope = Scope.BOARD
    quality = EnergyQuality.MEASURED

    def __init__(self, *, root: Path = Path("/")) -> None:
        """Find the sensor.

        Raises:
            StoreError: there is none.
        """
        found = [path.parent for path in sorted(root.glob(PATTERN)) if read_text(path) in NAMES]
        if not found:
            raise StoreError(f"{root / PATTERN}: no INA2xx")
        self._file = found[0] / "power1_input"

    def power_w(self) -> float:
        """Watts now."""
        return read_integer(self._file) * MICRO
