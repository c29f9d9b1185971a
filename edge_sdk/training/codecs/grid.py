"""The grids of powers of two that integers of an update lie on, and which of them a device picks."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from edge_sdk.errors import QuantizationError
from edge_sdk.protocol.limits import EXPONENT_SPAN_MAX

if TYPE_CHECKING:
    import numpy.typing as npt

    from edge_sdk.training.operators import TensorSpec


class Sent(NamedTuple):
    """What one tensor of an update says."""

    values: bytes
    exponent: int
    integers: npt.NDArray[Any]
    """In the tensor's shape; times 2**exponent."""


def finest_exponent(magnitude: float, largest: int, spec: TensorSpec) -> int:
    """Smallest e, at least the model's, on whose grid the magnitude needs no integer beyond ``largest``.

    Raises:
        QuantizationError: the magnitude lies beyond the coarsest grid that can be aligned with the model.
    """
    exponent = spec.exponent
    if magnitude > 0.0:
        exponent = max(exponent, math.frexp(magnitude / largest)[1] - 1)
        while round(math.ldexp(magnitude, -exponent)) > largest:
            exponent += 1
    if exponent - spec.exponent > EXPONENT_SPAN_MAX:
        raise QuantizationError(
            f"tensor {spec.name}: {magnitude:.3g} is beyond the grids that can be aligned with 2**{spec.exponent}"
        )
    return exponent


def on_grid(value: npt.NDArray[np.float32], exponent: int, kind: np.dtype[Any]) -> npt.NDArray[Any]:
    """Integers of the grid 2**exponent, halves to even."""
    return np.rint(np.ldexp(value, -exponent)).astype(kind)
