"""Three-rail power monitor of Jetson modules, JetPack 5 and newer (hwmon).

``/sys/bus/i2c/drivers/ina3221/*/hwmon/hwmon*/in{N}_label, in{N}_input (mV), curr{N}_input (mA)``. Rails are found by
their label, since hwmon numbers move. The total is VDD_IN or POM_5V_IN where the module has it, else the sum of its
rails; "NC" rails and the "sum of shunt voltages" channel are left out. It covers the module, not its carrier board.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from edge_sdk.energy.sysfs import read_integer, read_text
from edge_sdk.errors import StoreError
from edge_sdk.ports import Scope
from edge_sdk.protocol.messages import EnergyQuality

PATTERN: Final = "sys/bus/i2c/drivers/ina3221/*/hwmon/hwmon*/in*_label"
TOTALS: Final = ("VDD_IN", "POM_5V_IN")
CHANNELS: Final = 3
MILLI_MILLI: Final = 1e-6


class Ina3221:
    """Power of a Jetson module."""

    scope = Scope.MODULE
    quality = EnergyQuality.MEASURED

    def __init__(self, *, root: Path = Path("/")) -> None:
        """Find the rails.

        Raises:
            StoreError: there is no such sensor.
        """
        rails: dict[str, tuple[Path, Path]] = {}
        for label in sorted(root.glob(PATTERN)):
            channel = label.name.removeprefix("in").removesuffix("_label")
            name = read_text(label)
            if channel.isdecimal() and 1 <= int(channel) <= CHANNELS and name != "NC":
                rails[name] = (label.parent / f"in{channel}_input", label.parent / f"curr{channel}_input")
        if not rails:
            raise StoreError(f"{root / PATTERN}: no INA3221")
        total = next((name for name in TOTALS if name in rails), None)
        self.rails = tuple(rails) if total is None else (total,)
        self._files = [rails[name] for name in self.rails]

    def power_w(self) -> float:
        """Watts now: sum of voltage times current of the rails in use."""
        return sum(read_integer(volts) * read_integer(amperes) for volts, amperes in self._files) * MILLI_MILLI
