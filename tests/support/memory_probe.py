"""Trains an artifact for a few steps and prints the peak of its resident memory: run it as a process of its own.

    python tests/support/memory_probe.py NAME.flm NAME.model.cbor onnxruntime

What is measured is the training engine alone: interpreter, numpy, the runtime, artifact, model, one batch of examples
as the device's own data set serves them, and steps. No transport, no evaluation.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_sdk.protocol import wire
from edge_sdk.protocol.messages import ModelParams
from edge_sdk.training.artifact import Artifact
from edge_sdk.training.dataset import ArrayDataset
from edge_sdk.training.trainer import Trainer

if TYPE_CHECKING:
    import numpy.typing as npt

STEPS = 6
_STATUS = Path("/proc/self/status")


def peak_kib() -> int:
    """VmHWM of this process."""
    lines = _STATUS.read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def main(artifact_file: str, model_file: str, backend: str) -> None:
    """Take the steps and print the peak in KiB."""
    artifact = Artifact.load(Path(artifact_file).read_bytes())
    network = artifact.network
    trainer = Trainer(artifact, backend=backend)
    trainer.load(wire.from_bytes(ModelParams, Path(model_file).read_bytes()))
    rng = np.random.default_rng(0)
    x = rng.random((artifact.batch, *network.input_shape), np.float32)
    y: npt.NDArray[Any] = rng.random((artifact.batch, network.class_count), np.float32)
    if network.is_classifier:
        y = y.argmax(axis=1)
    data = ArrayDataset(
        x, y, input_shape=network.input_shape, class_count=network.class_count, has_labels=network.is_classifier
    )
    trainer.train(data, steps=STEPS, lr=1e-4, rng=rng)
    sys.stdout.write(f"{peak_kib()}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
