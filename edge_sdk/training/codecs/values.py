"""What every codec is to whoever reads an update: integers of a tensor, a block at a time, and a bound on them.

A payload of bits or of a few bytes stands for a whole tensor. A merge of many updates therefore never unfolds one as a
whole: it asks for blocks of ``BLOCK`` values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

BLOCK: Final = 65_536
"""Values decoded at a time: accumulator and product stay in the second-level cache. A multiple of 8."""


class Values(Protocol):
    """Integers of one tensor, flat in C order; nothing is unfolded before it is asked for."""

    def __getitem__(self, block: slice) -> npt.NDArray[np.signedinteger[Any]]:
        """Integers of ``start:stop``; start is a multiple of ``BLOCK``, stop - start at most ``BLOCK``."""
        ...

    def peak(self) -> int:
        """No value has a larger magnitude."""
        ...


@dataclass(frozen=True, slots=True)
class SentTensor:
    """One tensor of an update on the model's grid: ``values * 2**shift``."""

    shift: int
    """0 .. ``EXPONENT_SPAN_MAX``."""
    values: Values
