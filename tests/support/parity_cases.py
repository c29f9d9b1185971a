"""What every backend is compared on, and how near its answers must be."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import pytest

from coordinator.authoring import zoo
from coordinator.authoring.builder import build_artifact
from coordinator.authoring.trainable import with_trainable
from edge_sdk.training.network import Network, Op, Scheme
from edge_sdk.training.quantize import dequantize
from edge_sdk.training.update_rule import PLAIN_SGD, UpdateRule
from tests.support.backend_replay import Answer, StepInput, evaluate, pack, read_answers, record
from tests.support.parity_networks import image_network, series_network

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from edge_sdk.training.artifact import Artifact

BATCH: Final = 8
EVERYTHING: Final = UpdateRule(momentum=0.9, clip_norm=0.5, prox=0.1)


class Tolerance(NamedTuple):
    """Largest differences to the numpy backend after one step from the same state; see edge_sdk/training/README.md."""

    floats: float
    """States, loss and logits of the float32 scheme: absolute, or of the largest value where that exceeds 1."""
    biases: float
    """Biases and loss of the int8 schemes: share of the largest change that the step makes in the tensor, and of the
    loss."""
    units: int
    """Quantized states and velocities, in their units."""
    share: float
    """Share of those that may differ at all."""


TOLERANCES: Final = {
    "onnxruntime": Tolerance(1e-6, 0.15, 64, 0.25),
    "torch": Tolerance(1e-6, 0.15, 64, 0.25),
    "litert": Tolerance(1e-6, 0.0, 0, 0.0),
}
USUAL: Final = Tolerance(1e-6, 1e-5, 2, 2e-3)
"""What most steps of the int8 schemes keep. Backends round float32 sums differently; now and then one value tips to the
next of 255 integers, and moves all gradients behind it."""
USUAL_SHARE: Final = 0.7


class Case(NamedTuple):
    """A network, its arithmetic and its update."""

    name: str
    scheme: Scheme = Scheme.FP32
    rule: UpdateRule = PLAIN_SGD

    def __str__(self) -> str:
        """For the name of a test."""
        rule = "" if self.rule.is_plain else "-everything"
        return f"{self.name}-{self.scheme.name.lower()}{rule}"


NAMES: Final = ("mlp", "lenet", "cnn1d", "dscnn", "autoencoder", "regressor", "image", "series-mse", "series-bce")
CASES: Final = (
    *(Case(name) for name in (*NAMES, "dscnn-frozen")),
    *(Case(name, rule=EVERYTHING) for name in ("mlp", "image")),
    *(Case(name, Scheme.INT8) for name in (*NAMES, "dscnn-frozen")),
    *(Case(name, Scheme.INT8_SR) for name in ("mlp", "lenet", "image")),
    *(Case("lenet", scheme, EVERYTHING) for scheme in (Scheme.INT8, Scheme.INT8_SR)),
)


class Recorded(NamedTuple):
    """A case with the numpy backend's answers."""

    artifact: Artifact
    inputs: list[StepInput]
    answers: list[Answer]
    params: dict[str, Any]


def _network(name: str) -> Network:
    match name:
        case "image":
            return image_network()
        case "series-mse":
            return series_network(Op.MEAN_SQUARED_ERROR)
        case "series-bce":
            return series_network(Op.BINARY_CROSS_ENTROPY)
        case "dscnn-frozen":
            return with_trainable(zoo.imported("dscnn", input_shape=None, class_count=None, seed=0), "last:3")
        case _:
            recipe = zoo.RECIPES[name]
            return zoo.network(name, recipe.input_shape, recipe.outputs)


@cache
def recorded(case: Case) -> Recorded:
    """Build a case and let the numpy backend take its steps."""
    network = _network(case.name)
    artifact = build_artifact(case.name, network, batch=BATCH, scheme=case.scheme, rule=case.rule)
    params = zoo.genesis_params(network.tensors, seed=2, gains=zoo.genesis_gains(network))
    inputs, answers = record(artifact, params)
    return Recorded(artifact, inputs, answers, dequantize(params))


def write_cases(folder: Path, cases: Sequence[Case]) -> None:
    """Artifacts and recorded steps as files, for ``backend_replay`` in another environment."""
    for case in cases:
        known = recorded(case)
        (folder / f"{case}.flm").write_bytes(known.artifact.data)
        np.savez(folder / f"{case}.npz", **pack(known.inputs, known.params))


def assert_near_file(file: Path, case: Case, tolerance: Tolerance) -> None:
    """What ``backend_replay`` wrote for a case: steps and logits."""
    known = recorded(case)
    answers, logits = read_answers(file)
    assert_near(answers, known, tolerance)
    expected = evaluate(known.artifact, known.inputs, known.params, "numpy")
    bound = tolerance.floats * max(1.0, float(np.abs(expected).max()))
    np.testing.assert_allclose(logits, expected, rtol=0, atol=bound)


def is_near(answer: Answer, expected: Answer, given: StepInput, tolerance: Tolerance) -> str:
    """Empty where every state and the loss of a step are within the tolerance, else what is not."""
    integers = {name for name, value in expected.states.items() if value.dtype != np.float32}
    kinds = {name: value.dtype for name, value in answer.states.items()}
    if kinds != {name: value.dtype for name, value in expected.states.items()}:
        return f"states are {kinds}"
    loss_bound = tolerance.biases if integers else tolerance.floats
    if answer.loss != pytest.approx(expected.loss, rel=loss_bound, abs=tolerance.floats):
        return f"loss is {answer.loss}, expected {expected.loss}"
    for name in expected.states.keys() - integers:
        value = expected.states[name]
        bound = tolerance.floats * max(1.0, float(np.abs(value).max()))
        if integers:
            bound = max(bound, tolerance.biases * float(np.abs(value - given.states[name]).max()))
        worst = float(np.abs(answer.states[name] - value).max())
        if not worst <= bound:
            return f"{name} differs by {worst:.2e}, at most {bound:.2e}"
    if not integers:
        return ""
    pairs = [(answer.states[name].astype(np.int32), expected.states[name]) for name in integers]
    differences = np.concatenate([np.abs(found - value).ravel() for found, value in pairs])
    if differences.max() > tolerance.units or (differences > 0).mean() > tolerance.share:
        return f"{(differences > 0).mean():.5f} of the integers differ, by up to {differences.max()} units"
    return ""


def assert_near(found: Sequence[Answer], case: Recorded, tolerance: Tolerance) -> None:
    """Every step of a case is within the tolerance."""
    steps = enumerate(zip(found, case.answers, case.inputs, strict=True))
    problems = {step: is_near(answer, expected, given, tolerance) for step, (answer, expected, given) in steps}
    assert not any(problems.values()), problems
