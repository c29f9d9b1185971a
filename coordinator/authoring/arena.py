"""The memory arena of ONNX Runtime, as far as it decides how much of it is ever touched.

Source: ``onnxruntime/core/framework/bfc_arena.cc`` (1.16 to 1.31): regions of 1 MiB, then twice as large each time;
requests in multiples of 256 bytes; of the free pieces of the smallest fitting bin the smallest, split only where
at least half would be left over; neighbours that are both free become one. What was never handed out is never touched,
and costs no memory.
"""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass, field
from typing import Final

_GRAIN: Final = 256
_FIRST_REGION: Final = 1024 * 1024
_DEAD_MAX: Final = 128 * 1024 * 1024
"""A piece that would leave more than this is always split."""
_BIN_COUNT: Final = 21
_PAGE: Final = 4096


@dataclass(slots=True)
class Piece:
    """A range of one region."""

    region: int
    offset: int
    size: int
    is_free: bool = True


@dataclass(slots=True)
class Arena:
    """Hands out ranges and remembers which pages were used."""

    _regions: list[list[Piece]] = field(default_factory=list)
    """Pieces of each region in the order of their offsets."""
    _touched: list[bytearray] = field(default_factory=list)
    """One byte per page of each region."""
    _next_region: int = _FIRST_REGION

    @property
    def touched_bytes(self) -> int:
        """Memory of all pages that were ever part of a tensor."""
        return _PAGE * sum(pages.count(1) for pages in self._touched)

    def take(self, size: int) -> Piece:
        """A range of at least ``size`` bytes."""
        wanted = max(_GRAIN, -(-size // _GRAIN) * _GRAIN)
        piece = self._fitting(wanted)
        if piece is None:
            self._extend(wanted)
            piece = self._fitting(wanted)
        assert piece is not None, "a new region holds the request that it was made for"
        if piece.size >= 2 * wanted or piece.size - wanted >= _DEAD_MAX:
            rest = Piece(piece.region, piece.offset + wanted, piece.size - wanted)
            piece.size = wanted
            insort(self._regions[piece.region], rest, key=lambda each: each.offset)
        piece.is_free = False
        pages = self._touched[piece.region]
        first, last = piece.offset // _PAGE, -(-(piece.offset + size) // _PAGE)
        pages[first:last] = b"\x01" * (last - first)
        return piece

    def give(self, piece: Piece) -> None:
        """Take a range back."""
        piece.is_free = True
        pieces = self._regions[piece.region]
        place = pieces.index(piece)
        if place + 1 < len(pieces) and pieces[place + 1].is_free:
            piece.size += pieces.pop(place + 1).size
        if place and pieces[place - 1].is_free:
            pieces[place - 1].size += pieces.pop(place).size

    def _fitting(self, wanted: int) -> Piece | None:
        free = [piece for pieces in self._regions for piece in pieces if piece.is_free and piece.size >= wanted]
        return min(free, key=lambda piece: (_bin(piece.size), piece.size, piece.region, piece.offset), default=None)

    def _extend(self, wanted: int) -> None:
        is_doubled = False
        while wanted > self._next_region:
            self._next_region *= 2
            is_doubled = True
        self._regions.append([Piece(len(self._regions), 0, self._next_region)])
        self._touched.append(bytearray(-(-self._next_region // _PAGE)))
        if not is_doubled:
            self._next_region *= 2


def _bin(size: int) -> int:
    return min(_BIN_COUNT - 1, max(0, (size // _GRAIN).bit_length() - 1))
