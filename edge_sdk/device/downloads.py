"""Bringing blobs to the board: over HTTP from the first miner that has them, else in MQTT chunks."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from edge_sdk.adapters.durable_files import write_file
from edge_sdk.adapters.http_blobs import HttpBlobs
from edge_sdk.errors import DecodeError, TransportError
from edge_sdk.protocol.chunks import Assembly
from edge_sdk.protocol.ids import Digest
from edge_sdk.protocol.limits import CHUNK_DATA_BYTES_MAX, MODEL_DOWNLOAD_S_MAX
from edge_sdk.protocol.messages import Chunk

CHUNKS_WAITING_MAX: Final = 64
ASK_CHUNKS: Final = 16
"""Chunks asked for at once: bounds what a miner sends and the broker holds."""
ASK_AGAIN_S: Final = 3.0
SILENCE_MAX: Final = 5
"""Requests in a row without any new byte, before MQTT is given up."""

Ranges = tuple[tuple[int, int], ...]


class Downloads:
    """Fetches blobs; used by the work thread, fed with chunks by the loop."""

    def __init__(self, http: HttpBlobs, *, ask: Callable[[Digest, Ranges], None], stopping: threading.Event) -> None:
        """Keep the ways.

        Args:
            http: HTTP client.
            ask: Publishes a signed request for ranges of a blob; raises ``TransportError`` when offline.
            stopping: Ends a running download.
        """
        self._http = http
        self._ask = ask
        self._stopping = stopping
        self._wanted: Digest | None = None
        self._chunks: queue.Queue[Chunk] = queue.Queue(CHUNKS_WAITING_MAX)

    def offer_chunk(self, chunk: Chunk) -> None:
        """Take a chunk from the loop, if it is of the blob that is being fetched; drop it otherwise."""
        if chunk.digest == self._wanted and not self._chunks.full():
            self._chunks.put_nowait(chunk)

    def fetch(self, urls: Sequence[str], digest: Digest, size: int, path: Path) -> int:
        """Bring a blob into a file; its digest holds on return.

        Returns:
            Bytes received.

        Raises:
            TransportError: neither way brought it; the text names every failure.
            StoreError: the disk refuses.
        """
        try:
            return self._http.fetch(urls, digest, size, path)
        except TransportError as error:
            if self._stopping.is_set():
                raise
            try:
                return self._fetch_chunks(digest, size, path)
            except (TransportError, DecodeError) as other:
                raise TransportError(f"HTTP: {error}; MQTT: {other}") from other

    def _fetch_chunks(self, digest: Digest, size: int, path: Path) -> int:
        assembly = Assembly(digest=digest, blob_digest=digest, blob_bytes=size)
        deadline_s = time.monotonic() + MODEL_DOWNLOAD_S_MAX
        self._wanted = digest
        silence = 0
        try:
            while not assembly.is_complete:
                self._ask(digest, first_bytes(assembly.missing(), ASK_CHUNKS * CHUNK_DATA_BYTES_MAX))
                silence = 0 if self._collect(assembly) else silence + 1
                if self._stopping.is_set() or silence >= SILENCE_MAX or time.monotonic() > deadline_s:
                    raise TransportError("stopped" if self._stopping.is_set() else "no miner sends the chunks")
        finally:
            self._wanted = None
            while not self._chunks.empty():
                self._chunks.get_nowait()
        write_file(path, assembly.blob())
        return size

    def _collect(self, assembly: Assembly) -> bool:
        """Take chunks until none comes for a while; whether any brought something new."""
        is_new = False
        for _ in range(ASK_CHUNKS):
            try:
                chunk = self._chunks.get(timeout=ASK_AGAIN_S)
            except queue.Empty:
                break
            is_new = assembly.add(chunk) or is_new
            if assembly.is_complete or self._stopping.is_set():
                break
        return is_new


def first_bytes(ranges: Ranges, count: int) -> Ranges:
    """The first ``count`` bytes of some ranges."""
    taken: list[tuple[int, int]] = []
    for start, stop in ranges:
        if count <= 0:
            break
        taken.append((start, min(stop, start + count)))
        count -= stop - start
    return tuple(taken)
