"""Personal models: the equation, who is held out, and that the held-out examples decide."""

from __future__ import annotations

import numpy as np
import pytest

from coordinator.authoring.zoo import build
from edge_sdk.errors import TrainingError
from edge_sdk.training.dataset import ArrayDataset, Selection
from edge_sdk.training.personal import ALPHAS, HELD_OUT_MAX, held_out, mix
from edge_sdk.training.quantize import dequantize
from edge_sdk.training.trainer import Trainer

ARTIFACT, GLOBAL = build("mlp", (4,), 3, batch=8, seed=0)
BASE = dequantize(GLOBAL)
RNG = np.random.default_rng(5)
DATA = ArrayDataset(
    RNG.normal(size=(90, 4)).astype(np.float32), np.zeros(90, np.int64), input_shape=(4,), class_count=3
)


@pytest.fixture
def trainer() -> Trainer:
    return Trainer(ARTIFACT, backend="numpy")


def moved(by: float) -> dict[str, np.ndarray]:
    """Parameters of a board that only knows class 0: its logit is larger by ``by``."""
    local = {name: value.copy() for name, value in BASE.items()}
    local["dense2_bias"] = local["dense2_bias"] + np.array([by, 0, 0], np.float32)
    return local


def test_the_mix_is_the_equation(trainer: Trainer) -> None:
    mixed = mix(trainer, moved(8.0), GLOBAL, DATA, np.arange(20), alphas=[0.75])
    assert mixed.alpha == 0.75
    found = dequantize(mixed.params)
    for name, value in moved(8.0).items():
        np.testing.assert_allclose(found[name], 0.75 * value + 0.25 * BASE[name], atol=2**-24)
    assert [tensor.exponent for tensor in mixed.params.tensors] == [tensor.exponent for tensor in GLOBAL.tensors]


def test_held_out_examples_choose_alpha_and_model(trainer: Trainer) -> None:
    """All labels are 0: the further towards the local model, the better; and away from it, the worse."""
    towards = mix(trainer, moved(0.5), GLOBAL, DATA, np.arange(60), alphas=ALPHAS)
    assert towards.alpha == 0.77
    assert towards.is_better
    away = mix(trainer, moved(-0.5), GLOBAL, DATA, np.arange(60), alphas=ALPHAS)
    assert away.alpha == 0.5
    assert not away.is_better
    assert towards.personal.count == towards.global_.count == 60


def test_the_examples_that_decide_are_bounded(trainer: Trainer) -> None:
    many = ArrayDataset(
        np.zeros((HELD_OUT_MAX + 9, 4), np.float32),
        np.zeros(HELD_OUT_MAX + 9, np.int64),
        input_shape=(4,),
        class_count=3,
    )
    assert mix(trainer, BASE, GLOBAL, many, np.arange(len(many)), alphas=[0.5]).personal.count == HELD_OUT_MAX


def test_the_same_rows_are_held_out_always() -> None:
    numbers = np.arange(10_000)
    mask = held_out(numbers, seed=3)
    assert abs(int(mask.sum()) - 2_000) < 160
    assert np.array_equal(held_out(numbers[40:], seed=3), mask[40:])
    assert not np.array_equal(held_out(numbers, seed=4), mask)
    for period in (2, 5, 7):  # no pattern of a file meets all or none of them
        shares = [mask[start::period].mean() for start in range(period)]
        assert all(abs(share - 0.2) < 0.04 for share in shares)


@pytest.mark.parametrize("count", range(2, 40))
def test_some_are_held_out_and_some_are_left(count: int) -> None:
    mask = held_out(np.arange(count), seed=1)
    assert 1 <= mask.sum() < count


def test_a_single_example_is_not_held_out() -> None:
    assert not held_out(np.arange(1), seed=1).any()
    assert not held_out(np.arange(0), seed=1).any()


def test_a_selection_serves_its_rows_alone_and_in_the_same_order_as_a_dataset_of_them() -> None:
    rows = np.array([3, 8, 13, 21, 34, 55, 89])
    alone = ArrayDataset(DATA.x[rows], DATA.y[rows], input_shape=(4,), class_count=3)
    chosen = Selection(DATA, rows)
    assert len(chosen) == 7
    for start in (0, 2, 5):
        one = chosen.batches(np.random.default_rng(2), size=3, start=start)
        other = alone.batches(np.random.default_rng(2), size=3, start=start)
        for _ in range(7):
            mine, theirs = next(one), next(other)
            assert np.array_equal(mine.x, theirs.x)
            assert np.array_equal(mine.weight, theirs.weight)
    with pytest.raises(TrainingError, match="no row"):
        Selection(DATA, np.arange(0))
