"""Partition tables, read without trust: MBR with its four entries, GPT with its checksums.

Sources: UEFI specification 2.10, chapter 5; partition type codes as sfdisk lists them.
"""

from __future__ import annotations

import struct
import uuid
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from firmware_profiles.errors import ImageRefusal, ImageRefusedError
from firmware_profiles.image.filesystems import printable

SECTOR_BYTES: Final = 512
TABLE_BYTES_MAX: Final = 64 * 1024
"""Bytes from the start of a disk that hold all we read: 34 sectors are usual, 128 entries at most."""
GPT_ENTRIES_MAX: Final = 256
PROTECTIVE: Final = 0xEE
EXTENDED: Final = frozenset({0x05, 0x0F, 0x85})
_GPT_NAMES: Final = {
    "c12a7328-f81f-11d2-ba4b-00a0c93ec93b": "EFI system",
    "0fc63daf-8483-4772-8e79-3d69d8477de4": "Linux",
    "ebd0a0a2-b9e5-4433-87c0-68b6b72699c7": "basic data",
    "21686148-6449-6e6f-744e-656564454649": "BIOS boot",
}
_MBR_NAMES: Final = {0x0B: "FAT32", 0x0C: "FAT32 LBA", 0x0E: "FAT16 LBA", 0x06: "FAT16", 0x82: "swap", 0x83: "Linux"}

Reader = Callable[[int, int], bytes]


@dataclass(frozen=True, slots=True)
class Partition:
    """One entry, in bytes from the start of the disk."""

    index: int
    start_bytes: int
    size_bytes: int
    kind: str
    name: str

    @property
    def end_bytes(self) -> int:
        """First byte behind it."""
        return self.start_bytes + self.size_bytes


@dataclass(frozen=True, slots=True)
class Table:
    """A partition table; kind ``none`` for a file system that fills the whole disk."""

    kind: str
    partitions: tuple[Partition, ...]

    def check_fits(self, size_bytes: int) -> None:
        """Refuse an image that ends before its last partition does.

        Raises:
            ImageRefusedError: it was cut off.
        """
        for partition in self.partitions:
            if partition.end_bytes > size_bytes:
                raise ImageRefusedError(
                    ImageRefusal.TRUNCATED,
                    f"partition {partition.index} ends at byte {partition.end_bytes}, the image at {size_bytes}",
                )


def read_table(read: Reader) -> Table:
    """Read the table of a disk.

    Raises:
        ImageRefusedError: a GPT whose checksums do not hold, or entries that make no sense.
    """
    head = read(0, SECTOR_BYTES)
    if head[510:512] != b"\x55\xaa":
        return Table("none", ())
    entries = [head[446 + 16 * index :][:16] for index in range(4)]
    if any(entry[4] == PROTECTIVE for entry in entries):
        return Table("gpt", _gpt(read))
    # A FAT without partitions carries the same signature; its boot flag bytes are code or text, never only 0 or 0x80.
    if any(entry[0] not in {0, 0x80} for entry in entries) or not any(any(entry) for entry in entries):
        return Table("none", ())
    found = []
    for index, entry in enumerate(entries, start=1):
        start, count = struct.unpack("<II", entry[8:16])
        if entry[4] and count:
            kind = "extended" if entry[4] in EXTENDED else _MBR_NAMES.get(entry[4], f"type {entry[4]:02x}")
            found.append(Partition(index, start * SECTOR_BYTES, count * SECTOR_BYTES, kind, ""))
    return Table("mbr", tuple(found))


def _gpt(read: Reader) -> tuple[Partition, ...]:
    header = read(SECTOR_BYTES, SECTOR_BYTES)
    if header[:8] != b"EFI PART":
        raise _corrupt("no header behind the protective MBR")
    header_bytes, checksum = struct.unpack_from("<II", header, 12)
    if not 92 <= header_bytes <= SECTOR_BYTES:
        raise _corrupt("length of the header")
    blanked = header[:16] + b"\0\0\0\0" + header[20:header_bytes]
    if zlib.crc32(blanked) != checksum:
        raise _corrupt("checksum of the header")
    first, count, entry_bytes, table_checksum = struct.unpack_from("<QIII", header, 72)
    if not 1 <= count <= GPT_ENTRIES_MAX or entry_bytes != 128 or not 2 <= first <= TABLE_BYTES_MAX // SECTOR_BYTES:
        raise _corrupt("size of the table")
    raw = read(first * SECTOR_BYTES, count * entry_bytes)
    if len(raw) != count * entry_bytes or zlib.crc32(raw) != table_checksum:
        raise _corrupt("checksum of the table")
    found = []
    for index in range(count):
        entry = raw[index * entry_bytes :][:entry_bytes]
        if not any(entry[:16]):
            continue
        start, last = struct.unpack_from("<QQ", entry, 32)
        if last < start:
            raise _corrupt(f"entry {index + 1} ends before it starts")
        type_id = str(uuid.UUID(bytes_le=entry[:16]))
        name = printable(entry[56:128].decode("utf-16-le", "replace").split("\0")[0])
        kind = _GPT_NAMES.get(type_id, type_id)
        found.append(Partition(index + 1, start * SECTOR_BYTES, (last - start + 1) * SECTOR_BYTES, kind, name))
    return tuple(found)


def _corrupt(what: str) -> ImageRefusedError:
    return ImageRefusedError(ImageRefusal.CORRUPT, f"GPT: {what} does not hold")
