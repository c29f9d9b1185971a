"""Adds LiteRT's flatbuffer to an artifact; tensorflow, which writes it, works in a folder that is gone afterwards."""

from __future__ import annotations

import os
import tempfile
from typing import TYPE_CHECKING

from edge_sdk.errors import ConfigError

if TYPE_CHECKING:
    from edge_sdk.training.artifact import Artifact


def is_available() -> bool:
    """Whether flatbuffers can be written here."""
    try:
        import tensorflow  # noqa: F401
    except ImportError:
        return False
    return True


def with_flatbuffer(artifact: Artifact) -> Artifact:
    """The same artifact for LiteRT too, unsigned.

    Raises:
        ConfigError: tensorflow is not installed.
        TrainingError: the training step cannot be said in builtin operators.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        from coordinator.authoring.litert import write_flatbuffer
    except ImportError as error:
        raise ConfigError(
            f"target litert: {error}; tensorflow writes the flatbuffer: pip install 'edge-flchain[litert-authoring]', "
            "best in an environment of its own"
        ) from error
    with tempfile.TemporaryDirectory(prefix="flchain-litert-") as folder:
        return artifact.with_flatbuffer(write_flatbuffer(artifact, folder=folder))
