"""What a run learns from: the data set, dealt to devices and miners, and the model of version 0."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from coordinator.authoring import zoo
from coordinator.datasets.arrays import load_npz
from coordinator.datasets.beijing import load_beijing
from coordinator.datasets.digits import load_digits
from coordinator.datasets.hapt import load_hapt
from coordinator.datasets.idx import PIXEL_MAX, load_idx
from coordinator.datasets.labelled import Features, LabelledData
from coordinator.datasets.measured import check_measured
from coordinator.datasets.skab import load_skab
from coordinator.datasets.split import Split, split
from coordinator.datasets.targets import TargetData, load_targets
from coordinator.datasets.task import TaskData
from coordinator.demo.layout import DevicePlace, MinerPlace
from coordinator.demo.options import Options
from coordinator.own_model import fit_data, fit_targets, is_artifact_file, load_own_model
from edge_sdk.errors import ConfigError
from edge_sdk.protocol.messages import ModelParams
from edge_sdk.training.artifact import Artifact


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """Data and model, in memory."""

    data: TaskData
    split: Split
    artifact: Artifact
    params: ModelParams
    """Version 0."""


def gather(options: Options) -> Material:
    """Load, deal, build. Nothing is written and no process runs yet, so that every refusal is early.

    Raises:
        ConfigError: the data set cannot be read or dealt, or the model does not take it.
    """
    data, artifact, params = load_data_and_model(options)
    # Folds shrink with small data sets: at most a quarter of the training data is kept out of training.
    fold_examples = min(options.preset.fold_examples, len(data.y_train) // (4 * options.miners))
    if fold_examples < 1:
        raise ConfigError(f"{len(data.y_train)} training examples for {options.miners} miners: expected more data")
    parts = split(
        data,
        miners=options.miners,
        devices=options.devices,
        fold_examples=fold_examples,
        partition=options.partition,
        rng=np.random.default_rng(options.seed),
    )
    return Material(data=data, split=parts, artifact=artifact, params=params)


def load_data_and_model(options: Options) -> tuple[TaskData, Artifact, ModelParams]:
    """Data set, artifact and version 0 of a run.

    Raises:
        ConfigError: one of them cannot be read, or they do not fit together.
    """
    if is_artifact_file(options.model):
        path = Path(options.model)
        own = load_own_model(path)
        data = _load_for(own.artifact, options)
        return _fitted(own.artifact, data, path), own.artifact, own.params
    data = load_data(options)
    artifact, params = zoo.build(
        options.model,
        data.input_shape,
        data.class_count,
        batch=options.preset.batch,
        seed=options.seed,
        is_output_only=options.codec.is_output_only,
    )
    return data, artifact, params


def write_examples(material: Material, miners: Sequence[MinerPlace], devices: Sequence[DevicePlace]) -> None:
    """Write each miner's fold and each device's share into its own folder."""
    data = material.data
    for miner, rows in zip(miners, material.split.folds, strict=True):
        _write(miner.folder / "fold.npz", data, rows)
    for device, rows in zip(devices, material.split.shares, strict=True):
        _write(device.data, data, rows)


def _load_for(artifact: Artifact, options: Options) -> TaskData:
    """The data set of the options; a user's arrays hold targets where the network has no classes."""
    if options.dataset != "npz" or artifact.network.is_classifier:
        return load_data(options)
    assert options.data is not None, options.dataset
    if options.personal is not None:
        raise ConfigError(f"--personal {options.personal} with float targets: personal models are judged by labels")
    if options.byzantine.kind == "labelflip" and options.byzantine.count:
        raise ConfigError(f"--byzantine {options.byzantine} with float targets: there are no labels to flip")
    return check_measured(load_targets(options.data).measured(), place=str(options.data))


def _fitted(artifact: Artifact, data: TaskData, model: Path) -> TaskData:
    if isinstance(data, LabelledData):
        return fit_data(artifact, data, model=model)
    fit_targets(artifact, TargetData(data.x_train, data.y_train), model=model)
    return data


def load_data(options: Options) -> TaskData:
    """Read the data set that the options name.

    Raises:
        ConfigError: it cannot be read.
    """
    if options.dataset == "digits":
        return load_digits()
    assert options.data is not None, options.dataset
    load: dict[str, Callable[[Path], TaskData]] = {
        "idx": load_idx,
        "hapt": load_hapt,
        "npz": load_npz,
        "beijing": load_beijing,
        "skab": load_skab,
    }
    return load[options.dataset](options.data)


def _write(path: Path, data: TaskData, rows: npt.NDArray[np.int64]) -> None:
    # Stored, not compressed: the device maps it instead of holding it.
    np.savez(path, x=_narrow(data.x_train[rows]), y=data.y_train[rows])


def _narrow(x: Features) -> Features | npt.NDArray[np.uint8]:
    """Bytes where the features are bytes divided by 255, as pixels are: a quarter of the pages in a board's memory."""
    if x.min() < 0 or x.max() > 1:
        return x
    pixels = np.rint(x * np.float32(PIXEL_MAX)).astype(np.uint8)
    return pixels if np.array_equal(pixels / np.float32(PIXEL_MAX), x) else x
