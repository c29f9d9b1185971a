"""What is inside of an image: container, sizes, partitions, labels, and a guess of the system, for information only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from firmware_profiles.image.container import Container, check_is_disk, sniff, stream
from firmware_profiles.image.filesystems import PROBE_BYTES, FileSystem, identify
from firmware_profiles.image.partitions import SECTOR_BYTES, TABLE_BYTES_MAX, Partition, Reader, Table, read_table

# Reads of PROBE_BYTES whose starts rise may overlap, in hostile tables too: this much of the past stays readable.
_TAIL_BYTES: Final = 2 * PROBE_BYTES

# Labels that vendors give. A guess shown to a person; no decision rests on it.
_SYSTEMS: Final = (
    ({"bootfs", "rootfs"}, "Raspberry Pi OS"),
    ({"system-boot", "writable"}, "Ubuntu for Raspberry Pi"),
    ({"app"}, "NVIDIA Jetson Linux"),
    ({"armbi_root"}, "Armbian"),
    ({"cloudimg-rootfs"}, "Ubuntu cloud image"),
    ({"resin-boot"}, "balenaOS"),
)


@dataclass(frozen=True, slots=True)
class Volume:
    """A partition, or the whole disk as partition 0, with the file system in it."""

    partition: Partition
    filesystem: FileSystem | None


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """Result of an inspection."""

    path: Path
    container: Container
    file_bytes: int
    content_bytes: int
    table: Table
    volumes: tuple[Volume, ...]

    @property
    def system_guess(self) -> str | None:
        """Name of the operating system that uses these labels; None when no table knows them."""
        names = {volume.partition.name.lower() for volume in self.volumes}
        names |= {volume.filesystem.label.lower() for volume in self.volumes if volume.filesystem is not None}
        return next((system for labels, system in _SYSTEMS if labels <= names), None)


class ForwardReader:
    """Reads at rising offsets from a stream, keeping only its start (at most ``TABLE_BYTES_MAX``)."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        """Begin at the start of the stream."""
        self._pieces = pieces
        self._piece = b""
        self._start = 0
        self._head = bytearray()

    def head(self, offset: int, size: int) -> bytes:
        """Bytes of the start, as often as wanted; fewer where the content ends or the kept start does."""
        while len(self._head) < min(offset + size, TABLE_BYTES_MAX) and self._advance():
            pass
        return bytes(self._head[offset : offset + size])

    def read(self, offset: int, size: int) -> bytes:
        """Bytes at an offset; fewer where the content ends."""
        if offset + size <= len(self._head):
            return self.head(offset, size)
        assert offset >= self._start, "reads rise"
        found = bytearray()
        while len(found) < size:
            begin = offset + len(found) - self._start
            if begin < len(self._piece):
                found += self._piece[begin : begin + size - len(found)]
            elif not self._advance():
                break
        return bytes(found)

    def drain(self) -> int:
        """Read to the end; returns the size of the content."""
        while self._advance():
            pass
        return self._start + len(self._piece)

    def _advance(self) -> bool:
        piece = next(self._pieces, b"")
        if not piece:
            return False
        kept = self._piece[-_TAIL_BYTES:]
        self._start += len(self._piece) - len(kept)
        self._piece = kept + piece
        self._head += piece[: TABLE_BYTES_MAX - len(self._head)]
        return True


def inspect(path: Path, *, bytes_max: int) -> ImageFacts:
    """Look into an image; the whole content is unpacked once, none of it is stored.

    Raises:
        ImageRefusedError: unknown, truncated, corrupt, or more than ``bytes_max`` unpacked.
    """
    container = sniff(path)
    reader = ForwardReader(stream(path, container, bytes_max=bytes_max))
    check_is_disk(reader.head(0, 8192), path)
    table = read_table(reader.head)
    found = list(_volumes(table, reader.read))
    content_bytes = reader.drain()
    table.check_fits(content_bytes)
    return ImageFacts(path, container, path.stat().st_size, content_bytes, table, tuple(found))


def volumes_of(read: Reader, size_bytes: int) -> tuple[Table, tuple[Volume, ...]]:
    """Table and volumes of a disk that can be read anywhere."""
    table = read_table(read)
    table.check_fits(size_bytes)
    return table, tuple(_volumes(table, read))


def _volumes(table: Table, read: Reader) -> Iterator[Volume]:
    """Volumes by rising offset."""
    whole = (Partition(0, 0, 0, "whole disk", ""),)
    for partition in sorted(table.partitions or whole, key=lambda entry: entry.start_bytes):
        start = partition.start_bytes
        is_readable = partition.kind != "extended" and start % SECTOR_BYTES == 0
        yield Volume(partition, identify(read(start, PROBE_BYTES)) if is_readable else None)
