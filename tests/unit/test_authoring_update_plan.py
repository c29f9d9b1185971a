"""What a tensor gains, and which are trained within a bound on memory."""

import numpy as np
import pytest

from coordinator.authoring.contribution import contributions, with_trained
from coordinator.authoring.update_plan import NOTHING, choose_plan
from coordinator.authoring.zoo import genesis_params, network
from edge_sdk.errors import TrainingError
from edge_sdk.training.dataset import ArrayDataset
from edge_sdk.training.network import Network
from edge_sdk.training.quantize import dequantize

NET = network("mlp", (8,), 3)
WEIGHTS = {"dense0_weight": 60, "dense1_weight": 50, "dense2_weight": 50}


def additive(chosen: Network) -> int:
    """100 bytes for the process, and a fixed number for each trained weight."""
    return 100 + sum(WEIGHTS.get(spec.name, 1) for spec in chosen.tensors if spec.is_trainable)


def test_two_that_fit_beat_the_largest_one() -> None:
    gains = {"dense0_weight": 5.0, "dense1_weight": 4.0, "dense2_weight": 4.0}
    plan = choose_plan(NET, gains, limit_bytes=200, peak_of=additive)
    assert plan.trained == ("dense1_weight", "dense2_weight")
    assert (plan.gain, plan.peak_bytes) == (8.0, 200)
    assert [spec.name for spec in plan.network.tensors if spec.is_trainable] == list(plan.trained)
    reasons = {left.tensor: left.reason for left in plan.left_out}
    assert "would need 0.0 MiB" in reasons["dense0_weight"]
    assert reasons["dense0_bias"] == NOTHING
    assert len(plan.trained) + len(plan.left_out) == len(NET.tensors)


def test_the_largest_one_beats_many_small_ones() -> None:
    gains = {"dense0_weight": 9.0, "dense0_bias": 1.0, "dense1_bias": 1.0}
    plan = choose_plan(NET, gains, limit_bytes=160, peak_of=additive)
    assert plan.trained == ("dense0_weight",)
    assert plan.gain == 9.0


def test_everything_is_trained_where_it_fits() -> None:
    gains = dict.fromkeys((spec.name for spec in NET.tensors), 1.0)
    plan = choose_plan(NET, gains, limit_bytes=1000, peak_of=additive)
    assert plan.left_out == ()
    assert plan.peak_bytes == additive(NET)


def test_frozen_tensors_are_no_candidates() -> None:
    head = with_trained(NET, frozenset({"dense2_weight", "dense2_bias"}))
    plan = choose_plan(head, {"dense2_weight": 1.0, "dense2_bias": 0.0}, limit_bytes=1000, peak_of=additive)
    assert plan.trained == ("dense2_weight",)
    assert [left.tensor for left in plan.left_out] == ["dense2_bias"]


def test_bound_that_nothing_meets_names_the_cheapest() -> None:
    with pytest.raises(TrainingError, match=r"training dense1_bias alone needs .* the limit is"):
        choose_plan(NET, {"dense0_weight": 5.0, "dense1_bias": 1.0}, limit_bytes=100, peak_of=additive)
    with pytest.raises(TrainingError, match="no tensor lowers the loss"):
        choose_plan(NET, {"dense0_weight": 0.0}, limit_bytes=1000, peak_of=additive)


def calibration(x: np.ndarray, y: np.ndarray) -> ArrayDataset:
    return ArrayDataset(x.astype(np.float32), y, input_shape=(8,), class_count=3)


def test_gain_is_the_decrease_of_the_loss_along_one_tensor() -> None:
    """By hand for the last bias: softmax regression on constant logits."""
    arrays = {name: np.zeros_like(array) for name, array in dequantize(genesis_params(NET.tensors, seed=0)).items()}
    y = np.array([0, 0, 0, 1] * 10)
    gains = contributions(NET, arrays, calibration(np.ones((40, 8)), y))
    bias = -(np.full(3, 1 / 3) - np.array([0.75, 0.25, 0.0]))  # the step of rate 1
    log_p = bias - np.log(np.exp(bias).sum())
    assert gains["dense2_bias"] == pytest.approx(np.log(3) + 0.75 * log_p[0] + 0.25 * log_p[1], abs=1e-5)
    assert [name for name, gain in gains.items() if gain > 0] == ["dense2_bias"]  # all else passes through zeros


def test_weight_without_input_gains_nothing_and_examples_are_bounded() -> None:
    rng = np.random.default_rng(0)
    arrays = dequantize(genesis_params(NET.tensors, seed=0))
    gains = contributions(NET, arrays, calibration(np.zeros((37, 8)), rng.integers(0, 3, 37)))
    assert gains["dense0_weight"] == 0.0
    x, y = rng.normal(0, 1, (300, 8)), rng.integers(0, 3, 300)
    several = contributions(NET, arrays, calibration(x, y))
    assert several == contributions(NET, arrays, calibration(x[:128], y[:128]))
    assert min(several[f"dense{layer}_weight"] for layer in range(3)) > 0.0
