"""A miner that answers, but never comes to an end."""

import hashlib
import http.client
import http.server
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from edge_sdk.adapters import http_blobs
from edge_sdk.adapters.http_blobs import HttpBlobs
from edge_sdk.adapters.http_files import REASON_CHARS_MAX, why
from edge_sdk.errors import TransportError
from edge_sdk.protocol.digest import sha256

BLOB = bytes(range(256)) * 8
TRICKLE_S = 0.05
TIMEOUT_S = 1.0


def trickle(connection: socket.socket, text: bytes) -> None:
    with connection, suppress(OSError):  # the client hangs up
        connection.recv(4_096)
        for value in text:
            connection.sendall(bytes([value]))
            time.sleep(TRICKLE_S)


@pytest.fixture(params=[b"", b"HTTP/1.1 200 OK\r\nContent-Length: 2048\r\n\r\n"], ids=["head", "body"])
def trickler(request: pytest.FixtureRequest) -> Iterator[str]:
    """A server that sends at once what the parameter says, and then a byte at a time, each before any timeout."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with suppress(OSError):
                        connection.sendall(request.param)
                    rest = b"\0" * len(BLOB) if request.param else b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 80
                    threading.Thread(target=trickle, args=(connection, rest), daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)


class Honest(http.server.BaseHTTPRequestHandler):
    """Gives the blob."""

    def do_GET(self) -> None:
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(BLOB) - 1}/{len(BLOB)}")
        self.send_header("Content-Length", str(len(BLOB) - start))
        self.end_headers()
        self.wfile.write(BLOB[start:])

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name of the base class
        """Say nothing."""


@pytest.fixture
def honest() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Honest) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_a_trickling_miner_leaves_time_for_the_next(trickler: str, honest: str, tmp_path: Path) -> None:
    path = tmp_path / "part"
    started_s = time.monotonic()
    HttpBlobs().fetch((trickler, honest), sha256(BLOB), len(BLOB), path, timeout_s=TIMEOUT_S)
    assert time.monotonic() - started_s < 2 * TIMEOUT_S
    assert hashlib.sha256(path.read_bytes()).digest() == sha256(BLOB)


def test_a_trickled_outcome_ends(trickler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_blobs, "ANSWER_S_MAX", TIMEOUT_S / 4)
    started_s = time.monotonic()
    with pytest.raises(TransportError):
        HttpBlobs().outcome((trickler,), sha256(b"update"))
    assert time.monotonic() - started_s < TIMEOUT_S


def test_reason_of_a_failure_is_one_short_line() -> None:
    """A status line is the server's own text, and goes into logs and onto terminals."""
    error = http.client.BadStatusLine("\x1b[2J" + "x" * 60_000)
    assert why(error) == "?[2J" + "x" * (REASON_CHARS_MAX - 4)
    assert why(TimeoutError()) == "TimeoutError"
