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
_HALF: Final = np.float32(0.5)
"""Of a level: it keeps sums off the ties of rounding."""


class RoundingNoise:
    """Draws the noise of each step of a job; step k always has the same."""

    def __init__(self, artifact: Artifact, *, rng: np.random.Generator) -> None:
        """Take one number from ``rng``, if the artifact rounds stochastically at all."""
        specs = artifact.network.tensors if artifact.rounds_stochastically else ()
        self._parts: list[tuple[str, slice, tuple[int, ...]]] = []
        rows: list[tuple[str, tuple[int, ...]]] = []
        columns: list[tuple[str, tuple[int, ...]]] = []
        for spec in specs:
            if artifact.is_quantized(spec) and spec.is_trainable:
                row_name, column_name = noise_names(spec.name)
                rows.append((row_name, (spec.shape[0], *(1 for _ in spec.shape[1:]))))
                columns.append((column_name, (1, *spec.shape[1:])))
        self._size = 0
        for name, shape in (*rows, *columns):
            self._parts.append((name, slice(self._size, self._size + math.prod(shape)), shape))
            self._size += math.prod(shape)
        self._first_column = sum(math.prod(shape) for _, shape in rows)
        self._seed = int(rng.integers(2**63)) if self._parts else 0

    def draw(self, step: int) -> dict[str, npt.NDArray[np.float32]]:
        """By the names of ``noise_names``: rows, (r, 1, ...), and columns, (1, *shape[1:]), in [0, 1)."""
        if not self._parts:
            return {}
        levels = np.random.default_rng((self._seed, step)).integers(_LEVELS, size=self._size, dtype=np.uint16)
        numbers = levels.astype(np.float32)
        numbers[self._first_column :] += _HALF
        numbers /= np.float32(_LEVELS)
        return {name: numbers[part].reshape(shape) for name, part, shape in self._parts}
