"""A user's own artifact with its version 0, read and held against the data that a fleet is to learn from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from coordinator.datasets.labelled import LabelledData
from coordinator.datasets.targets import TargetData
from edge_sdk.adapters.durable_files import read_file
from edge_sdk.errors import ConfigError, DecodeError, QuantizationError, StoreError
from edge_sdk.protocol import wire
from edge_sdk.protocol.limits import ARTIFACT_BYTES_MAX, BLOB_BYTES_MAX
from edge_sdk.protocol.messages import ModelParams, PublicKey
from edge_sdk.training.artifact import Artifact
from edge_sdk.training.quantize import check_params

ARTIFACT_SUFFIX: Final = ".flm"
PARAMETERS_SUFFIX: Final = ".model.cbor"


@dataclass(frozen=True, slots=True)
class OwnModel:
    """What ``flchain model build`` wrote: how to train, and from where."""

    artifact: Artifact
    params: ModelParams
    """Version 0."""


def is_artifact_file(model: str) -> bool:
    """Whether a ``--model`` names a file and not one of the networks that ship."""
    return model.endswith(ARTIFACT_SUFFIX)


def parameters_file(artifact_file: Path) -> Path:
    """Where the parameters of version 0 are: beside the artifact."""
    return artifact_file.with_suffix(PARAMETERS_SUFFIX)


def load_own_model(path: Path, *, author: PublicKey | None = None) -> OwnModel:
    """Read an artifact and the parameters beside it.

    Args:
        path: NAME.flm; NAME.model.cbor lies beside it.
        author: Whose signature the artifact must bear; None takes any that holds, and a file without one.

    Raises:
        ConfigError: a file is missing, does not hold, is by somebody else, or the two do not belong together; the text
            names the file.
    """
    data = _read(path, ARTIFACT_BYTES_MAX, "an artifact of flchain model build")
    try:
        artifact = Artifact.load(data, author=author)
    except DecodeError as error:
        raise ConfigError(f"{path}: {error}") from error
    beside = parameters_file(path)
    blob = _read(beside, BLOB_BYTES_MAX, f"version 0 of {path.name}, as flchain model build writes it")
    try:
        params = wire.from_bytes(ModelParams, blob)
        check_params(params, artifact.network.tensors)
    except (DecodeError, QuantizationError) as error:
        raise ConfigError(f"{beside}: not the parameters of {path.name}: {error}") from error
    return OwnModel(artifact, params)


def fit_data(artifact: Artifact, data: LabelledData, *, model: Path) -> LabelledData:
    """Hold labelled data against an artifact; classes that only the network has are added without examples.

    Raises:
        ConfigError: input shape, labels or loss differ; the text names both sides.
    """
    network = artifact.network
    if not network.is_classifier:
        loss = network.loss.name.lower()
        raise ConfigError(f"--model {model}: its loss is {loss}: expected a classifier, since the data has labels")
    _check_input(network.input_shape, data.input_shape, model)
    if data.class_count > network.class_count:
        raise ConfigError(
            f"--model {model} has {network.class_count} classes, the data labels up to"
            f" {data.class_count - 1}: expected labels below {network.class_count}"
        )
    more = tuple(str(label) for label in range(data.class_count, network.class_count))
    return replace(data, class_names=(*data.class_names, *more))


def fit_targets(artifact: Artifact, data: TargetData, *, model: Path) -> TargetData:
    """Hold targets against an artifact without classes.

    Raises:
        ConfigError: input or target shape differs; the text names both sides.
    """
    network = artifact.network
    if network.is_classifier:
        raise ConfigError(f"--model {model} is a classifier: expected a regression, since the data has float targets")
    _check_input(network.input_shape, data.input_shape, model)
    if data.target_count != network.class_count:
        has = f"the data has {data.target_count}"
        raise ConfigError(f"--model {model} has {network.class_count} outputs, {has} targets: expected the same")
    return data


def _check_input(takes: tuple[int, ...], has: tuple[int, ...], model: Path) -> None:
    if takes != has:
        raise ConfigError(
            f"--model {model} takes examples of {_sizes(takes)}, the data has {_sizes(has)}: expected the same"
        )


def _read(path: Path, bytes_max: int, what: str) -> bytes:
    try:
        data = read_file(path, bytes_max=bytes_max)
    except StoreError as error:
        raise ConfigError(str(error)) from error
    if data is None:
        raise ConfigError(f"{path}: no such file: expected {what}")
    return data


def _sizes(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
