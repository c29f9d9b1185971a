"""Block maps (``.bmap``, format 2): which ranges of an image hold data. The rest need not be written, nor compared.

Source: intel/bmap-tools, bmap format version 2.0. Only SHA-256 maps are taken; the map's own checksum is checked.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from xml.etree import ElementTree

from firmware_profiles.errors import ImageRefusal, ImageRefusedError

BMAP_BYTES_MAX: Final = 16 * 2**20
RANGES_MAX: Final = 1_000_000
_HEX: Final = re.compile(r"[0-9a-f]{64}")
_DIGITS: Final = re.compile(r"[0-9]{1,15}")


@dataclass(frozen=True, slots=True)
class MappedRange:
    """Bytes that hold data, with their SHA-256 in hex where the map has one."""

    start: int
    end: int
    sha256: str | None


@dataclass(frozen=True, slots=True)
class BlockMap:
    """Size of the image and its mapped ranges, rising and apart."""

    image_bytes: int
    ranges: tuple[MappedRange, ...]


def load_block_map(path: Path) -> BlockMap:
    """Read and check a block map.

    Raises:
        ImageRefusedError: not a map of format 2 with SHA-256, or it contradicts itself.
    """
    try:
        with path.open("rb") as file:
            data = file.read(BMAP_BYTES_MAX + 1)
    except OSError as error:
        raise ImageRefusedError(ImageRefusal.BAD_BLOCK_MAP, f"{path}: {error.strerror}") from error
    try:
        return _parse(data)
    except (ElementTree.ParseError, ValueError) as error:
        raise ImageRefusedError(ImageRefusal.BAD_BLOCK_MAP, f"{path}: {error}") from error


def _parse(data: bytes) -> BlockMap:
    # Entities are the only way in which XML grows; a map declares none.
    if len(data) > BMAP_BYTES_MAX or b"<!DOCTYPE" in data or b"<!ENTITY" in data:
        raise ValueError("too long, or declares entities")
    root = ElementTree.fromstring(data)  # noqa: S314 - bounded, and without entities
    version = root.get("version", "")
    if root.tag != "bmap" or not version.startswith("2."):
        raise ValueError(f"version {version!r}: expected a bmap of version 2")
    if _text(root, "ChecksumType") != "sha256":
        raise ValueError("checksums are not SHA-256")
    stated = _text(root, "BmapFileChecksum")
    if not _HEX.fullmatch(stated):
        raise ValueError("no checksum of the map itself")
    if hashlib.sha256(data.replace(stated.encode(), b"0" * 64)).hexdigest() != stated:
        raise ValueError("its own checksum does not hold")
    image_bytes, block_bytes = _number(_text(root, "ImageSize")), _number(_text(root, "BlockSize"))
    if block_bytes not in {512, 1024, 2048, 4096, 8192, 16384, 32768, 65536}:
        raise ValueError(f"blocks of {block_bytes} bytes")
    elements = root.findall("BlockMap/Range")
    if not 1 <= len(elements) <= RANGES_MAX:
        raise ValueError(f"{len(elements)} ranges")
    found: list[MappedRange] = []
    for element in elements:
        first, _, last = (element.text or "").strip().partition("-")
        start, end = _number(first) * block_bytes, (_number(last or first) + 1) * block_bytes
        end = min(end, image_bytes)
        if start >= end or (found and start < found[-1].end):
            raise ValueError(f"range {element.text!r} is empty, outside, or out of order")
        checksum = element.get("chksum")
        if checksum is not None and not _HEX.fullmatch(checksum):
            raise ValueError(f"range {element.text!r}: checksum")
        found.append(MappedRange(start, end, checksum))
    return BlockMap(image_bytes, tuple(found))


def _text(root: ElementTree.Element, name: str) -> str:
    return (root.findtext(name) or "").strip()


def _number(text: str) -> int:
    text = text.strip()
    if not _DIGITS.fullmatch(text):
        raise ValueError(f"{text[:20]!r} is not a number")
    return int(text)
