"""The HTTP interface behind a real socket: what only a server and a hostile client can show."""

from __future__ import annotations

import asyncio
import hashlib
import http.client
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from coordinator.serving import body
from coordinator.serving.http import create_app
from coordinator.serving.metrics import MinerMetrics
from coordinator.serving.service import HEADER_BYTES_MAX, HttpService
from edge_sdk.errors import ConnectError
from tests.support.serving import FakeView, Log

BLOB = bytes(range(256)) * 4_096  # 1 MiB
WAIT_S = 5.0


@pytest.fixture
def view(tmp_path: Path) -> FakeView:
    view = FakeView(tmp_path)
    view.add_model(BLOB)
    return view


@pytest.fixture
def service(view: FakeView) -> Iterator[HttpService]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    service = HttpService(create_app(view, Log(), MinerMetrics()))
    asyncio.run_coroutine_threadsafe(service.start(), loop).result(WAIT_S)
    yield service
    asyncio.run_coroutine_threadsafe(service.stop(), loop).result(2 * WAIT_S)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.fixture
def connection(service: HttpService) -> Iterator[http.client.HTTPConnection]:
    connection = http.client.HTTPConnection(service.host, service.port, timeout=WAIT_S)
    yield connection
    connection.close()


def path_of(view: FakeView) -> str:
    return f"/v1/blobs/sha256/{view.latest().model_digest.hex()}"


def exchange(service: HttpService, request: bytes) -> bytes:
    """Everything that the server answers to raw bytes until it hangs up."""
    with socket.create_connection((service.host, service.port), timeout=WAIT_S) as raw:
        raw.sendall(request)
        answer = b""
        while piece := raw.recv(65_536):
            answer += piece
    return answer


def test_download_in_ranges_over_one_connection(connection: http.client.HTTPConnection, view: FakeView) -> None:
    data = b""
    while len(data) < len(BLOB):
        connection.request("GET", path_of(view), headers={"Range": f"bytes={len(data)}-{len(data) + 299_999}"})
        response = connection.getresponse()
        assert response.status == 206
        data += response.read()
    assert hashlib.sha256(data).digest() == view.latest().model_digest


def test_head_keeps_the_connection_usable(connection: http.client.HTTPConnection, view: FakeView) -> None:
    for _ in range(2):
        connection.request("HEAD", path_of(view))
        response = connection.getresponse()
        assert (response.status, response.getheader("content-length"), response.read()) == (200, str(len(BLOB)), b"")


def test_aborted_download_harms_nobody(
    service: HttpService, connection: http.client.HTTPConnection, view: FakeView
) -> None:
    for _ in range(5):
        with socket.create_connection((service.host, service.port), timeout=WAIT_S) as raw:
            raw.sendall(f"GET {path_of(view)} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            raw.recv(1_000)
    connection.request("GET", path_of(view))
    assert connection.getresponse().read() == BLOB


@pytest.mark.parametrize(
    "target",
    ["/../../etc/passwd", "/v1/blobs/sha256/..%2f..%2fetc%2fpasswd", "/%2e%2e/%2e%2e/etc/passwd", "//etc/passwd"],
)
def test_raw_paths_stay_inside(service: HttpService, target: str) -> None:
    answer = exchange(service, f"GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    assert answer.split(b" ")[1] in {b"400", b"404"}
    assert b"root:" not in answer


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\x16\x03\x01\x02\x00" + bytes(100),
        b"GET /healthz HTTP/1.1\r\n\r\n",
        b"POST /v1/txs HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 9\r\n\r\nhello",
        b"POST /v1/txs HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_what_is_no_http_is_refused(service: HttpService, request_bytes: bytes) -> None:
    assert exchange(service, request_bytes).startswith(b"HTTP/1.1 400")


def test_endless_header_is_cut_off(service: HttpService) -> None:
    request = b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Long: " + b"a" * (2 * HEADER_BYTES_MAX)
    assert exchange(service, request).startswith(b"HTTP/1.1 4")


def test_slow_body_is_given_up(service: HttpService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body, "BODY_S_MAX", 0.2)
    started = time.monotonic()
    request = b"POST /v1/txs HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\nConnection: close\r\n\r\nhel"
    assert exchange(service, request).startswith(b"HTTP/1.1 408")
    assert time.monotonic() - started < WAIT_S


def test_taken_port_is_known_at_once(service: HttpService, view: FakeView) -> None:
    with pytest.raises(ConnectError, match=str(service.port)):
        HttpService(create_app(view, Log(), MinerMetrics()), port=service.port)
