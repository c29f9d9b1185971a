"""Float parameters as a global model: integers on one exponent per tensor, with scales per channel."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from edge_sdk.errors import TrainingError
from edge_sdk.protocol.messages import ModelParams, ModelTensor
from edge_sdk.training.network import GENESIS_EXPONENT_MAX
from edge_sdk.training.quantize import channel_scales

if TYPE_CHECKING:
    import numpy.typing as npt

    from edge_sdk.training.operators import TensorSpec

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


def to_params(specs: tuple[TensorSpec, ...], arrays: Mapping[str, npt.NDArray[Any]]) -> ModelParams:
    """The model whose integers are nearest to the arrays."""
    return ModelParams(tensors=tuple(to_tensor(spec, arrays[spec.name]) for spec in specs))


def to_tensor(spec: TensorSpec, floats: npt.NDArray[Any]) -> ModelTensor:
    """One tensor of a model; weights get scales per channel."""
    values = np.rint(np.ldexp(floats.astype(np.float64), -spec.exponent)).astype(np.int32)
    scale_m = scale_k = b""
    if spec.channel_axis >= 0:
        m, k = channel_scales(values, spec.exponent, spec.channel_axis)
        scale_m, scale_k = m.tobytes(), k.tobytes()
    return ModelTensor(
        name=spec.name,
        shape=spec.shape,
        exponent=spec.exponent,
        channel_axis=spec.channel_axis,
        values=values.astype("<i4").tobytes(),
        scale_m=scale_m,
        scale_k=scale_k,
    )
