"""What a board asks of miners over HTTP: blobs by digest, outcomes, the newest announcement. No miner is trusted."""

from __future__ import annotations

import base64
import binascii
import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from edge_sdk.adapters.http_files import HttpFiles, why
from edge_sdk.errors import DecodeError, TransportError
from edge_sdk.protocol.ids import Digest
from edge_sdk.protocol.limits import BLOB_BYTES_MAX, MODEL_DOWNLOAD_S_MAX
from edge_sdk.protocol.messages import Outcome
from edge_sdk.protocol.wire import from_bytes

ANSWER_S_MAX: Final = 20.0
"""For a small answer from one miner: the socket's timeout alone lets it send a byte now and then for ever."""
JSON_BYTES_MAX: Final = 256 * 1024


class HttpBlobs:
    """Asks miners for blobs and outcomes."""

    def __init__(self, *, ca_file: Path | None = None, stopping: threading.Event | None = None) -> None:
        """Keep the settings, see ``HttpFiles``."""
        self._files = HttpFiles(ca_file=ca_file, stopping=stopping)

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
            timeout_s: For everything together, shared evenly among the miners.

        Returns:
            Bytes received.

        Raises:
            TransportError: no miner had it; the text names each one's failure.
        """
        name, etag = f"/v1/blobs/sha256/{digest.hex()}", f'"{digest.hex()}"'
        return self._files.fetch(urls, name, digest, size, path, bytes_max=bytes_max, timeout_s=timeout_s, etag=etag)

    def outcome(self, urls: Sequence[str], update_digest: Digest) -> Outcome | None:
        """What a miner knows of the end of an update; None where nobody knows an end. Nothing is verified here.

        Raises:
            TransportError: no miner answered.
        """
        failures = []
        for url in dict.fromkeys(urls):
            try:
                text = self._get(url, f"/v1/outcomes/{update_digest.hex()}")
                if text is not None:
                    return _read_outcome(text)
            except (TransportError, ValueError) as error:
                failures.append(f"{url}: {why(error)}")
        if len(failures) == len(set(urls)):
            raise TransportError("; ".join(failures) or "no miner is configured or announced")
        return None

    def announcement(self, url: str) -> bytes | None:
        """The signed announcement of a miner's newest model, None where it has none. Nothing is verified here.

        Raises:
            TransportError: the miner does not answer, or not with an announcement.
        """
        try:
            text = self._get(url, "/v1/models/latest")
            return None if text is None else _decoded(text, "announcement")
        except (TransportError, ValueError) as error:
            raise TransportError(f"{url}: {why(error)}") from error

    def is_healthy(self, url: str) -> str | None:
        """None when the miner answers ``/healthz``, else what is wrong."""
        try:
            return None if self._get(url, "/healthz") is not None else "no /healthz"
        except TransportError as error:
            return why(error)

    def _get(self, url: str, name: str) -> bytes | None:
        """Body of a small resource, None for 404."""
        return self._files.get(url, name, bytes_max=JSON_BYTES_MAX, timeout_s=ANSWER_S_MAX)


def _read_outcome(data: bytes) -> Outcome:
    return from_bytes(Outcome, _decoded(data, "outcome"))


def _decoded(data: bytes, name: str) -> bytes:
    """Bytes that a JSON document holds in base64 under a name."""
    try:
        return base64.b64decode(json.loads(data)[name], validate=True)
    except (ValueError, TypeError, KeyError, RecursionError, binascii.Error) as error:
        raise DecodeError(f"no {name}: {error}") from error
