"""Handwriting for miners and board: scikit-learn's digits, 8x8, laid out as 28x28 for the LeNet-like model."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from coordinator.datasets.digits import load_digits

ENLARGE: Final = 3
MARGIN: Final = 2
"""3 x 8 + 2 x 2 = 28 pixels."""


def write_digits(path: Path) -> None:
    """Write all training digits as 28x28 images, for ``flchain miner init --dataset npz``."""
    data = load_digits()
    np.savez(path, x=_enlarged(data.x_train), y=data.y_train, x_test=_enlarged(data.x_test), y_test=data.y_test)


def write_share(examples: Path, folds: list[Path], out: Path) -> int:
    """Write what is left for the board when the miners have their folds; the number of examples."""
    with np.load(examples) as archive:
        x, y = archive["x"], archive["y"]
    held = set()
    for fold in folds:
        with np.load(fold) as archive:
            held |= {row.tobytes() for row in archive["x"]}
    rows = [index for index, row in enumerate(x) if row.tobytes() not in held]
    np.savez(out, x=x[rows], y=y[rows])
    return len(rows)


def _enlarged(images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    large = images.repeat(ENLARGE, axis=-1).repeat(ENLARGE, axis=-2)
    return np.pad(large, [(0, 0)] * (images.ndim - 2) + [(MARGIN, MARGIN)] * 2)
