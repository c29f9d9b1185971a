"""The device's service as the updater needs it: stop, start, and what state it is in."""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Sequence
from typing import Final

from edge_sdk.errors import UpgradeError
from edge_sdk.upgrade.config import UpgradeConfig

log: Final = logging.getLogger(__name__)

COMMAND_S_MAX: Final = 180.0
"""Longer than TimeoutStopSec of the device's unit."""
STATES: Final = ("active", "activating", "deactivating", "restarting", "inactive", "failed")
_OUTPUT_CHARS_MAX: Final = 300


class Service:
    """Drives systemd, or the commands that the configuration names instead."""

    def __init__(self, config: UpgradeConfig) -> None:
        """Keep the commands."""
        self._config = config

    def stop(self) -> None:
        """Stop the device and wait for its end.

        Raises:
            UpgradeError: it does not stop.
        """
        _run(self._config.stop or ("systemctl", "stop", self._config.unit))

    def start(self) -> None:
        """Start the device; whether it comes up shows in its state.

        Raises:
            UpgradeError: the command fails.
        """
        if self._config.start:
            _run(self._config.start)
            return
        # A unit that failed too often is not started any more before this.
        _run(("systemctl", "reset-failed", self._config.unit), may_fail=True)
        _run(("systemctl", "start", "--no-block", self._config.unit))

    def state(self) -> str:
        """One of ``STATES``.

        Raises:
            UpgradeError: it cannot be found out.
        """
        if self._config.state:
            state = _run(self._config.state, may_fail=True).strip()
        else:
            shown = _run(("systemctl", "show", "--property=ActiveState,SubState", self._config.unit))
            found = dict(line.partition("=")[::2] for line in shown.splitlines())
            state = "restarting" if found.get("SubState") == "auto-restart" else found.get("ActiveState", "")
        if state not in STATES:
            raise UpgradeError(f"state of the device's service: {state[:40]!r}, expected one of {', '.join(STATES)}")
        return state


def _run(command: Sequence[str], *, may_fail: bool = False) -> str:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=COMMAND_S_MAX, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UpgradeError(f"{' '.join(command)}: {error}") from error
    if done.returncode and not may_fail:
        why = " ".join(done.stderr.split())[:_OUTPUT_CHARS_MAX]
        raise UpgradeError(f"{' '.join(command)}: status {done.returncode}: {why}")
    return done.stdout
