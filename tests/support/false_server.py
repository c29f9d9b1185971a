"""A miner's HTTP server that lies about blobs, in the one way that a test sets."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Fault(StrEnum):
    """What the server does with a blob."""

    NONE = "none"
    TAMPERED = "tampered"
    """One bit is another."""
    TRUNCATED = "truncated"
    """Says the whole length, and hangs up after half of it."""
    SHORT = "short"
    """Half of it, with the length of the half."""
    LONG = "long"
    """Goes on after the end."""
    GONE = "gone"
    BROKEN = "broken"
    """Status 500."""


class FalseServer:
    """Gives the blobs that ``find`` knows, after ``fault`` has been at them."""

    def __init__(self, find: Callable[[bytes], bytes | None]) -> None:
        """Listen; ``running`` serves."""
        self.fault = Fault.NONE
        self.requests: list[str] = []
        """Digests that were asked for."""
        self._find = find
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._http.daemon_threads = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    @contextmanager
    def running(self) -> Iterator[FalseServer]:
        thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._http.shutdown()
            self._http.server_close()
            thread.join()

    def answer(self, blob: bytes) -> tuple[int, int, bytes]:
        """Status, announced length and body."""
        half = blob[: len(blob) // 2]
        match self.fault:
            case Fault.TAMPERED:
                return 200, len(blob), half + bytes([blob[len(half)] ^ 1]) + blob[len(half) + 1 :]
            case Fault.TRUNCATED:
                return 200, len(blob), half
            case Fault.SHORT:
                return 200, len(half), half
            case Fault.LONG:
                return 200, len(blob) + 1, blob + b"x"
            case Fault.GONE:
                return 404, 0, b""
            case Fault.BROKEN:
                return 500, 0, b""
            case Fault.NONE:
                return 200, len(blob), blob

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                name = self.path.rpartition("/")[2]
                blob = server._find(bytes.fromhex(name)) if self.path.startswith("/v1/blobs/sha256/") else None
                server.requests.append(name)
                status, length, body = (404, 0, b"") if blob is None else server.answer(blob)
                self.send_response(status)
                self.send_header("Content-Length", str(length))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        return Handler
