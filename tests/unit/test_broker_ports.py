"""Ports for servers: free, distinct, and out of the way of outgoing connections."""

from __future__ import annotations

import itertools
import socket
from pathlib import Path

import pytest

from coordinator.broker import ports
from edge_sdk.errors import ConnectError


def test_ports_differ_before_anybody_binds_them() -> None:
    given = [ports.free_port() for _ in range(50)]
    assert len(set(given)) == len(given)


def test_no_outgoing_connection_gets_one() -> None:
    limits = Path("/proc/sys/net/ipv4/ip_local_port_range")
    if not limits.exists():
        pytest.skip("skipped: no Linux")
    first, last = map(int, limits.read_text().split())
    if first < ports.PORTS.stop:
        pytest.skip(f"skipped: this machine gives {first} to {last} to outgoing connections")
    assert ports.free_port() < first


def test_a_taken_port_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "_numbers", itertools.count(7))
    with socket.create_server(("127.0.0.1", ports.free_port())) as taken:
        number = taken.getsockname()[1] - ports.PORTS.start
        monkeypatch.setattr(ports, "_numbers", itertools.count(number))
        assert ports.free_port() > taken.getsockname()[1]


def test_the_address_of_another_machine_is_an_error() -> None:
    with pytest.raises(ConnectError, match=r"192\.0\.2\.1: "):
        ports.free_port("192.0.2.1")
