"""Noise of stochastic rounding, drawn outside of the graph, so that backends and resumed jobs round alike.

A weight of shape (r, c) takes r + c numbers in place of r c: u_ij = frac(a_i + b_j) with a and b uniform. Each u_ij is
uniform and any two are independent, which is all that the mean and the variance of a sum of rounded weights depend on.
The numbers are multiples of 2**-17, so that their sums are exact in float32, in every order and on every machine.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import numpy as np

from edge_sdk.training.artifact import noise_names

if TYPE_CHECKING:
    import numpy.typing as npt

    from edge_sdk.training.artifact import Artifact

_LEVELS: Final = 2**16


class RoundingNoise:
    """Draws the noise of each step of a job; step k always has the same."""

    def __init__(self, artifact: Artifact, *, rng: np.random.Generator) -> None:
        """Take one number from ``rng``, if the artifact rounds stochastically at all."""
        specs = artifact.network.tensors if artifact.rounds_stochastically else ()
        self._shapes = [
            (noise_names(spec.name), spec.shape[0], spec.shape[1:])
            for spec in specs
            if artifact.is_quantized(spec) and spec.is_trainable
        ]
        self._seed = int(rng.integers(2**63)) if self._shapes else 0

    def draw(self, step: int) -> dict[str, npt.NDArray[np.float32]]:
        """By the names of ``noise_names``: rows, (r, 1, ...), and columns, (1, *shape[1:]), in [0, 1)."""
        if not self._shapes:
            return {}
        rng = np.random.default_rng((self._seed, step))
        noise: dict[str, npt.NDArray[np.float32]] = {}
        for (row_name, column_name), rows, columns in self._shapes:
            levels = rng.integers(_LEVELS, size=rows + math.prod(columns)).astype(np.float32)
            noise[row_name] = (levels[:rows] / np.float32(_LEVELS)).reshape(rows, *(1 for _ in columns))
            # The half keeps a sum off the ties of rounding.
            noise[column_name] = ((levels[rows:] + np.float32(0.5)) / np.float32(_LEVELS)).reshape(1, *columns)
        return noise
