"""A miner's fold: labelled examples that no device and no other miner has, on which it scores updates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from edge_sdk.errors import TrainingError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from edge_sdk.training.dataset import ArrayDataset

FOLD_EXAMPLES_MAX: Final = 8_192
"""Scoring a block costs one forward pass over the fold for every candidate."""


@dataclass(frozen=True, slots=True, eq=False)
class Fold:
    """Examples as the network takes them: x float32 (n, *input_shape), y int64 (n,) or float32 (n, outputs)."""

    x: npt.NDArray[np.float32]
    y: npt.NDArray[Any]


def fold_of(dataset: ArrayDataset) -> Fold:
    """Unpack a checked data set into memory.

    Raises:
        TrainingError: longer than ``FOLD_EXAMPLES_MAX``.
    """
    if len(dataset) > FOLD_EXAMPLES_MAX:
        raise TrainingError(f"a fold of {len(dataset)} examples, at most {FOLD_EXAMPLES_MAX}")
    return Fold(x=dataset.features(slice(None)), y=dataset.y)
