"""The board's examples: a file that somebody put there, or a replay buffer that a stream fills.

A job on a replay buffer trains on a copy that is made when it starts: the same rows after a restart, whatever came in
meanwhile. Everything heavy is imported on first use.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from edge_sdk.adapters.replay_buffer import ReplayBuffer
from edge_sdk.device.config import DeviceConfig
from edge_sdk.errors import TrainingError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from edge_sdk.training.artifact import Artifact
    from edge_sdk.training.dataset import ArrayDataset

FOLDER: Final = "examples"


@dataclass(frozen=True, slots=True)
class Examples:
    """Checked examples, with a number for each that stays the same: the row in the file, or the place in the stream."""

    dataset: ArrayDataset
    numbers: npt.NDArray[np.int64]


class LocalExamples:
    """Opens what ``[device] data`` names; used by the work thread."""

    def __init__(self, config: DeviceConfig) -> None:
        """Keep the places; nothing is read."""
        self._config = config
        self._copy = config.job_dir / FOLDER

    def count(self, artifact: Artifact) -> int:
        """Number of examples; all of a file are checked, a few of a buffer, whose rows were checked when they came.

        Raises:
            TrainingError: they cannot be used with this artifact.
            StoreError: a buffer cannot be read.
        """
        if not self._config.is_replay:
            return len(self._load(artifact, self._config.data))
        if not self._config.data.exists():
            return 0
        with ReplayBuffer.open_existing(self._config.data) as buffer:
            self._check(buffer, artifact)
            return len(buffer)

    def some(self, artifact: Artifact, limit: int) -> Examples | None:
        """Examples to look at now: all of a file, up to ``limit`` of a buffer; None while a buffer is empty.

        Raises:
            TrainingError: they cannot be used with this artifact.
            StoreError: a buffer cannot be read.
        """
        if not self._config.is_replay:
            return self._numbered(self._load(artifact, self._config.data))
        if not self._config.data.exists():
            return None
        with ReplayBuffer.open_existing(self._config.data) as buffer:
            self._check(buffer, artifact)
            x, y, numbers = buffer.read(limit)
        return Examples(self._dataset(artifact, x, y), numbers) if len(numbers) else None

    def of_job(self, artifact: Artifact) -> Examples:
        """Examples of the running job: the same ones until it is dropped.

        Raises:
            TrainingError: there are none, or they cannot be used with this artifact.
            StoreError: a buffer cannot be read or copied.
        """
        import numpy as np

        if not self._config.is_replay:
            return self._numbered(self._load(artifact, self._config.data))
        if not self._copy.exists():
            with ReplayBuffer.open_existing(self._config.data) as buffer:
                self._check(buffer, artifact)
                self._make_copy(buffer)
        return Examples(self._load(artifact, self._copy), np.load(self._copy / "number.npy", mmap_mode="r"))

    def _make_copy(self, buffer: ReplayBuffer) -> None:
        """Under another name first: a copy that was cut off is none."""
        part = self._copy.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        try:
            buffer.snapshot(part)
            part.rename(self._copy)
        finally:
            shutil.rmtree(part, ignore_errors=True)

    def _check(self, buffer: ReplayBuffer, artifact: Artifact) -> None:
        """Hold form and labels of a buffer against an artifact, before anything is read."""
        network, form, path = artifact.network, buffer.form, self._config.data
        if form.input_shape != network.input_shape:
            raise TrainingError(f"{path}: rows of shape {form.input_shape}, the artifact takes {network.input_shape}")
        targets = 0 if network.is_classifier else network.class_count
        if form.target_count != targets:
            raise TrainingError(f"{path}: rows with {form.target_count} targets, the artifact takes {targets}")
        largest = max(buffer.counts(), default=0)
        if largest >= network.class_count:
            raise TrainingError(f"{path}: a row of class {largest}, the artifact has {network.class_count} classes")

    @staticmethod
    def _numbered(dataset: ArrayDataset) -> Examples:
        import numpy as np

        return Examples(dataset, np.arange(len(dataset)))

    @staticmethod
    def _load(artifact: Artifact, path: Path) -> ArrayDataset:
        from edge_sdk.training.dataset import load_dataset

        network = artifact.network
        return load_dataset(
            path,
            input_shape=network.input_shape,
            class_count=network.class_count,
            has_labels=network.is_classifier,
        )

    @staticmethod
    def _dataset(artifact: Artifact, x: npt.NDArray[Any], y: npt.NDArray[Any]) -> ArrayDataset:
        from edge_sdk.training.dataset import ArrayDataset

        network = artifact.network
        return ArrayDataset(
            x,
            y,
            input_shape=network.input_shape,
            class_count=network.class_count,
            has_labels=network.is_classifier,
        )
