"""Ports for servers that are configured before they start.

The kernel gives ports from 32768 on (Linux) or 49152 on (others) to outgoing connections. A server's port from there
may be the source of somebody's connection when it is to be bound; and a client that tries a dead server there again and
again may in the end connect to itself. So servers get theirs from below.
"""

from __future__ import annotations

import errno
import itertools
import secrets
import socket
from typing import Final

from edge_sdk.errors import ConnectError

PORTS: Final = range(20_000, 32_768)
# From a place of its own in each process, and never the same twice: what was given out may not be bound yet.
_numbers: Final = itertools.count(secrets.randbelow(len(PORTS)))


def free_port(host: str = "127.0.0.1") -> int:
    """A TCP port that is free now; another server may still take it, an outgoing connection will not.

    Raises:
        ConnectError: all are taken, or ``host`` is not this machine.
    """
    for number in itertools.islice(_numbers, len(PORTS)):
        port = PORTS[number % len(PORTS)]
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            try:
                probe.bind((host, port))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise ConnectError(f"{host}: {error.strerror}") from error
                continue
        return port
    raise ConnectError(f"{host}: no free port from {PORTS.start} to {PORTS.stop - 1}")
