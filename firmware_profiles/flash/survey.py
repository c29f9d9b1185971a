"""The whole image read once before anything is written: size, digests, damage, and the pieces to write and compare.

What the survey found is what must come again when the image is written: a piece that has changed since is not written.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from firmware_profiles.errors import ImageRefusal, ImageRefusedError
from firmware_profiles.flash.block_map import BlockMap, MappedRange
from firmware_profiles.image.container import Container, check_is_disk, file_digest, sniff, stream
from firmware_profiles.image.partitions import SECTOR_BYTES, TABLE_BYTES_MAX, read_table

CHUNK_BYTES: Final = 4 * 2**20
"""Pieces begin at multiples of this: the erase block of usual cards, and a multiple of every sector size."""
FIRST_BYTES: Final = 2**20
"""Written last: boot sector and partition table."""

Advance = Callable[[int], None]
"""Told of every number of bytes done."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of the image with data, at most ``CHUNK_BYTES`` long."""

    offset: int
    size: int
    digest: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What an image is."""

    path: Path
    container: Container
    content_bytes: int
    content_sha256: str
    file_sha256: str
    ranges: tuple[MappedRange, ...]
    pieces: tuple[Piece, ...]

    @property
    def mapped_bytes(self) -> int:
        """Bytes to write and compare; less than all with a block map."""
        return sum(piece.size for piece in self.pieces)

    def content(self) -> Iterator[tuple[Piece, bytes]]:
        """Unpack again and yield each piece with its bytes.

        Raises:
            ImageRefusedError: the file is not what it was.
        """
        expected = iter(self.pieces)
        for offset, data in _cut(stream(self.path, self.container, bytes_max=self.content_bytes), self.ranges):
            piece = next(expected, None)
            if piece is None or piece.offset != offset or hashlib.sha256(data).digest() != piece.digest:
                break
            yield piece, data
        else:
            if next(expected, None) is None:
                return
        raise ImageRefusedError(ImageRefusal.CHANGED, f"{self.path}: has changed since it was checked")


def survey(path: Path, *, bytes_max: int, block_map: BlockMap | None = None, advance: Advance | None = None) -> Survey:
    """Read an image from beginning to end.

    Args:
        path: Raw, gz, xz or zst.
        bytes_max: Largest unpacked size; a decompression bomb is stopped there.
        block_map: Which parts hold data; all of them without one.
        advance: Told of progress, in unpacked bytes.

    Raises:
        ImageRefusedError: unknown format, truncated, corrupt, too large, or the block map is of another image.
    """
    container = sniff(path)
    digest = hashlib.sha256()
    head = bytearray()
    total = 0

    def watched() -> Iterator[bytes]:
        nonlocal total
        for data in stream(path, container, bytes_max=bytes_max):
            digest.update(data)
            head.extend(data[: TABLE_BYTES_MAX - len(head)])
            total += len(data)
            if advance is not None:
                advance(len(data))
            yield data

    ranges = block_map.ranges if block_map else (MappedRange(0, bytes_max, None),)
    pieces = _survey_pieces(_cut(watched(), ranges), ranges, path)
    check_is_disk(bytes(head[:8192]), path)
    if total % SECTOR_BYTES:
        raise ImageRefusedError(ImageRefusal.TRUNCATED, f"{path}: {total} bytes are not whole sectors")
    if block_map is not None and block_map.image_bytes != total:
        raise ImageRefusedError(
            ImageRefusal.BAD_BLOCK_MAP, f"block map is of {block_map.image_bytes} bytes, the image has {total}"
        )
    read_table(lambda offset, size: bytes(head[offset : offset + size])).check_fits(total)
    content = digest.hexdigest()
    return Survey(
        path=path,
        container=container,
        content_bytes=total,
        content_sha256=content,
        file_sha256=content if container is Container.RAW else file_digest(path),
        ranges=ranges,
        pieces=pieces,
    )


def _survey_pieces(cut: Iterator[tuple[int, bytes]], ranges: tuple[MappedRange, ...], path: Path) -> tuple[Piece, ...]:
    """Digests of the pieces; those of the block map's ranges are compared as the pieces pass."""
    found = []
    rest = list(reversed(ranges))
    of_range = hashlib.sha256()
    for offset, data in cut:
        found.append(Piece(offset, len(data), hashlib.sha256(data).digest()))
        of_range.update(data)
        if offset + len(data) == rest[-1].end:
            done = rest.pop()
            if done.sha256 is not None and of_range.hexdigest() != done.sha256:
                raise ImageRefusedError(
                    ImageRefusal.WRONG_CHECKSUM,
                    f"{path}: bytes {done.start} to {done.end} are not what the block map says",
                )
            of_range = hashlib.sha256()
    return tuple(found)


def _cut(stream_: Iterator[bytes], ranges: tuple[MappedRange, ...]) -> Iterator[tuple[int, bytes]]:
    """Yield (offset, bytes) of the mapped ranges, cut at multiples of ``CHUNK_BYTES``; consumes the whole stream."""
    rest = list(reversed(ranges))
    buffer, offset = bytearray(), 0  # buffer holds mapped bytes that end at offset
    for data in stream_:
        position = 0
        while position < len(data):
            left_out = len(data) if not rest else min(len(data), rest[-1].start - offset)
            if left_out > position:
                _check_zeros(data[position:left_out], offset + position)
                position = left_out
                continue
            here = rest[-1]
            absolute = offset + position
            edge = min(here.end, (absolute // CHUNK_BYTES + 1) * CHUNK_BYTES)
            taken = data[position : position + edge - absolute]
            buffer += taken
            position += len(taken)
            if absolute + len(taken) == edge:
                yield edge - len(buffer), bytes(buffer)
                buffer.clear()
                if edge == here.end:
                    rest.pop()
        offset += len(data)
    if buffer:
        yield offset - len(buffer), bytes(buffer)


def _check_zeros(data: bytes, offset: int) -> None:
    """What a block map leaves out is a hole of the image: otherwise the map, which nobody signs, would drop content."""
    if data.count(0) != len(data):
        raise ImageRefusedError(
            ImageRefusal.BAD_BLOCK_MAP, f"the image has data in bytes {offset} to {offset + len(data)}, its map none"
        )
