"""The same training steps on any backend: what goes into each is recorded, and may travel to another environment.

``python -m tests.support.backend_replay BACKEND FOLDER OUT_FOLDER NAME...`` replays FOLDER/NAME.npz on FOLDER/NAME.flm
there. Needs edge_sdk and what the backend needs, nothing of the tests.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from edge_sdk.adapters.training_meter import draw_batches
from edge_sdk.training.artifact import Artifact
from edge_sdk.training.backend import Batch
from edge_sdk.training.backends import load_backend
from edge_sdk.training.dropout import DropoutMasks
from edge_sdk.training.rounding_noise import RoundingNoise
from edge_sdk.training.trainer import Trainer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edge_sdk.protocol.messages import ModelParams

Arrays = dict[str, Any]
RATE: Final = 0.05
STEPS: Final = 4
EVALUATED: Final = 5
_FIELDS: Final = ("states", "scales", "masks", "noise")


class StepInput(NamedTuple):
    """What ``Backend.step`` takes, without the learning rate."""

    batch: Batch
    states: Arrays
    scales: Arrays
    masks: Arrays
    noise: Arrays


class Answer(NamedTuple):
    """What a backend makes of it."""

    states: Arrays
    loss: float


def record(artifact: Artifact, params: ModelParams) -> tuple[list[StepInput], list[Answer]]:
    """Steps of a job on the numpy backend, with a last batch that is partly masked, and its answers."""
    trainer = Trainer(artifact, backend="numpy")
    trainer.load(params)
    backend = load_backend("numpy", artifact)
    rng = np.random.default_rng(11)
    masks = DropoutMasks(artifact.network, batch=artifact.batch, rng=rng)
    noise = RoundingNoise(artifact, rng=rng)
    batches = draw_batches(artifact.network, batch=artifact.batch)
    weight = np.ones(artifact.batch, np.float32)
    weight[artifact.batch // 2 :] = 0.0
    batches[-1] = batches[-1]._replace(weight=weight)
    states, inputs, answers = dict(trainer._states), [], []
    for step in range(STEPS):
        batch = batches[step % len(batches)]
        given = StepInput(batch, states, dict(trainer._scales), masks.draw(step), noise.draw(step))
        states, loss = backend.step(batch, RATE, *given[1:])
        inputs.append(given)
        answers.append(Answer(states, loss))
    return inputs, answers


def replay(artifact: Artifact, inputs: Sequence[StepInput], backend_name: str) -> list[Answer]:
    """Each step from the recorded state, so that no difference grows."""
    backend = load_backend(backend_name, artifact)
    return [Answer(*backend.step(given.batch, RATE, *given[1:])) for given in inputs]


def evaluate(artifact: Artifact, inputs: Sequence[StepInput], params: Arrays, backend_name: str) -> Any:
    """Logits of a few examples: fewer than a batch."""
    return load_backend(backend_name, artifact).logits(inputs[0].batch.x[:EVALUATED], params)


def pack(inputs: Sequence[StepInput], params: Arrays) -> Arrays:
    """Steps and float parameters as arrays of one file."""
    arrays = {f"params/{name}": value for name, value in params.items()}
    for step, given in enumerate(inputs):
        arrays |= {f"{step}/batch/{name}": value for name, value in given.batch._asdict().items()}
        for field in _FIELDS:
            arrays |= {f"{step}/{field}/{name}": value for name, value in getattr(given, field).items()}
    return arrays


def _group(arrays: Arrays, prefix: str) -> Arrays:
    return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}


def unpack(arrays: Arrays) -> tuple[list[StepInput], Arrays]:
    """Inverse of ``pack``."""
    inputs = []
    for step in range(STEPS):
        batch = Batch(**_group(arrays, f"{step}/batch/"))
        inputs.append(StepInput(batch, *(_group(arrays, f"{step}/{field}/") for field in _FIELDS)))
    return inputs, _group(arrays, "params/")


def main(argv: Sequence[str]) -> int:
    """Replay cases on a backend of this environment."""
    backend, folder, out_folder, *names = argv
    for name in names:
        artifact = Artifact.load((Path(folder) / f"{name}.flm").read_bytes())
        with np.load(Path(folder) / f"{name}.npz") as file:
            inputs, params = unpack(dict(file))
        answers = replay(artifact, inputs, backend)
        found: Arrays = {"logits": evaluate(artifact, inputs, params, backend)}
        for step, answer in enumerate(answers):
            found |= {f"{step}/states/{key}": value for key, value in answer.states.items()}
            found[f"{step}/loss"] = np.float64(answer.loss)
        np.savez(Path(out_folder) / f"{name}.npz", **found)
    return 0


def read_answers(out_file: Path) -> tuple[list[Answer], Any]:
    """What ``main`` wrote: answers and logits."""
    with np.load(out_file) as file:
        found = dict(file)
    answers = [Answer(_group(found, f"{step}/states/"), float(found[f"{step}/loss"])) for step in range(STEPS)]
    return answers, found["logits"]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
