"""uint8 grids of activations, fixed by calibration: value = (q - zero) * scale, q in 0..255.

Without them the training step takes the range of each batch. With them ranges are constants of the artifact: what lies
outside saturates, and gets no gradient (as in TinyEngine, Lin et al. 2022, arXiv:2206.15472). A grid belongs to a value
that a Gemm or Conv reads.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from edge_sdk.errors import TrainingError
from edge_sdk.training.operators import Op

if TYPE_CHECKING:
    from edge_sdk.training.network import Network, Node

UINT8_MAX: Final = 255
KEEPS_GRID: Final = frozenset({Op.MAX_POOL, Op.RELU, Op.FLATTEN, Op.RESHAPE})
"""Operators whose output lies on the grid of their input, and which commute with rounding and saturation to it."""


class Grid(NamedTuple):
    """Scale, a float32, and zero point, 0..255."""

    scale: float
    zero: int

    @property
    def bounds(self) -> tuple[float, float]:
        """Smallest and largest value, as float32."""
        scale = np.float32(self.scale)
        return float(-self.zero * scale), float((UINT8_MAX - self.zero) * scale)


Grids = Mapping[str, Grid]
NO_GRIDS: Final[Grids] = MappingProxyType({})


class Calibrated(NamedTuple):
    """What calibration adds to an artifact."""

    grids: Grids = NO_GRIDS
    int8_onnx: bytes = b""
    """Inference graph."""


NOT_CALIBRATED: Final = Calibrated()


def grid_of_range(low: float, high: float) -> Grid:
    """The grid over a range, widened to hold zero exactly.

    Raises:
        TrainingError: the range is not finite.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    if not math.isfinite(high - low):
        raise TrainingError(f"range {low:g}..{high:g} of an activation is not finite")
    scale = float(np.float32((high - low) / UINT8_MAX)) or 1.0
    return Grid(scale, min(UINT8_MAX, round(-low / scale)))


def gridded_values(network: Network) -> tuple[str, ...]:
    """Values that need a grid, in order of their first reader."""
    readers = (node.values[0] for node in network.nodes if node.op in {Op.GEMM, Op.CONV})
    return tuple(dict.fromkeys(readers))


def output_grid(network: Network, node: Node, grids: Grids) -> Grid | None:
    """The grid that a convolution may write to at once: that of the value behind it, when nobody else reads between."""
    value = node.output
    while value not in grids:
        readers = [later for later in network.nodes if value in later.values]
        if len(readers) != 1 or readers[0].op not in KEEPS_GRID:
            return None
        value = readers[0].output
    return grids[value]


def check_grids(network: Network, grids: Grids) -> None:
    """Check that each value that needs a grid has one that can be used, and no other value has.

    Raises:
        TrainingError: it does not hold; the text names the value.
    """
    wanted = set(gridded_values(network))
    if set(grids) != wanted:
        raise TrainingError(f"activation grids are given for {sorted(grids)[:8]}, expected {sorted(wanted)[:8]}")
    for value, (scale, zero) in grids.items():
        if not (math.isfinite(scale) and 2.0**-60 <= scale <= 2.0**60) or not 0 <= zero <= UINT8_MAX:
            raise TrainingError(f"activation grid of {value}: scale {scale:g}, zero point {zero}")
