"""A stretch of network between a device and its broker that loses single messages, and says what passed.

Reads just enough of MQTT to find the borders of packets and the topic of a PUBLISH (MQTT 5.0, sections 2.1 and 3.3).
A lost message stays unacknowledged, as if the device had dropped it.
"""

from __future__ import annotations

import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final

PUBLISH: Final = 3
TIMEOUT_S: Final = 60.0


class LossyLink:
    """Listens on ``port`` and carries everything to the broker and back."""

    def __init__(self, broker_port: int, *, is_lost: Callable[[str, int], bool]) -> None:
        """Take the rule of loss: topic, and how many messages came on it before."""
        self._broker_port = broker_port
        self._is_lost = is_lost
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets = [self._listener]
        self.port: int = self._listener.getsockname()[1]
        self.arrived: Counter[str] = Counter()
        self.lost: Counter[str] = Counter()

    @contextmanager
    def running(self) -> Iterator[LossyLink]:
        """Carry, until the end of the block."""
        threading.Thread(target=self._accept, daemon=True).start()
        try:
            yield self
        finally:
            for end in self._sockets:
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
                end.close()

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                device, _ = self._listener.accept()
                broker = socket.create_connection(("127.0.0.1", self._broker_port), timeout=TIMEOUT_S)
                broker.settimeout(None)
                self._sockets += [device, broker]
                for carry, ends in ((self._up, (device, broker)), (self._down, (broker, device))):
                    threading.Thread(target=self._until_closed, args=(carry, *ends), daemon=True).start()

    @staticmethod
    def _until_closed(
        carry: Callable[[socket.socket, socket.socket], None], source: socket.socket, sink: socket.socket
    ) -> None:
        with suppress(OSError, EOFError):
            carry(source, sink)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    @staticmethod
    def _up(device: socket.socket, broker: socket.socket) -> None:
        while data := device.recv(1 << 16):
            broker.sendall(data)

    def _down(self, broker: socket.socket, device: socket.socket) -> None:
        with broker.makefile("rb") as stream:
            while True:
                header, body = _packet(stream.read)
                if header[0] >> 4 == PUBLISH:
                    topic = body[2 : 2 + int.from_bytes(body[:2])].decode()
                    self.arrived[topic] += 1
                    if self._is_lost(topic, self.arrived[topic] - 1):
                        self.lost[topic] += 1
                        continue
                device.sendall(header + body)


def _packet(read: Callable[[int], bytes]) -> tuple[bytes, bytes]:
    """One packet: fixed header with its length of one to four bytes, and the rest.

    Raises:
        EOFError: the connection ended.
    """
    header, length, shift = read(1), 0, 0
    while header:
        byte = read(1)
        if not byte:
            break
        header += byte
        length |= (byte[0] & 0x7F) << shift
        shift += 7
        if not byte[0] & 0x80:
            return header, read(length)
    raise EOFError
