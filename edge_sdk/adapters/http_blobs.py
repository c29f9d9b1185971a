"""Downloads over HTTP with the standard library: resumed, bounded, hashed, from the first miner with the right bytes.

The digest is known from a signed message, so any server may be asked and none is trusted. What is already in the file
is kept: the next miner continues where the last one broke off, and a false byte shows in the digest at the end.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import http.client
import json
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

from edge_sdk.errors import ConnectError, DecodeError, TransportError
from edge_sdk.protocol.ids import Digest
from edge_sdk.protocol.limits import BLOB_BYTES_MAX, MODEL_DOWNLOAD_S_MAX
from edge_sdk.protocol.messages import Outcome
from edge_sdk.protocol.wire import from_bytes

log: Final = logging.getLogger(__name__)

SOCKET_TIMEOUT_S: Final = 10.0
ANSWER_S_MAX: Final = 20.0
"""For a small answer from one miner: the socket's timeout alone lets it send a byte now and then for ever."""
READ_BYTES: Final = 64 * 1024
JSON_BYTES_MAX: Final = 256 * 1024
_FETCH_TRIES: Final = 2
"""Requests to one miner for one blob: the second starts from zero, when what was there turned out to be false."""


class HttpBlobs:
    """Asks miners for blobs and outcomes."""

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
        digest: Digest,
        size: int | None,
        path: Path,
        *,
        bytes_max: int = BLOB_BYTES_MAX,
        timeout_s: float = MODEL_DOWNLOAD_S_MAX,
    ) -> int:
        """Bring a blob into a file; its digest holds on return.

        Args:
            urls: Base URLs of miners, in the order of preference.
            digest: SHA-256 of the blob.
            size: Its bytes; None when nobody has said, which rules out resuming.
            path: File; what it holds already is kept as the beginning of the blob.
            bytes_max: Largest blob accepted.
            timeout_s: For everything together, shared evenly: a miner that trickles does not use up the others' time.

        Returns:
            Bytes received.

        Raises:
            TransportError: no miner had it; the text names each one's failure.
        """
        if size is not None and not 1 <= size <= bytes_max:
            raise TransportError(f"a blob of {size} bytes, expected 1..{bytes_max}")
        received, failures, candidates = 0, [], list(dict.fromkeys(urls))
        for url in candidates:
            deadline_s = time.monotonic() + timeout_s / len(candidates)
            for _ in range(_FETCH_TRIES):
                try:
                    received += self._fetch_from(url, digest, size, path, bytes_max, deadline_s)
                except (TransportError, OSError, http.client.HTTPException, ValueError) as error:
                    failures.append(f"{url}: {_why(error)}")
                    break
                if _digest_of(path) == digest:
                    if failures:  # a miner that fails or lies is worth a line, also when another one helps out
                        log.warning("blob %s came from %s, not from %s", digest.hex()[:12], url, "; ".join(failures))
                    return received
                path.unlink(missing_ok=True)
                failures.append(f"{url}: digest does not match")
        raise TransportError("; ".join(failures) or "no miner is configured or announced")

    def outcome(self, urls: Sequence[str], update_digest: Digest) -> Outcome | None:
        """What a miner knows of the end of an update; None where nobody knows an end. Nothing is verified here.

        Raises:
            TransportError: no miner answered.
        """
        failures = []
        for url in dict.fromkeys(urls):
            try:
                text = self._get_bounded(url, f"/v1/outcomes/{update_digest.hex()}")
                if text is not None:
                    return _read_outcome(text)
            except (TransportError, OSError, http.client.HTTPException, ValueError) as error:
                failures.append(f"{url}: {_why(error)}")
        if len(failures) == len(set(urls)):
            raise TransportError("; ".join(failures) or "no miner is configured or announced")
        return None

    def announcement(self, url: str) -> bytes | None:
        """The signed announcement of a miner's newest model, None where it has none. Nothing is verified here.

        Raises:
            TransportError: the miner does not answer, or not with an announcement.
        """
        try:
            text = self._get_bounded(url, "/v1/models/latest")
            return None if text is None else _decoded(text, "announcement")
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise TransportError(f"{url}: {_why(error)}") from error

    def is_healthy(self, url: str) -> str | None:
        """None when the miner answers ``/healthz``, else what is wrong."""
        try:
            return None if self._get_bounded(url, "/healthz") is not None else "no /healthz"
        except (TransportError, OSError, http.client.HTTPException, ValueError) as error:
            return _why(error)

    def _fetch_from(
        self, url: str, digest: Digest, size: int | None, path: Path, bytes_max: int, deadline_s: float
    ) -> int:
        have = path.stat().st_size if path.exists() else 0
        if size is None or have > size:
            path.unlink(missing_ok=True)
            have = 0
        if have == size:
            return 0
        with self._connection(url, deadline_s) as connection:
            headers = {"Range": f"bytes={have}-", "If-Range": f'"{digest.hex()}"'} if have else {}
            connection.request("GET", f"{_prefix(url)}/v1/blobs/sha256/{digest.hex()}", headers=headers)
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
                if self._stopping.is_set() or time.monotonic() > deadline_s:
                    raise TransportError("stopped" if self._stopping.is_set() else "took too long")
        return received

    def _get_bounded(self, url: str, path: str) -> bytes | None:
        """Body of a small resource, None for 404."""
        with self._connection(url, time.monotonic() + ANSWER_S_MAX) as connection:
            connection.request("GET", _prefix(url) + path)
            response = connection.getresponse()
            if response.status == http.HTTPStatus.NOT_FOUND:
                return None
            if response.status != http.HTTPStatus.OK:
                raise TransportError(f"status {response.status}")
            data = response.read(JSON_BYTES_MAX + 1)
            if len(data) > JSON_BYTES_MAX:
                raise TransportError(f"answers with more than {JSON_BYTES_MAX} bytes")
            return data

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


def _hang_up(connected: socket.socket) -> None:
    """End both directions from another thread: a read that waits returns."""
    with suppress(OSError):  # closed by now
        socket.socket.shutdown(connected, socket.SHUT_RDWR)  # not that of TLS, which is not made for two threads


def _why(error: Exception) -> str:
    return str(error) or type(error).__name__


def _prefix(url: str) -> str:
    return urlsplit(url).path.rstrip("/")


def _digest_of(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _read_outcome(data: bytes) -> Outcome:
    return from_bytes(Outcome, _decoded(data, "outcome"))


def _decoded(data: bytes, name: str) -> bytes:
    """Bytes that a JSON document holds in base64 under a name."""
    try:
        return base64.b64decode(json.loads(data)[name], validate=True)
    except (ValueError, TypeError, KeyError, RecursionError, binascii.Error) as error:
        raise DecodeError(f"no {name}: {error}") from error
