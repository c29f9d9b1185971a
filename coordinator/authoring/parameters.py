"""Float parameters as a global model: integers on one exponent per tensor, with scales per channel."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from edge_sdk.errors import TrainingError
from edge_sdk.training.network import GENESIS_EXPONENT_MAX

if TYPE_CHECKING:
    import numpy.typing as npt

EXPONENT: Final = -24
"""Parameters reach +-64 in steps of 6e-8: a float32 of magnitude 1 has the same resolution."""
_VALUE_BITS: Final = 30
_HEADROOM_BITS: Final = 2
"""Training may enlarge the largest parameter four times before the integers end."""


def exponent_for(name: str, values: npt.NDArray[Any]) -> int:
    """Exponent whose integers hold the values with headroom.

    Raises:
        TrainingError: no exponent of the format does.
    """
    largest = float(np.abs(values).max()) if values.size else 0.0
    needed = math.frexp(largest)[1] + _HEADROOM_BITS - _VALUE_BITS
    if needed > GENESIS_EXPONENT_MAX:
        limit = math.ldexp(1.0, GENESIS_EXPONENT_MAX + _VALUE_BITS - _HEADROOM_BITS)
        raise TrainingError(
            f"tensor {name}: holds {largest:.3g}, at most {limit:g}: normalize the input or the weights"
        )
    return max(EXPONENT, needed)
