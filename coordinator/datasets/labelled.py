"""A labelled data set in memory, and the checks that every source goes through."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edge_sdk.errors import ConfigError
from edge_sdk.protocol.limits import CLASSES_MAX

Labels = npt.NDArray[np.int64]
Features = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledData:
    """Training and test examples of one classification task.

    ``x_*``: float32, shape (n, *input_shape), scaled to about [0, 1] or to unit variance. ``y_*``: int64 in
    0..class_count-1, shape (n,). ``groups``: the natural owner of each training example (a person, a station), shape
    (n,), or None where there is none.
    """

    name: str
    x_train: Features
    y_train: Labels
    x_test: Features
    y_test: Labels
    groups: Labels | None
    class_names: tuple[str, ...]

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one example."""
        return tuple(self.x_train.shape[1:])

    @property
    def class_count(self) -> int:
        """Number of classes."""
        return len(self.class_names)


def check_examples(x: npt.NDArray[np.generic], y: npt.NDArray[np.generic], *, place: str, class_count: int) -> None:
    """Refuse examples that no network could learn from, naming the array and the row.

    Args:
        x: Features, any numeric type, shape (n, ...).
        y: Labels, any integer type, shape (n,).
        place: File and array for the error text.
        class_count: Labels must be below it.

    Raises:
        ConfigError: wrong shape, type or length, a value that is not finite, a label out of range, one class only.
    """
    if x.ndim < 2 or not np.issubdtype(x.dtype, np.number) or np.issubdtype(x.dtype, np.complexfloating):
        raise ConfigError(f"{place}: x has shape {x.shape} and type {x.dtype}: expected real numbers, shape (n, ...)")
    if y.ndim != 1 or not np.issubdtype(y.dtype, np.integer):
        raise ConfigError(f"{place}: y has shape {y.shape} and type {y.dtype}: expected integers, shape (n,)")
    if len(x) != len(y) or len(x) == 0:
        raise ConfigError(f"{place}: {len(x)} rows in x and {len(y)} in y: expected as many of each, at least one")
    labels = y.astype(np.int64)
    outside = np.flatnonzero((labels < 0) | (labels >= class_count))
    if len(outside):
        row = int(outside[0])
        raise ConfigError(f"{place}: y[{row}] = {labels[row]}: expected a label in 0..{class_count - 1}")
    if len(np.unique(labels)) < 2:
        raise ConfigError(f"{place}: every label is {labels[0]}: expected at least two classes")
    if not 2 <= class_count <= CLASSES_MAX:
        raise ConfigError(f"{place}: {class_count} classes: expected 2..{CLASSES_MAX}")
    if np.issubdtype(x.dtype, np.floating):
        finite = np.isfinite(x).reshape(len(x), -1).all(axis=1)
        if not finite.all():
            raise ConfigError(f"{place}: x[{int(np.argmin(finite))}] holds a value that is not finite")
