"""Rate of the link between this board and another machine, over one TCP connection in each direction.

``flchain boards peer --listen 0.0.0.0:5201`` answers on the other machine: one byte says what is asked, ``u`` to take
bytes and ``d`` to send them. The peer counts what arrived, so that a full send buffer is no rate. It trusts nobody:
one connection at a time, bounded in time, and nothing is kept.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edge_sdk.errors import ConnectError

PIECE: Final = bytes(64 * 1024)
CONNECT_S: Final = 10.0
ANSWER_S: Final = 30.0
TURN_S_MAX: Final = 120.0
UP: Final = b"u"
DOWN: Final = b"d"
_COUNT: Final = struct.Struct(">Q")


@dataclass(frozen=True, slots=True)
class LinkRate:
    """Megabits of payload per second."""

    up_mbps: float
    down_mbps: float
    span_s: float
    interface: str
    is_wireless: bool


def measure_link(host: str, port: int, *, span_s: float, root: Path = Path("/")) -> LinkRate:
    """Send for ``span_s`` seconds, then receive as long.

    Raises:
        ConnectError: the peer cannot be reached, is none, or is this very machine: no link would be measured.
    """
    try:
        up_mbps, address = _send(host, port, span_s)
        down_mbps = _receive(host, port, span_s)
    except (OSError, struct.error) as error:
        raise ConnectError(f"{host}:{port}: {error}") from error
    interface = _interface_of(address)
    if interface in {None, "lo"}:
        raise ConnectError(f"{host}:{port}: is reached over {interface or 'no interface'}: expected another machine")
    assert interface is not None
    is_wireless = (root / "sys/class/net" / interface / "wireless").exists()
    return LinkRate(up_mbps, down_mbps, span_s, interface, is_wireless)


def serve_peer(host: str, port: int, *, announce: Callable[[int], None]) -> None:
    """Answer until interrupted, one after the other; ``announce`` learns the port once it can be reached.

    Raises:
        ConnectError: the address cannot be listened on.
    """
    try:
        listener = socket.create_server((host, port))
    except OSError as error:
        raise ConnectError(f"{host}:{port}: {error}") from error
    with closing(listener):
        announce(listener.getsockname()[1])
        while True:
            connection, _ = listener.accept()
            with closing(connection), suppress(OSError):
                answer(connection)


def answer(connection: socket.socket) -> None:
    """Serve one measurement."""
    connection.settimeout(CONNECT_S)
    asked, deadline_s = connection.recv(1), time.monotonic() + TURN_S_MAX
    if asked == UP:
        taken = 0
        while (piece := connection.recv(len(PIECE))) and time.monotonic() < deadline_s:
            taken += len(piece)
        connection.sendall(_COUNT.pack(taken))
    elif asked == DOWN:
        while time.monotonic() < deadline_s:
            connection.sendall(PIECE)


def _send(host: str, port: int, span_s: float) -> tuple[float, str]:
    with closing(socket.create_connection((host, port), CONNECT_S)) as connection:
        connection.sendall(UP)
        start_s = time.monotonic()
        while time.monotonic() - start_s < span_s:
            connection.sendall(PIECE)
        connection.shutdown(socket.SHUT_WR)
        connection.settimeout(ANSWER_S)
        (taken,) = _COUNT.unpack(connection.recv(_COUNT.size, socket.MSG_WAITALL))
        return taken * 8 / 1e6 / (time.monotonic() - start_s), connection.getsockname()[0]


def _receive(host: str, port: int, span_s: float) -> float:
    with closing(socket.create_connection((host, port), CONNECT_S)) as connection:
        connection.sendall(DOWN)
        start_s, taken = time.monotonic(), 0
        while time.monotonic() - start_s < span_s and (piece := connection.recv(len(PIECE))):
            taken += len(piece)
        return taken * 8 / 1e6 / (time.monotonic() - start_s)


def _interface_of(address: str) -> str | None:
    """Name of the interface that carries one of our addresses."""
    import fcntl

    if address.startswith("127.") or address == "::1":
        return "lo"
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as probe:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", os.fsencode(name[:15]))
            with suppress(OSError):  # an interface without an address
                reply = fcntl.ioctl(probe.fileno(), 0x8915, request)  # SIOCGIFADDR
                if socket.inet_ntoa(reply[20:24]) == address:
                    return name
    return None
