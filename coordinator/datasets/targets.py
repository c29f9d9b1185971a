"""A user's own arrays for a network without classes: regression, reconstruction.

Arrays of one ``.npz``: ``x`` (n, ...) and float targets ``y`` (n, k), or (n,) for one target. For an autoencoder y is
x, flat.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from coordinator.datasets.arrays import TEST_STRIDE, features, read_arrays
from coordinator.datasets.measured import MeasuredData
from edge_sdk.errors import ConfigError


@dataclass(frozen=True, slots=True)
class TargetData:
    """Examples with float targets: x float32, (n, *input_shape); y float32, (n, target_count)."""

    x: npt.NDArray[np.float32]
    y: npt.NDArray[np.float32]

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one example."""
        return tuple(self.x.shape[1:])

    @property
    def target_count(self) -> int:
        """Targets of one example."""
        return int(self.y.shape[1])

    def measured(self) -> MeasuredData:
        """With every fifth example held out for the test, as of labelled arrays."""
        held = np.arange(len(self.x)) % TEST_STRIDE == 0
        return MeasuredData(
            name="npz",
            x_train=self.x[~held],
            y_train=self.y[~held],
            x_test=self.x[held],
            y_test=self.y[held],
            groups=np.zeros(int((~held).sum()), np.int64),
            owner_names=("all",),
            is_anomaly=None,
        )

    def deal_folds(self, count: int, examples: int, rng: np.random.Generator) -> list[npt.NDArray[np.int64]]:
        """Disjoint random rows, ``examples`` for each of ``count`` folds, in their order."""
        rows = rng.permutation(len(self.x))[: count * examples]
        return [np.sort(part) for part in np.array_split(rows, count)]


def load_targets(path: Path) -> TargetData:
    """Read and check x and y.

    Raises:
        ConfigError: no such file, not an npz, or a wrong shape, type or value; array and row are named.
    """
    arrays = read_arrays(path)
    for name in ("x", "y"):
        if name not in arrays:
            raise ConfigError(f"{path}: no array {name!r}: expected x and y")
    x, y = arrays["x"], arrays["y"]
    if x.ndim < 2 or x.dtype.kind not in "uif":
        raise ConfigError(f"{path}: x has shape {x.shape} and type {x.dtype}: expected real numbers, shape (n, ...)")
    if y.ndim not in (1, 2) or y.dtype.kind != "f":
        raise ConfigError(f"{path}: y has shape {y.shape} and type {y.dtype}: expected float targets, shape (n, k)")
    if len(x) != len(y) or not len(x):
        raise ConfigError(f"{path}: {len(x)} rows in x and {len(y)} in y: expected as many of each, at least one")
    found = TargetData(features(x), y.reshape(len(y), -1).astype(np.float32))
    for name, array in (("x", found.x), ("y", found.y)):
        finite = np.isfinite(array).reshape(len(array), -1).all(axis=1)
        if not finite.all():
            raise ConfigError(f"{path}: {name}[{int(np.argmin(finite))}] holds a value that is not finite")
    return found
