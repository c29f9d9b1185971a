"""Scores of one miner: the right sign, the negative codes, and integers only."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np
import numpy.typing as npt
import pytest

from coordinator.aggregation.merge import merge
from coordinator.authoring import zoo
from coordinator.validation.folds import FOLD_EXAMPLES_MAX, Fold, fold_of
from coordinator.validation.score import CLASS_ABSENT, ScoredUpdate, score_block
from edge_sdk.errors import AggregationError, TrainingError
from edge_sdk.protocol.limits import MODEL_VALUE_MAX, SCORE_OUT_OF_BOUNDS, SCORE_UNAVAILABLE
from edge_sdk.protocol.messages import Codec, ModelParams, UpdatePayload
from edge_sdk.training.artifact import Artifact
from edge_sdk.training.codecs.reading import UpdateForm
from edge_sdk.training.dataset import ArrayDataset
from edge_sdk.training.delta import encode_delta
from edge_sdk.training.network import Scheme
from edge_sdk.training.trainer import Trainer

CLASSES: Final = 3
CLIP: Final = 4.0
WEIGHT: Final = 1 << 16


def examples(count: int, seed: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Three blobs that a small network separates."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, CLASSES, count)
    centres = np.eye(CLASSES, 8, dtype=np.float32) * 3
    return (centres[y] + rng.normal(0, 0.4, (count, 8))).astype(np.float32), y.astype(np.int64)


@pytest.fixture(scope="module")
def model() -> tuple[Artifact, ModelParams]:
    return zoo.build("mlp", input_shape=(8,), class_count=CLASSES, batch=16, scheme=Scheme.FP32, seed=3)


@pytest.fixture(scope="module")
def trainer(model: tuple[Artifact, ModelParams]) -> Trainer:
    return Trainer(model[0], backend="onnxruntime")


@pytest.fixture(scope="module")
def fold() -> Fold:
    x, y = examples(120, seed=1)
    return Fold(x=x, y=y)


@pytest.fixture(scope="module")
def delta(model: tuple[Artifact, ModelParams], trainer: Trainer) -> dict[str, npt.NDArray[np.float32]]:
    """What an honest device learns."""
    x, y = examples(200, seed=2)
    trainer.load(model[1])
    dataset = ArrayDataset(x, y, input_shape=(8,), class_count=CLASSES)
    trainer.train(dataset, steps=40, lr=0.1, rng=np.random.default_rng(5))
    return trainer.delta()


def encode(delta: dict[str, npt.NDArray[np.float32]], artifact: Artifact, *, clip: float = CLIP) -> UpdatePayload:
    return encode_delta(delta, None, artifact.network.tensors, clip_norm=clip, codec=Codec.INT8_DENSE).payload


def score(
    trainer: Trainer, fold: Fold, base: ModelParams, updates: list[ScoredUpdate]
) -> tuple[int, tuple[int, ...], tuple[bytes, ...]]:
    scores = score_block(
        trainer,
        fold,
        base,
        updates,
        total_weight=WEIGHT * len(updates),
        server_rate_q16=1 << 16,
        clip_norm_q16=round(CLIP * 65_536),
        form=UpdateForm(codec=Codec.INT8_DENSE),
    )
    return scores.base, scores.updates, scores.classes


def test_an_honest_update_is_better_and_its_opposite_worse(
    model: tuple[Artifact, ModelParams], trainer: Trainer, fold: Fold, delta: dict[str, npt.NDArray[np.float32]]
) -> None:
    artifact, base = model
    opposite = {name: -values for name, values in delta.items()}
    updates = [ScoredUpdate(weight=WEIGHT, payload=encode(part, artifact)) for part in (delta, opposite)]
    base_score, scores, _ = score(trainer, fold, base, updates)
    assert scores[0] > base_score + 20
    assert scores[1] < base_score - 20


def test_a_share_of_a_large_block_moves_less(
    model: tuple[Artifact, ModelParams], trainer: Trainer, fold: Fold, delta: dict[str, npt.NDArray[np.float32]]
) -> None:
    artifact, base = model
    update = ScoredUpdate(weight=WEIGHT, payload=encode(delta, artifact))
    base_score, (alone,), _ = score(trainer, fold, base, [update])
    _, (shared, *_), _ = score(trainer, fold, base, [update] * 8)
    assert base_score < shared < alone


def test_negative_codes(
    model: tuple[Artifact, ModelParams], trainer: Trainer, fold: Fold, delta: dict[str, npt.NDArray[np.float32]]
) -> None:
    artifact, base = model
    honest = encode(delta, artifact)
    scaled = encode({name: 10 * values for name, values in delta.items()}, artifact, clip=1e9)
    foreign = replace(honest, tensors=honest.tensors[1:])
    updates = [
        ScoredUpdate(weight=WEIGHT, payload=honest),
        ScoredUpdate(weight=WEIGHT, payload=None, is_available=False),
        ScoredUpdate(weight=WEIGHT, payload=None),
        ScoredUpdate(weight=WEIGHT, payload=scaled),
        ScoredUpdate(weight=WEIGHT, payload=foreign),
    ]
    _, scores, classes = score(trainer, fold, base, updates)
    assert scores[0] >= 0
    assert scores[1] == SCORE_UNAVAILABLE
    assert scores[2:] == (SCORE_OUT_OF_BOUNDS,) * 3
    assert classes[1:][1] == bytes([CLASS_ABSENT]) * CLASSES


def test_an_update_that_no_miner_could_merge_is_out_of_bounds(
    model: tuple[Artifact, ModelParams], trainer: Trainer, fold: Fold, delta: dict[str, npt.NDArray[np.float32]]
) -> None:
    """A neuron that never fires hides it from the loss: were it accepted, no vote would ever end its block."""
    artifact, base = model
    position = next(i for i, tensor in enumerate(base.tensors) if tensor.channel_axis < 0)
    bias = base.tensors[position]
    values = np.frombuffer(bias.values, "<i4").copy()
    values[0] = -MODEL_VALUE_MAX
    tensors = [*base.tensors]
    tensors[position] = replace(bias, values=values.tobytes())
    edge = ModelParams(tensors=tuple(tensors))
    outward = {name: np.zeros_like(part) for name, part in delta.items()}
    outward[bias.name][0] = -1.0
    inward = {name: -part for name, part in outward.items()}
    payloads = [encode(part, artifact) for part in (outward, inward)]
    _, scores, _ = score(trainer, fold, edge, [ScoredUpdate(weight=WEIGHT, payload=payload) for payload in payloads])
    with pytest.raises(AggregationError, match="leaves its range"):
        merge(edge, [(WEIGHT, payloads[0])], WEIGHT, 1 << 16)
    assert scores[0] == SCORE_OUT_OF_BOUNDS
    assert scores[1] >= 0


def test_recalls_are_percentages_and_mark_absent_classes(model: tuple[Artifact, ModelParams], trainer: Trainer) -> None:
    x, y = examples(60, seed=4)
    fold = Fold(x=x[y != 1], y=y[y != 1])
    update = ScoredUpdate(weight=WEIGHT, payload=None, is_available=False)
    _, _, (base_recalls, _) = score(trainer, fold, model[1], [update])
    assert len(base_recalls) == CLASSES
    assert base_recalls[1] == CLASS_ABSENT
    assert all(0 <= base_recalls[label] <= 100 for label in (0, 2))


def test_a_fold_has_a_bound() -> None:
    x = np.zeros((FOLD_EXAMPLES_MAX + 1, 2), np.uint8)
    dataset = ArrayDataset(x, np.zeros(len(x), np.int64), input_shape=(2,), class_count=2)
    with pytest.raises(TrainingError, match="8193 examples"):
        fold_of(dataset)


def test_bytes_become_features() -> None:
    dataset = ArrayDataset(np.array([[0, 255]], np.uint8), np.zeros(1, np.int64), input_shape=(2,), class_count=2)
    assert fold_of(dataset).x.tolist() == [[0.0, 1.0]]
