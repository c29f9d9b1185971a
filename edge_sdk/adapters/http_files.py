"""Files over HTTP with the standard library: resumed, bounded, hashed, from the first server with the right bytes.

The digest is known from a signed document, so any server may be asked and none is trusted. What is already in the file
is kept: the next server continues where the last one broke off, and a false byte shows in the digest at the end.
"""

from __future__ import annotations

import hashlib
import http.client
import logging
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from edge_sdk.adapters import failpoints
from edge_sdk.errors import ConnectError, TransportError
from edge_sdk.protocol.ids import Digest

log: Final = logging.getLogger(__name__)

SOCKET_TIMEOUT_S: Final = 10.0
READ_BYTES: Final = 64 * 1024
REASON_CHARS_MAX: Final = 300
_FETCH_TRIES: Final = 2
"""Requests to one server for one file: the second starts from zero, when what was there turned out to be false."""


class HttpFiles:
    """Asks HTTP servers for files."""

    def __init__(self, *, ca_file: Path | None = None, stopping: threading.Event | None = None) -> None:
        """Keep the settings.

        Args:
            ca_file: CA for https URLs; the system's when None.
            stopping: Ends a running download with ``TransportError``.
        """
        self._ca_file = ca_file
        self._stopping = stopping or threading.Event()

    def fetch(
        self,
        urls: Sequence[str],
        name: str,
        digest: Digest,
        size: int | None,
        path: Path,
        *,
        bytes_max: int,
        timeout_s: float,
        etag: str | None = None,
    ) -> int:
        """Bring a file; its digest holds on return.

        Args:
            urls: Base URLs of servers, in the order of preference.
            name: Path of the file below each of them, with its leading slash.
            digest: SHA-256 of the file.
            size: Its bytes; None when nobody has said, which rules out resuming.
            path: Where to put it; what is there already is kept as the beginning.
            bytes_max: Largest file accepted.
            timeout_s: For everything together, shared evenly: a server that trickles does not use up the others' time.
            etag: Strong validator of these bytes, where all servers use the same one.

        Returns:
            Bytes received.

        Raises:
            TransportError: no server had it; the text names each one's failure.
        """
        if size is not None and not 1 <= size <= bytes_max:
            raise TransportError(f"a blob of {size} bytes, expected 1..{bytes_max}")
        received, failures, candidates = 0, [], list(dict.fromkeys(urls))
        for url in candidates:
            deadline_s = time.monotonic() + timeout_s / len(candidates)
            for _ in range(_FETCH_TRIES):
                try:
                    received += self._fetch_from(url, name, size, path, bytes_max, deadline_s, etag)
                except (TransportError, OSError, http.client.HTTPException, ValueError) as error:
                    failures.append(f"{url}: {why(error)}")
                    break
                if _digest_of(path) == digest:
                    if failures:  # a server that fails or lies is worth a line, also when another one helps out
                        log.warning("%s came from %s, not from %s", name, url, "; ".join(failures))
                    return received
                path.unlink(missing_ok=True)
                failures.append(f"{url}: digest does not match")
        raise TransportError("; ".join(failures) or "no miner is configured or announced")

    def get(self, url: str, name: str, *, bytes_max: int, timeout_s: float) -> bytes | None:
        """Content of a small file, None for 404, and for 403, which object stores answer to a name that is not there.

        Raises:
            TransportError: the server does not answer with it, in time, within ``bytes_max``.
        """
        try:
            return self._get(url, name, bytes_max, timeout_s)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise TransportError(why(error)) from error

    def _get(self, url: str, name: str, bytes_max: int, timeout_s: float) -> bytes | None:
        with self._connection(url, time.monotonic() + timeout_s) as connection:
            connection.request("GET", _prefix(url) + name)
            response = connection.getresponse()
            if response.status in {http.HTTPStatus.NOT_FOUND, http.HTTPStatus.FORBIDDEN}:
                return None
            if response.status != http.HTTPStatus.OK:
                raise TransportError(f"status {response.status}")
            data = response.read(bytes_max + 1)
            if len(data) > bytes_max:
                raise TransportError(f"answers with more than {bytes_max} bytes")
            return data

    def _fetch_from(
        self, url: str, name: str, size: int | None, path: Path, bytes_max: int, deadline_s: float, etag: str | None
    ) -> int:
        have = path.stat().st_size if path.exists() else 0
        if size is None or have > size:
            path.unlink(missing_ok=True)
            have = 0
        if have == size:
            return 0
        with self._connection(url, deadline_s) as connection:
            headers = {"Range": f"bytes={have}-"} if have else {}
            if have and etag is not None:
                headers["If-Range"] = etag
            connection.request("GET", _prefix(url) + name, headers=headers)
            response = connection.getresponse()
            if response.status == http.HTTPStatus.PARTIAL_CONTENT and have:
                if not response.getheader("Content-Range", "").startswith(f"bytes {have}-"):
                    raise TransportError("answers with another range than asked for")
            elif response.status == http.HTTPStatus.OK:
                have = 0
            else:
                raise TransportError(f"status {response.status}")
            received = self._receive(response, path, have, bytes_max if size is None else size, deadline_s)
            if size is not None and have + received < size:
                raise TransportError(f"truncated after {have + received} of {size} bytes")
            return received

    def _receive(
        self, response: http.client.HTTPResponse, path: Path, have: int, size_max: int, deadline_s: float
    ) -> int:
        """Write the body behind the ``have`` bytes of the file."""
        received = 0
        with path.open("r+b" if have else "wb") as file:
            file.seek(have)
            while data := response.read(READ_BYTES):
                received += len(data)
                if have + received > size_max:
                    raise TransportError(f"sends more than {size_max} bytes")
                file.write(data)
                failpoints.hit("http.mid_file")
                if self._stopping.is_set() or time.monotonic() > deadline_s:
                    raise TransportError("stopped" if self._stopping.is_set() else "took too long")
        return received

    @contextmanager
    def _connection(self, url: str, deadline_s: float) -> Iterator[http.client.HTTPConnection]:
        """A connection that is cut off at the deadline, whatever the other side sends and however slowly."""
        with closing(self._connect(url)) as connection:
            connection.connect()
            hang_up = threading.Timer(max(0.0, deadline_s - time.monotonic()), _hang_up, (connection.sock,))
            hang_up.daemon = True
            hang_up.start()
            try:
                yield connection
            finally:
                hang_up.cancel()

    def _connect(self, url: str) -> http.client.HTTPConnection:
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.username is not None:
            raise ConnectError("not an http or https URL")
        if parts.scheme == "http":
            return http.client.HTTPConnection(parts.hostname, parts.port, timeout=SOCKET_TIMEOUT_S)
        context = ssl.create_default_context(cafile=self._ca_file)
        return http.client.HTTPSConnection(parts.hostname, parts.port, timeout=SOCKET_TIMEOUT_S, context=context)


def why(error: Exception) -> str:
    """What to say of a failed request: one line, though a false status line of 64 kB is part of http.client's text."""
    text = str(error) or type(error).__name__
    return "".join(letter if letter.isprintable() else "?" for letter in text[:REASON_CHARS_MAX])


def _hang_up(connected: socket.socket) -> None:
    """End both directions from another thread: a read that waits returns."""
    with suppress(OSError):  # closed by now
        socket.socket.shutdown(connected, socket.SHUT_RDWR)  # not that of TLS, which is not made for two threads


def _prefix(url: str) -> str:
    return urlsplit(url).path.rstrip("/")


def _digest_of(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
