"""Raspberry Pi 5: rails of its power management chip, from the text of ``vcgencmd pmic_read_adc``.

Two text formats exist, ``NAME_A current(7)=0.00390400A`` and ``NAME_A=0.003904``. Pairs NAME_A and NAME_V give the
rails' power; conversion loss and USB devices are not in it. The board's input is estimated by a community fit, P_in =
1.1451 P_rails + 0.5879 W (one author's calibration), so the quality is *derived*.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

from edge_sdk.errors import StoreError
from edge_sdk.ports import Scope
from edge_sdk.protocol.messages import EnergyQuality

PROGRAM: Final = "usr/bin/vcgencmd"
QUESTION: Final = "pmic_read_adc"
TIMEOUT_S: Final = 2.0
OUTPUT_CHARS_MAX: Final = 8_192
FIT_SLOPE: Final = 1.1451
FIT_OFFSET_W: Final = 0.5879

_LINE = re.compile(r"^\s*(\w+)_([AV])\b[^=\n]*=\s*([0-9.]+)[AV]?\s*$", re.MULTILINE)


class Pi5Pmic:
    """Estimated input power of a Pi 5."""

    scope = Scope.BOARD
    quality = EnergyQuality.DERIVED

    def __init__(self, *, root: Path = Path("/"), read: Callable[[], str] | None = None) -> None:
        """Use the board's ``vcgencmd``, or another source of its text."""
        self._read = read or partial(run_vcgencmd, root)

    def power_w(self) -> float:
        """Watts now."""
        return FIT_SLOPE * rails_w(self._read()) + FIT_OFFSET_W


def rails_w(text: str) -> float:
    """Sum of voltage times current over the rails that have both.

    Raises:
        StoreError: there is no such rail.
    """
    values: dict[str, dict[str, float]] = {"A": {}, "V": {}}
    for rail, unit, number in _LINE.findall(text[:OUTPUT_CHARS_MAX]):
        try:
            values[unit][rail] = float(number)
        except ValueError as error:
            raise StoreError(f"pmic_read_adc: {rail}_{unit}={number!r}: expected a number") from error
    rails = values["A"].keys() & values["V"].keys()
    if not rails:
        raise StoreError("pmic_read_adc: no rail with current and voltage")
    return sum(values["A"][rail] * values["V"][rail] for rail in rails)


def run_vcgencmd(root: Path) -> str:
    """Text of the firmware's answer.

    Raises:
        StoreError: the program is missing, fails or hangs.
    """
    command = [str(root / PROGRAM), QUESTION]
    try:
        done = subprocess.run(command, capture_output=True, check=True, timeout=TIMEOUT_S, text=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise StoreError(f"{' '.join(command)}: {error}") from error
    return done.stdout
