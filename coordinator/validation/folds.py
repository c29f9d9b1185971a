"""A miner's fold: labelled examples that no device and no other miner has, on which it scores updates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from edge_sdk.errors import TrainingError
from edge_sdk.training.dataset import load_dataset

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt

    from edge_sdk.training.network import Network

FOLD_EXAMPLES_MAX: Final = 8_192
"""Scoring a block costs one forward pass over the fold for every candidate."""


@dataclass(frozen=True, slots=True, eq=False)
class Fold:
    """Examples as the network takes them: x float32 (n, *input_shape), y int64 (n,)."""

    x: npt.NDArray[np.float32]
    y: npt.NDArray[np.int64]


def load_fold(path: Path, network: Network) -> Fold:
    """Read a fold into memory.

    Raises:
        TrainingError: not a data set of this network, or longer than ``FOLD_EXAMPLES_MAX``.
    """
    dataset = load_dataset(path, input_shape=network.input_shape, class_count=network.class_count)
    if len(dataset) > FOLD_EXAMPLES_MAX:
        raise TrainingError(f"fold {path}: {len(dataset)} examples, at most {FOLD_EXAMPLES_MAX}")
    return Fold(x=dataset.features(slice(None)), y=dataset.y)
