"""Containers of images: raw, gzip, xz and Zstandard, told by their magic, unpacked as a bounded stream.

The name of a file says nothing. Memory is bounded by the decoders' own limits, the unpacked size by the caller, and
both are checked while unpacking, so that a decompression bomb costs no more than the bound. Zstandard is unpacked by
the program ``zstd``: the standard library has it only from Python 3.14 on.
"""

from __future__ import annotations

import hashlib
import lzma
import shutil
import subprocess
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from enum import StrEnum
from pathlib import Path
from typing import Final

from firmware_profiles.errors import FirmwareError, ImageRefusal, ImageRefusedError

READ_BYTES: Final = 256 * 1024
HEAD_BYTES: Final = 8192
# xz -9 needs 65 MiB to unpack; a dictionary above this is refused.
XZ_MEMORY_BYTES_MAX: Final = 128 * 2**20
ZSTD_MEMORY: Final = "--memory=128MB"


class Container(StrEnum):
    """How the content of an image file is packed."""

    RAW = "raw"
    GZIP = "gz"
    XZ = "xz"
    ZSTD = "zst"


_MAGIC: Final = (
    (b"\x1f\x8b\x08", Container.GZIP),
    (b"\xfd7zXZ\0", Container.XZ),
    (b"\x28\xb5\x2f\xfd", Container.ZSTD),
)
_FOREIGN: Final = (
    (b"PK\x03\x04", "a zip archive"),
    (b"BZh", "bzip2"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"QFI\xfb", "a qcow2 disk"),
    (b"KDMV", "a VMDK disk"),
    (b"vhdxfile", "a VHDX disk"),
    (b"\x3a\xff\x26\xed", "an Android sparse image"),
)


def sniff(path: Path) -> Container:
    """Tell the container of a file by its first bytes.

    Raises:
        ImageRefusedError: no file, empty, or a format that is not ours.
    """
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError as error:
        raise ImageRefusedError(ImageRefusal.NOT_FOUND, f"{path}: {error.strerror}") from error
    for magic, container in _MAGIC:
        if head.startswith(magic):
            return container
    check_is_disk(head, path)
    return Container.RAW


def check_is_disk(head: bytes, path: Path) -> None:
    """Refuse content that is no disk image: neither a partition table nor a file system at its start.

    Raises:
        ImageRefusedError: unknown format; a known foreign one is named.
    """
    if not head:
        raise ImageRefusedError(ImageRefusal.TRUNCATED, f"{path}: empty")
    is_partitioned = head[510:512] == b"\x55\xaa" or b"EFI PART" in {head[512:520], head[4096:4104]}
    is_ext = head[0x438:0x43A] == b"\x53\xef"
    if not is_partitioned and not is_ext:
        kinds = [name for magic, name in (*_FOREIGN, *_MAGIC) if head.startswith(magic)]
        found = kinds[0] if kinds else f"bytes {head[:8].hex()}"
        raise ImageRefusedError(
            ImageRefusal.UNKNOWN_FORMAT, f"{path}: neither a raw disk image nor gz, xz or zst: found {found}"
        )


def stream(path: Path, container: Container, *, bytes_max: int) -> Iterator[bytes]:
    """Yield the unpacked content in pieces of no particular size.

    Raises:
        ImageRefusedError: truncated, corrupt, or larger than ``bytes_max``; raised while iterating.
    """
    unpack = {Container.RAW: _raw, Container.GZIP: _gzip, Container.XZ: _xz, Container.ZSTD: _zstd}[container]
    total = 0
    try:
        for piece in unpack(path):
            total += len(piece)
            if total > bytes_max:
                break
            yield piece
    except (zlib.error, lzma.LZMAError) as error:
        raise ImageRefusedError(ImageRefusal.CORRUPT, f"{path}: {error}") from error
    except OSError as error:
        raise ImageRefusedError(ImageRefusal.CORRUPT, f"{path}: cannot be read: {error.strerror}") from error
    if total > bytes_max:
        raise ImageRefusedError(ImageRefusal.TOO_LARGE, f"{path}: unpacks to more than {bytes_max} bytes")


def file_digest(path: Path) -> str:
    """SHA-256 of the file as it lies there, packed."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _raw(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while data := file.read(READ_BYTES):
            yield data


def _truncated(path: Path) -> ImageRefusedError:
    return ImageRefusedError(ImageRefusal.TRUNCATED, f"{path}: ends in the middle of its compressed data")


def _gzip(path: Path) -> Iterator[bytes]:
    """Members of a gzip file, one after the other; zeros behind the last are padding."""
    decoder, is_open = zlib.decompressobj(31), False
    with path.open("rb") as file:
        data = b""
        while data or (data := file.read(READ_BYTES)):
            if not is_open:
                data = data.lstrip(b"\0")
                is_open = bool(data)
            if not data:
                continue
            piece = decoder.decompress(data, READ_BYTES)
            data = decoder.unconsumed_tail
            if decoder.eof:
                data, decoder, is_open = decoder.unused_data, zlib.decompressobj(31), False
            if piece:
                yield piece
    # What is left inside of the decoder comes out without input.
    while is_open and (piece := decoder.decompress(b"", READ_BYTES)):
        yield piece
    if is_open and not decoder.eof:
        raise _truncated(path)


def _xz(path: Path) -> Iterator[bytes]:
    """Streams of an xz file, one after the other; zeros between and behind them are padding."""
    decoder = _new_xz()
    is_open = False
    with path.open("rb") as file:
        while True:
            if decoder.needs_input or not is_open:
                data = file.read(READ_BYTES) if decoder.needs_input else b""
                data = data if is_open else data.lstrip(b"\0")
                if decoder.needs_input and not data:
                    if file.tell() >= path.stat().st_size:
                        break
                    continue
            else:
                data = b""
            is_open = True
            piece = decoder.decompress(data, READ_BYTES)
            if decoder.eof:
                rest = decoder.unused_data.lstrip(b"\0")
                decoder, is_open = _new_xz(), False
                if rest:
                    file.seek(-len(rest), 1)
            if piece:
                yield piece
    if is_open:
        raise _truncated(path)


def _new_xz() -> lzma.LZMADecompressor:
    return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=XZ_MEMORY_BYTES_MAX)


def _zstd(path: Path) -> Iterator[bytes]:
    program = shutil.which("zstd")
    if program is None:
        raise FirmwareError(f"{path}: unpacking zst needs the program zstd (Debian: apt-get install zstd)")
    with ExitStack() as stack:
        process = stack.enter_context(
            subprocess.Popen(
                (program, "-dcq", ZSTD_MEMORY, "--", str(path)),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        )
        stack.callback(process.kill)  # when the reader has had enough
        assert process.stdout is not None
        assert process.stderr is not None
        while data := process.stdout.read(READ_BYTES):
            yield data
        text = process.stderr.read(HEAD_BYTES).decode("utf-8", "replace").strip()
        if process.wait() == 0:
            return
    is_cut = "premature" in text.lower() or "unexpected end" in text.lower() or "incomplete" in text.lower()
    reason = ImageRefusal.TRUNCATED if is_cut else ImageRefusal.CORRUPT
    raise ImageRefusedError(reason, f"{path}: zstd: {text.splitlines()[-1] if text else 'failed'}")
