"""Write an image so that a failed card cannot boot, then compare what the medium gives back.

Order: the old boot sector and table are wiped; everything behind the first MiB is written, flushed and compared; only
then comes the first MiB, flushed and compared. A power cut or a bad block anywhere before leaves a card without a
partition table.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from firmware_profiles.errors import MediumError
from firmware_profiles.flash.medium import Medium
from firmware_profiles.flash.survey import CHUNK_BYTES, FIRST_BYTES, Advance, Piece, Survey

Phase = Callable[[str, int], Advance]
"""Begins a phase of so many bytes and returns what counts them."""


def write(image: Survey, medium: Medium, *, phase: Phase) -> None:
    """Write and verify.

    Raises:
        MediumError: the medium refuses, or does not hold what was written (``.offset``).
        ImageRefusedError: the image changed while it was written; the first MiB is blank then.
    """
    first = min(FIRST_BYTES, image.content_bytes)
    medium.write_at(0, bytes(first))
    # Now, not when the kernel likes: until then a power cut leaves the old table over new content.
    medium.flush(offset=first)
    begin: list[tuple[int, bytes]] = []
    advance = phase("writing", image.mapped_bytes)
    for piece, data in image.content():
        if piece.offset < first:
            begin.append((piece.offset, data[: first - piece.offset]))
        skipped = max(0, first - piece.offset)
        if skipped < len(data):
            medium.write_at(piece.offset + skipped, data[skipped:])
        advance(len(data))
    medium.flush(offset=image.content_bytes)
    check_space(image, medium)
    advance = phase("verifying", image.mapped_bytes)
    for piece in image.pieces:
        if piece.offset >= first:
            _check_piece(image, piece, medium.read_at(piece.offset, piece.size), medium)
            advance(piece.size)
        else:
            _check_tail(image, piece, first, medium)
    for offset, data in begin:
        medium.write_at(offset, data)
    medium.flush(offset=first)
    for piece in image.pieces:
        if piece.offset < first:
            _check_piece(image, piece, medium.read_at(piece.offset, piece.size), medium)
            advance(piece.size)


def verify(image: Survey, medium: Medium, *, phase: Phase) -> None:
    """Compare a medium with an image; holes of a block map are not read.

    Raises:
        MediumError: it differs; the text and ``.offset`` name the first byte.
    """
    check_space(image, medium)
    medium.forget()
    advance = phase("verifying", image.mapped_bytes)
    for piece in image.pieces:
        _check_piece(image, piece, medium.read_at(piece.offset, piece.size), medium)
        advance(piece.size)


def check_space(image: Survey, medium: Medium) -> None:
    """Refuse a medium that is shorter than the image.

    Raises:
        MediumError: it ends too early.
    """
    size = medium.size_bytes
    if size < image.content_bytes:
        raise MediumError(f"{medium.name}: ends at byte {size}, the image at {image.content_bytes}", offset=size)


def _check_piece(image: Survey, piece: Piece, found: bytes, medium: Medium) -> None:
    if hashlib.sha256(found).digest() != piece.digest:
        _raise_difference(image, piece, found, 0, medium)


def _check_tail(image: Survey, piece: Piece, first: int, medium: Medium) -> None:
    """Compare the part of the first piece that is written already, with the image once more: its digest is of all."""
    skipped = first - piece.offset
    if piece.size <= skipped:
        return
    expected = _content_of(image, piece)[skipped:]
    found = medium.read_at(piece.offset, piece.size)[skipped:]
    if found != expected:
        _raise_difference(image, piece, found, skipped, medium)


def _raise_difference(image: Survey, piece: Piece, found: bytes, skipped: int, medium: Medium) -> None:
    expected = _content_of(image, piece)[skipped:]
    pairs = enumerate(zip(expected, found, strict=False))
    index = next((at for at, (want, have) in pairs if want != have), min(len(expected), len(found)))
    offset = piece.offset + skipped + index
    what = f"byte {found[index]:#04x} instead of {expected[index]:#04x}" if index < len(found) else "nothing more"
    raise MediumError(
        f"{medium.name}: gives back {what} at byte {offset} (block {offset // CHUNK_BYTES} of 4 MiB)", offset=offset
    )


def _content_of(image: Survey, wanted: Piece) -> bytes:
    """Bytes of one piece, unpacked again."""
    return next(data for piece, data in image.content() if piece.offset == wanted.offset)
