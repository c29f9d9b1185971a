"""Measurements whose targets are numbers, in memory, and the checks that every source goes through."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edge_sdk.errors import ConfigError

Floats = npt.NDArray[np.float32]
Owners = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredData:
    """Training and test examples of one task with numbers as targets.

    ``x_*``: float32, (n, *input_shape), scaled to about unit variance. ``y_*``: float32, (n, output_count), likewise.
    ``groups``: the natural owner of each training example, (n,). ``is_anomaly``: of each test example, (n,), or None
    where nothing is labelled.
    """

    name: str
    x_train: Floats
    y_train: Floats
    x_test: Floats
    y_test: Floats
    groups: Owners
    owner_names: tuple[str, ...]
    is_anomaly: npt.NDArray[np.bool_] | None

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one example."""
        return tuple(self.x_train.shape[1:])

    @property
    def output_count(self) -> int:
        """Numbers per target."""
        return int(self.y_train.shape[1])

    @property
    def class_count(self) -> int:
        """Outputs of a network for it, by the name that labelled data have."""
        return self.output_count


def check_measured(data: MeasuredData, *, place: str) -> MeasuredData:
    """Refuse what no network could learn from, naming the array and the row.

    Raises:
        ConfigError: a part without examples, or a value that is not finite.
    """
    for part, x, y in (("train", data.x_train, data.y_train), ("test", data.x_test, data.y_test)):
        if not len(x):
            raise ConfigError(f"{place}: no {part} examples are left")
        for name, array in (("x", x), ("y", y)):
            finite = np.isfinite(array).reshape(len(array), -1).all(axis=1)
            if not finite.all():
                raise ConfigError(f"{place}: {name}_{part}[{int(np.argmin(finite))}] holds a value that is not finite")
    return data
