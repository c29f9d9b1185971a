"""Bringing blobs to the board: over HTTP from the first miner that has them, else in MQTT chunks.

On a site whose firewall swallows everything but MQTT each attempt over HTTP costs a timeout per miner. So the way that
worked last is tried first for a while.
"""

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
ASK_PAUSE_S: Final = 0.1
"""Between two requests: miners do not answer a device that asks more than twenty times a second."""
SILENCE_MAX: Final = 5
"""Requests in a row without any new byte, before MQTT is given up."""
HTTP_AGAIN_S: Final = 900.0
"""Once MQTT has brought what HTTP could not, HTTP is the second choice for so long: it costs the broker nothing."""

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
        self._http_first_s = 0.0
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
        is_http_first = time.monotonic() >= self._http_first_s
        failures: list[str] = []
        for way in ("HTTP", "MQTT") if is_http_first else ("MQTT", "HTTP"):
            try:
                if way == "HTTP":
                    received = self._http.fetch(urls, digest, size, path)
                    self._http_first_s = 0.0
                else:
                    received = self._fetch_chunks(digest, size, path)
                    self._http_first_s = self._http_first_s or time.monotonic() + HTTP_AGAIN_S
            except (TransportError, DecodeError) as error:
                failures.append(f"{way}: {error}")
                if self._stopping.is_set():
                    break
            else:
                return received
        raise TransportError("; ".join(failures))

    def _fetch_chunks(self, digest: Digest, size: int, path: Path) -> int:
        assembly = Assembly(digest=digest, blob_digest=digest, blob_bytes=size)
        deadline_s = time.monotonic() + MODEL_DOWNLOAD_S_MAX
        self._wanted = digest
        silence = 0
        try:
            while not assembly.is_complete:
                wanted = first_bytes(assembly.missing(), ASK_CHUNKS * CHUNK_DATA_BYTES_MAX)
                self._ask(digest, wanted)
                asked_s = time.monotonic()
                silence = 0 if self._collect(assembly, stop=wanted[-1][1], deadline_s=deadline_s) else silence + 1
                if self._stopping.is_set() or silence >= SILENCE_MAX or time.monotonic() > deadline_s:
                    raise TransportError("stopped" if self._stopping.is_set() else "no miner sends the chunks")
                if not assembly.is_complete:
                    self._stopping.wait(max(0.0, asked_s + ASK_PAUSE_S - time.monotonic()))
        finally:
            self._wanted = None
            while not self._chunks.empty():
                self._chunks.get_nowait()
        write_file(path, assembly.blob())
        return size

    def _collect(self, assembly: Assembly, *, stop: int, deadline_s: float) -> bool:
        """Take chunks until everything before ``stop`` is here, or nothing new comes for a while.

        Returns:
            Whether anything new came. Repetitions, of several miners that answered the same request, do not count.
        """
        is_new = False
        patience_s = min(deadline_s, time.monotonic() + ASK_AGAIN_S)
        while not self._stopping.is_set() and any(start < stop for start, _ in assembly.missing()):
            left_s = patience_s - time.monotonic()
            try:
                chunk = self._chunks.get(timeout=max(0.0, left_s))
            except queue.Empty:
                break
            if assembly.add(chunk):
                is_new = True
                patience_s = min(deadline_s, time.monotonic() + ASK_AGAIN_S)
            elif left_s <= 0:  # repetitions alone keep nobody waiting
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
