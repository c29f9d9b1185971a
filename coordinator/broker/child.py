"""A broker that is a child of this process: started, seen listening, stopped, killed, started again."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from edge_sdk.errors import ConnectError

START_S: Final = 20.0
STOP_S: Final = 5.0
_POLL_S: Final = 0.02
_PROBE_S: Final = 0.5
_LOG_TAIL_BYTES: Final = 2_000


class BrokerProcess:
    """A broker with its command and address. The log file collects its output over all starts."""

    def __init__(self, name: str, command: Sequence[str], *, host: str, port: int, log_file: Path) -> None:
        """Remember how to start it; nothing runs yet."""
        self.name = name
        self.host = host
        self.port = port
        self._command = tuple(command)
        self._log_file = log_file
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Process id while it runs."""
        return None if self._process is None or self._process.poll() is not None else self._process.pid

    def start(self) -> None:
        """Start it and wait until it listens.

        Raises:
            ConnectError: it ended, or does not listen within ``START_S``; the text has the end of its log.
        """
        if self.pid is not None:
            return
        with self._log_file.open("ab") as log:
            # A group of its own: Ctrl-C reaches the owner, which stops its children in order.
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + START_S
        while not self._is_listening():
            ended = self._process.poll()
            if ended is not None or time.monotonic() > deadline:
                self.kill()
                what = f"does not listen within {START_S:g} s" if ended is None else f"ended with status {ended}"
                raise ConnectError(f"{self.name} on port {self.port} {what}: {self._log_tail()}")
            time.sleep(_POLL_S)

    def reload(self) -> None:
        """Ask it to read its access list and certificates again."""
        if self._process is not None:
            self._process.send_signal(signal.SIGHUP)

    def stop(self) -> None:
        """End it in order; after ``STOP_S`` without."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.kill()
        self._process = None

    def kill(self) -> None:
        """End it as a power cut would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _is_listening(self) -> bool:
        try:
            with socket.create_connection((self.host, self.port), timeout=_PROBE_S):
                return True
        except OSError:
            return False

    def _log_tail(self) -> str:
        with self._log_file.open("rb") as log:
            log.seek(max(0, os.fstat(log.fileno()).st_size - _LOG_TAIL_BYTES))
            return " | ".join(log.read().decode("utf-8", "replace").split("\n")).strip(" |")
