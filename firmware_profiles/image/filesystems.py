"""File systems told by their first bytes: FAT and ext, with their labels.

Sources: Microsoft FAT specification 1.03 (boot sector), Linux Documentation/filesystems/ext4/super.rst.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

PROBE_BYTES: Final = 2048
"""What ``identify`` needs: a FAT boot sector, and the ext superblock at 1024."""
_EXT4_INCOMPAT: Final = 0x40 | 0x80  # extents, 64bit: neither ext2 nor ext3 has them


@dataclass(frozen=True, slots=True)
class FileSystem:
    """Kind (``fat12``, ``fat16``, ``fat32``, ``ext2``, ``ext4``), label and size."""

    kind: str
    label: str
    size_bytes: int

    @property
    def is_fat(self) -> bool:
        """Whether mtools can write to it."""
        return self.kind.startswith("fat")

    @property
    def is_ext(self) -> bool:
        """Whether debugfs can write to it."""
        return self.kind.startswith("ext")


def identify(head: bytes) -> FileSystem | None:
    """Tell a file system by its first ``PROBE_BYTES``; None when it is neither FAT nor ext."""
    if len(head) >= PROBE_BYTES and head[1080:1082] == b"\x53\xef":
        return _ext(head[1024:2048])
    if len(head) >= 512 and head[510:512] == b"\x55\xaa" and head[0] in {0xEB, 0xE9}:
        return _fat(head)
    return None


def printable(text: str) -> str:
    """A name from a medium as it may stand on a terminal: what could move the cursor there becomes a question mark.

    A card that is prepared for it would otherwise write its own answer into the question whether it is to be erased.
    """
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _ext(block: bytes) -> FileSystem | None:
    (count,) = struct.unpack_from("<I", block, 4)
    (shift,) = struct.unpack_from("<I", block, 24)
    (incompat,) = struct.unpack_from("<I", block, 96)
    if shift > 6:
        return None
    label = block[120:136].split(b"\0")[0].decode("utf-8", "replace")
    return FileSystem("ext4" if incompat & _EXT4_INCOMPAT else "ext2", printable(label), count << (10 + shift))


def _fat(head: bytes) -> FileSystem | None:
    sector, per_cluster, reserved, fats, roots, total16 = struct.unpack_from("<HBHBHH", head, 11)
    fat16_sectors, total32, fat32_sectors = *struct.unpack_from("<H", head, 22), *struct.unpack_from("<II", head, 32)
    if sector not in {512, 1024, 2048, 4096} or not per_cluster or fats not in {1, 2}:
        return None
    total = total16 or total32
    data = total - reserved - fats * (fat16_sectors or fat32_sectors) - (roots * 32 + sector - 1) // sector
    if data < 1:
        return None
    if not fat16_sectors:
        kind, label_at = "fat32", 71
    else:
        kind, label_at = ("fat12" if data // per_cluster < 4085 else "fat16"), 43
    label = head[label_at : label_at + 11].decode("latin-1").strip()
    return FileSystem(kind, "" if label == "NO NAME" else printable(label), total * sector)
