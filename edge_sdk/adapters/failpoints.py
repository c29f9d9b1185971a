"""Named places where a test may cut the power.

``FLCHAIN_FAILPOINT=name`` kills this process with SIGKILL the first time it comes past ``name``; ``name:3`` the third
time. Without the variable a failpoint costs one comparison.
"""

from __future__ import annotations

import os
import signal
from typing import Final

VARIABLE: Final = "FLCHAIN_FAILPOINT"


class _Armed:
    """What the environment asked for when the process started."""

    def __init__(self, text: str) -> None:
        name, _, count = text.partition(":")
        self.name = name
        self.left = int(count) if count.isdigit() else 1


_armed: Final = _Armed(os.environ.get(VARIABLE, ""))


def hit(name: str) -> None:
    """Die here if the environment says so. SIGKILL: no handler, no flush, no ``finally`` runs, as in a power cut."""
    if name == _armed.name:
        _armed.left -= 1
        if _armed.left <= 0:
            os.kill(os.getpid(), signal.SIGKILL)
