"""A root shell at the other end of a Unix socket: commands in, output and exit status out.

The far end is a plain ``sh`` that reads commands from a virtio port. Each command is followed by a mark with its number
and status, so that what an abandoned command still prints is never taken for the answer of the next one.
"""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from typing import Final

COMMAND_S: Final = 300.0
"""Emulation on a busy machine is slow."""
ANSWER_BYTES_MAX: Final = 16 * 2**20
_POLL_S: Final = 1.0
_END: Final = b"\x1e"


class BoardError(Exception):
    """The board did not do what it was told, or not in time."""


class Shell:
    """Runs commands; connects when it is first used."""

    def __init__(self, socket_file: Path) -> None:
        self._socket_file = socket_file
        self._channel: socket.socket | None = None
        self._counter = 0

    def is_there(self) -> bool:
        """Whether there is a socket to connect to."""
        return self._socket_file.is_socket()

    def run(self, command: str, *, timeout_s: float = COMMAND_S) -> str:
        """Run a command as root and return what it printed, both streams.

        Raises:
            BoardError: it failed, or did not end in time.
        """
        status, output = self.try_run(command, timeout_s=timeout_s)
        if status != 0:
            raise BoardError(f"{command}: exit status {status}: {output[-2000:]}")
        return output

    def try_run(self, command: str, *, timeout_s: float = COMMAND_S) -> tuple[int, str]:
        """Run a command that may fail; its exit status and output.

        Raises:
            BoardError: it did not end in time, or the board is gone.
        """
        self._counter += 1
        mark = b"%d " % self._counter
        self.send(f"( {command}\n) </dev/null 2>&1; printf '\\036%d %d\\036' {self._counter} $?\n")
        deadline = time.monotonic() + timeout_s
        data = b""
        while True:
            parts = data.split(_END)
            if len(parts) >= 3 and parts[-2].startswith(mark):
                return int(parts[-2].removeprefix(mark)), parts[-3].decode("utf-8", "replace")
            data += self._receive(deadline - time.monotonic(), command)
            if len(data) > ANSWER_BYTES_MAX:
                raise BoardError(f"{command}: more than {ANSWER_BYTES_MAX} bytes")

    def until(self, command: str, what: str, *, timeout_s: float) -> str:
        """Repeat a command until it succeeds; its output then.

        Raises:
            BoardError: never in that time.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            status, output = self.try_run(command)
            if status == 0:
                return output
            if time.monotonic() > deadline:
                raise BoardError(f"not in {timeout_s:g} s: {what}: {output[-1000:]}")
            time.sleep(_POLL_S)

    def send(self, text: str) -> None:
        """Write to the shell without waiting for an answer."""
        if self._channel is None:
            channel = socket.socket(socket.AF_UNIX)
            try:
                channel.connect(os.fspath(self._socket_file))
            except OSError as error:
                channel.close()
                raise BoardError(f"{self._socket_file}: {error.strerror}") from error
            self._channel = channel
        try:
            self._channel.sendall(text.encode())
        except OSError as error:
            raise BoardError(f"the board is gone: {error.strerror}") from error

    def close(self) -> None:
        """Hang up; the next command connects again."""
        if self._channel is not None:
            self._channel.close()
        self._channel = None

    def _receive(self, timeout_s: float, command: str) -> bytes:
        assert self._channel is not None
        if timeout_s <= 0:
            raise BoardError(f"{command}: not done in time")
        self._channel.settimeout(timeout_s)
        try:
            received = self._channel.recv(65536)
        except TimeoutError:
            return b""
        except OSError as error:
            raise BoardError(f"{command}: the board is gone: {error.strerror}") from error
        if not received:
            raise BoardError(f"{command}: the board is gone")
        return received
