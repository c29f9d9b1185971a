"""Masks of dropout, drawn outside of the graph, so that every backend and every resumed job uses the same ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edge_sdk.training.network import infer_shapes
from edge_sdk.training.operators import Op

if TYPE_CHECKING:
    import numpy.typing as npt

    from edge_sdk.training.network import Network


class DropoutMasks:
    """Draws the masks of each step of a job; step k always has the same ones."""

    def __init__(self, network: Network, *, batch: int, rng: np.random.Generator) -> None:
        """Take one number from ``rng``, if the network has a dropout at all."""
        shapes = infer_shapes(network, batch=batch)
        self._places = [(n.output, shapes[n.output], n.constants[0]) for n in network.nodes if n.op is Op.DROPOUT]
        self._seed = int(rng.integers(2**63)) if self._places else 0

    def draw(self, step: int) -> dict[str, npt.NDArray[np.float32]]:
        """Mask of each dropout by its output: 1 / (1 - rate) with probability 1 - rate, else 0.

        Source: Srivastava et al. 2014, Dropout, section 10 (scaled in training, nothing to do in evaluation).
        """
        if not self._places:
            return {}
        rng = np.random.default_rng((self._seed, step))
        masks: dict[str, npt.NDArray[np.float32]] = {}
        for output, shape, rate in self._places:
            kept = rng.random(shape, np.float32) >= np.float32(rate)
            masks[output] = kept * np.float32(1.0 / (1.0 - rate))
        return masks
