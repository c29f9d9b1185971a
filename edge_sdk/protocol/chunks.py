"""A blob in pieces: cutting it, and collecting the pieces in any order, twice, or never.

Chunks are not signed. A signed manifest fixes length and SHA-256 of the whole, so the worst that a false chunk can do
is to make the whole be sent again.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator

from edge_sdk.errors import DecodeError, LocalProtocolError
from edge_sdk.protocol.ids import Digest
from edge_sdk.protocol.limits import ASSEMBLY_FRAGMENTS_MAX, BLOB_BYTES_MAX, CHUNK_DATA_BYTES_MAX, RESUME_RANGES_MAX
from edge_sdk.protocol.messages import Chunk, Reason


def split(
    blob: bytes,
    digest: Digest,
    *,
    ranges: Iterable[tuple[int, int]] | None = None,
    chunk_bytes: int = CHUNK_DATA_BYTES_MAX,
) -> Iterator[Chunk]:
    """Cut a blob into chunks.

    Args:
        blob: The whole.
        digest: What the chunks name: of the update (uplink) or of the blob (downlink).
        ranges: Half-open byte ranges that are wanted, the whole blob when None; what lies behind the end is left out.
        chunk_bytes: Most bytes in a chunk, at most ``CHUNK_DATA_BYTES_MAX``.

    Raises:
        LocalProtocolError: ``chunk_bytes`` is out of its bounds.
    """
    if not 1 <= chunk_bytes <= CHUNK_DATA_BYTES_MAX:
        raise LocalProtocolError(f"chunks of {chunk_bytes} bytes, expected 1..{CHUNK_DATA_BYTES_MAX}")
    return _cut(blob, digest, [(0, len(blob))] if ranges is None else ranges, chunk_bytes)


def _cut(blob: bytes, digest: Digest, ranges: Iterable[tuple[int, int]], chunk_bytes: int) -> Iterator[Chunk]:
    for start, stop in ranges:
        end = min(stop, len(blob))
        for offset in range(start, end, chunk_bytes):
            yield Chunk(digest=digest, offset=offset, data=blob[offset : min(offset + chunk_bytes, end)])


class Assembly:
    """Collects the chunks of one blob whose length and digest a verified manifest has announced."""

    def __init__(self, *, digest: Digest, blob_digest: Digest, blob_bytes: int) -> None:
        """Reserve the room.

        Args:
            digest: What the chunks name.
            blob_digest: SHA-256 of the whole.
            blob_bytes: Its length.

        Raises:
            DecodeError: the length is out of its bounds; ``reason`` is ``OVERSIZE``.
        """
        if not 1 <= blob_bytes <= BLOB_BYTES_MAX:
            raise DecodeError(f"a blob of {blob_bytes} bytes, expected 1..{BLOB_BYTES_MAX}", reason=Reason.OVERSIZE)
        self.digest = digest
        self.blob_digest = blob_digest
        self.blob_bytes = blob_bytes
        self._buffer = bytearray(blob_bytes)
        # Half-open ranges that are here: ascending, and never touching each other.
        self._starts: list[int] = []
        self._stops: list[int] = []

    @property
    def is_complete(self) -> bool:
        """Whether every byte is here; their digest is not checked yet."""
        return self._starts == [0] and self._stops == [self.blob_bytes]

    def add(self, chunk: Chunk) -> bool:
        """Take in a chunk; whether it brought anything new.

        Raises:
            DecodeError: ``FOREIGN_CHUNK`` if it is not of this blob or reaches beyond its end, ``CAPACITY`` if it would
                leave too many separate ranges.
        """
        start, stop = chunk.offset, chunk.offset + len(chunk.data)
        if chunk.digest != self.digest or not 0 <= start < stop <= self.blob_bytes:
            raise DecodeError("a chunk that is not of this blob", reason=Reason.FOREIGN_CHUNK)
        # Ranges first..last - 1 overlap or touch the new one and become one with it.
        first = bisect_left(self._stops, start)
        last = bisect_right(self._starts, stop)
        if last - first == 1 and self._starts[first] <= start and stop <= self._stops[first]:
            return False
        if first == last and len(self._starts) >= ASSEMBLY_FRAGMENTS_MAX:
            raise DecodeError(f"more than {ASSEMBLY_FRAGMENTS_MAX} separate ranges", reason=Reason.CAPACITY)
        self._buffer[start:stop] = chunk.data
        merged_start = min(start, self._starts[first]) if first < last else start
        merged_stop = max(stop, self._stops[last - 1]) if first < last else stop
        self._starts[first:last] = [merged_start]
        self._stops[first:last] = [merged_stop]
        return True

    def missing(self) -> tuple[tuple[int, int], ...]:
        """First byte ranges that are not here, half-open, at most ``RESUME_RANGES_MAX``."""
        gap_starts = [0, *self._stops]
        gap_stops = [*self._starts, self.blob_bytes]
        gaps = [(start, stop) for start, stop in zip(gap_starts, gap_stops, strict=True) if start < stop]
        return tuple(gaps[:RESUME_RANGES_MAX])

    def blob(self) -> bytes:
        """Return the whole, once it is complete and its digest holds.

        Raises:
            DecodeError: ``DIGEST_MISMATCH``; the assembly is empty again, since nobody can say which chunk was false.
        """
        assert self.is_complete, "ask is_complete first"
        if hashlib.sha256(self._buffer).digest() != self.blob_digest:
            self._starts.clear()
            self._stops.clear()
            raise DecodeError("the chunks do not have the announced digest", reason=Reason.DIGEST_MISMATCH)
        return bytes(self._buffer)
