"""Examples that ``flchain model build`` calibrates with: checked against the network, then as a sample of its task."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edge_sdk.errors import ConfigError, TrainingError
from edge_sdk.training.dataset import load_dataset

if TYPE_CHECKING:
    from edge_sdk.training.dataset import ArrayDataset
    from edge_sdk.training.network import Network


def load_calibration(path: Path, network: Network, *, batch: int) -> ArrayDataset:
    """Open arrays ``x`` and ``y``.

    A board may well hold one class only: others hold the rest. What is chosen here holds for all of them.

    Raises:
        ConfigError: no such file.
        TrainingError: an array does not fit the network (array and row are named), fewer examples than a batch, or one
            class only.
    """
    if not path.exists():
        raise ConfigError(f"--calibrate {path}: no such file: expected an .npz with arrays x and y")
    data = load_dataset(
        path, input_shape=network.input_shape, class_count=network.class_count, has_labels=network.is_classifier
    )
    if len(data) < batch:
        raise TrainingError(f"dataset {path}: {len(data)} examples, expected a batch of {batch} or more")
    if network.is_classifier and int(data.y.min()) == int(data.y.max()):
        raise TrainingError(f"dataset {path}: array y: every label is {int(data.y[0])}, expected two classes or more")
    return data
