"""Ranges of activations from examples: one float32 forward pass with the weights that the int8 network has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from coordinator.authoring.builder import build_artifact
from edge_sdk.errors import TrainingError
from edge_sdk.training.grids import Grid, grid_of_range, gridded_values
from edge_sdk.training.network import INPUT, Scheme
from edge_sdk.training.numpy_backend import NumpyBackend
from edge_sdk.training.quantize import round_to_int8

if TYPE_CHECKING:
    import numpy.typing as npt

    from edge_sdk.protocol.messages import ModelParams
    from edge_sdk.training.network import Network

EXAMPLES_MAX: Final = 1_024
"""More examples hardly widen a range."""
HEADROOM: Final = 1.25
"""Of every range but the input's: training moves activations, and what saturates no longer learns."""
_SLICE: Final = 64


def calibrate(network: Network, params: ModelParams, x: npt.NDArray[np.float32]) -> dict[str, Grid]:
    """The grid of each value that a Gemm or Conv reads.

    Args:
        network: Forward network.
        params: Best trained ones: ranges fit the parameters that they were measured with.
        x: Examples, (n, *input_shape), 1 <= n; the first ``EXAMPLES_MAX`` are used.

    Raises:
        TrainingError: there is no example, or an activation is not finite.
    """
    if not len(x):
        raise TrainingError("calibration: no example")
    backend = NumpyBackend(build_artifact("calibration", network, batch=1, scheme=Scheme.FP32))
    weights = round_to_int8(params)
    wanted = gridded_values(network)
    lows, highs = dict.fromkeys(wanted, 0.0), dict.fromkeys(wanted, 0.0)
    for start in range(0, min(len(x), EXAMPLES_MAX), _SLICE):
        values = backend.activations(x[start : start + _SLICE], weights)
        for name in wanted:
            if not np.isfinite(values[name]).all():
                raise TrainingError(f"calibration: activation {name} is not finite")
            lows[name] = min(lows[name], float(values[name].min()))
            highs[name] = max(highs[name], float(values[name].max()))
    margins = {name: 1.0 if name == INPUT else HEADROOM for name in wanted}
    return {name: grid_of_range(lows[name] * margins[name], highs[name] * margins[name]) for name in wanted}
