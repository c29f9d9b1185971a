"""Liveness for systemd: READY, WATCHDOG and STOPPING over its notification socket, without a library.

Protocol: sd_notify(3). Outside systemd (no ``NOTIFY_SOCKET``) every call does nothing. ``WATCHDOG=1`` must come from
the loop that does the work, so that a stuck loop is noticed.
"""

from __future__ import annotations

import os
import socket
from typing import Final

_ABSTRACT: Final = "@"


class Watchdog:
    """Talks to the service manager that started this process."""

    def __init__(self) -> None:
        """Read where to notify, and how often the watchdog wants to hear of us."""
        address = os.environ.get("NOTIFY_SOCKET", "")
        # An abstract socket is written with @ and addressed with a leading zero byte.
        self._address = "\0" + address[1:] if address.startswith(_ABSTRACT) else address
        interval = os.environ.get("WATCHDOG_USEC", "")
        pid = os.environ.get("WATCHDOG_PID", str(os.getpid()))
        is_ours = interval.isdecimal() and pid == str(os.getpid())
        self.interval_s: float | None = int(interval) / 2e6 if is_ours and int(interval) else None
        """Half of what systemd waits for; None when it does not watch."""

    def ready(self, status: str) -> None:
        """Start-up is complete."""
        self._send(f"READY=1\nSTATUS={status}")

    def alive(self) -> None:
        """The loop is running."""
        self._send("WATCHDOG=1")

    def stopping(self) -> None:
        """A clean stop has begun."""
        self._send("STOPPING=1")

    def _send(self, text: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
                channel.sendto(text.encode(), self._address)
        except OSError:
            # The manager went away; it will notice us by our exit instead.
            self._address = ""
