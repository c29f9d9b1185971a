"""Class-balanced reservoir sampling: which rows of an endless stream a bounded store keeps.

Every class gets an equal share of the rows, as far as it has been seen often enough; what a class holds is a uniform
sample of all its rows so far. Two invariants, tested:

- With M rows in the largest class, each class holds at least M - 1 rows, or every row of it that ever came.
- Among the rows of one class all subsets of the size that is held are equally likely.

With one class alone (targets without labels) this is the reservoir of Vitter 1985, Algorithm R (doi
10.1145/3147.3165). A class counts as full once it was the largest of a store that has no room left.

Source: Chrysakis, Moens 2020, Algorithm 1 (ICML, PMLR 119:1952-1961).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

Draw = Callable[[int], int]
"""A number in 0..n-1, each equally likely."""
_DRAW_BYTES: Final = 8


@dataclass(frozen=True, slots=True)
class ClassCount:
    """What is known of one class. ``seen`` counts rows of the stream, ``stored`` those that are held now."""

    stored: int = 0
    seen: int = 0
    is_full: bool = False


@dataclass(frozen=True, slots=True)
class Place:
    """Where a new row goes: into a free place, or instead of row ``index`` of class ``label``."""

    label: int | None = None
    index: int = 0


def draws(seed: int, number: int) -> Draw:
    """The random numbers for row ``number`` of the stream, 0 for the first: the same after a restart.

    Exact: numbers of 64 bits that would favour some residues are drawn again.
    """
    drawn = 0

    def draw(n: int) -> int:
        nonlocal drawn
        limit = (1 << 8 * _DRAW_BYTES) // n * n
        while True:
            data = hashlib.sha256(f"{seed} {number} {drawn}".encode()).digest()
            drawn += 1
            value = int.from_bytes(data[:_DRAW_BYTES])
            if value < limit:
                return value % n

    return draw


def arrive(
    counts: Mapping[int, ClassCount], label: int, *, capacity: int, draw: Draw
) -> tuple[dict[int, ClassCount], Place | None]:
    """Take one row of the stream.

    Args:
        counts: What is known of each class that was seen.
        label: Class of the row.
        capacity: Rows that may be held, >= 1.
        draw: Chance.

    Returns:
        The counts that changed, and where the row goes; None when it is not kept.

    Cost: O(classes) once the store has no room left.
    """
    mine = counts.get(label, ClassCount())
    if sum(count.stored for count in counts.values()) < capacity:
        return {label: ClassCount(mine.stored + 1, mine.seen + 1, mine.is_full)}, Place()
    most = max(count.stored for count in counts.values())
    largest = sorted(name for name, count in counts.items() if count.stored == most)
    changed = {name: ClassCount(most, counts[name].seen, is_full=True) for name in largest}
    mine = changed.get(label, mine)
    seen = mine.seen + 1
    if mine.is_full:
        changed[label] = ClassCount(mine.stored, seen, is_full=True)
        index = draw(seen)  # stays with chance stored / seen
        return changed, Place(label, index) if index < mine.stored else None
    chosen = draw(most * len(largest))
    donor, index = largest[chosen // most], chosen % most
    changed[donor] = ClassCount(most - 1, counts[donor].seen, is_full=True)
    changed[label] = ClassCount(mine.stored + 1, seen, is_full=False)
    return changed, Place(donor, index)
