"""The trainer: what a job does, how it is resumed, and when it must stop."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from coordinator.authoring.zoo import build
from edge_sdk.errors import (
    ConfigError,
    DecodeError,
    LocalProtocolError,
    NonFiniteError,
    QuantizationError,
    TrainingError,
)
from edge_sdk.protocol.messages import ModelParams
from edge_sdk.training.artifact import Artifact
from edge_sdk.training.backend import Batch
from edge_sdk.training.dataset import ArrayDataset
from edge_sdk.training.network import Scheme
from edge_sdk.training.quantize import dequantize, scale_values
from edge_sdk.training.trainer import Trainer

SHAPE, CLASSES, SIZE = (6,), 3, 8
ARTIFACT, PARAMS = build("mlp", SHAPE, CLASSES, batch=SIZE, seed=0)
FLOAT_ARTIFACT, _ = build("mlp", SHAPE, CLASSES, batch=SIZE, scheme=Scheme.FP32, seed=0)
BACKENDS = ("onnxruntime", "numpy")


def dataset(count: int = 30) -> ArrayDataset:
    rng = np.random.default_rng(1)
    y = np.arange(count) % CLASSES
    x = (rng.normal(size=(count, *SHAPE)) + np.eye(6)[y] * 3).astype(np.float32)
    return ArrayDataset(x, y, input_shape=SHAPE, class_count=CLASSES)


def loaded(backend: str = "onnxruntime", params: ModelParams = PARAMS) -> Trainer:
    trainer = Trainer(ARTIFACT, backend=backend)
    trainer.load(params)
    return trainer


@pytest.mark.parametrize("backend", BACKENDS)
def test_training_learns(backend: str) -> None:
    trainer, data = loaded(backend), dataset(90)
    before = trainer.evaluate(PARAMS, data.x, data.y)
    report = trainer.train(data, steps=60, lr=0.1, rng=np.random.default_rng(2))
    start = dequantize(PARAMS)
    after = trainer.evaluate({n: start[n] + d for n, d in trainer.delta().items()}, data.x, data.y)
    assert (report.steps, report.examples) == (60, 5 * 90)  # 12 batches an epoch, the last one of 2
    assert after.loss_mean < 0.5 * before.loss_mean
    assert after.accuracy > 0.9
    assert report.loss_mean < report.loss_first


@pytest.mark.parametrize("backend", BACKENDS)
def test_single_steps_learn(backend: str) -> None:
    trainer, data = loaded(backend), dataset(48)
    losses = [trainer.step(data.x[at : at + SIZE], data.y[at : at + SIZE], lr=0.1) for at in [*range(0, 48, SIZE)] * 8]
    assert np.mean(losses[-6:]) < 0.5 * np.mean(losses[:6])
    assert trainer.steps_done == 48
    assert trainer.evaluate(trainer.parameters(), data.x, data.y).accuracy > 0.9


def test_a_single_step_is_that_of_a_job() -> None:
    data, one, other = dataset(SIZE), loaded(), loaded()
    one.train(data, steps=1, lr=0.1, rng=np.random.default_rng(4))
    (batch,) = (batch for batch, _ in zip(data.batches(np.random.default_rng(4), size=SIZE), range(1), strict=False))
    other.step(batch.x, batch.y, lr=0.1)
    assert one.state_bytes() == other.state_bytes()


def test_a_step_on_fewer_examples_than_a_batch_counts_them_alone() -> None:
    data, one, other = dataset(3), loaded(), loaded()
    loss = one.step(data.x, data.y, lr=0.1)
    assert loss == pytest.approx(one.evaluate(dequantize(PARAMS), data.x, data.y).loss_mean, rel=0.05)
    other.train(data, steps=1, lr=0.1, rng=np.random.default_rng(0))
    moved = np.concatenate([value.ravel() for value in one.delta().values()])
    theirs = np.concatenate([value.ravel() for value in other.delta().values()])
    assert np.abs(moved - theirs).max() < 0.05 * np.abs(theirs).max()  # the same three rows in another order


@pytest.mark.parametrize(
    ("count", "lr", "message"), [(SIZE + 1, 0.1, "at most 8"), (2, 0.0, "learning rate"), (2, float("nan"), "rate")]
)
def test_a_step_that_cannot_be_is_refused(count: int, lr: float, message: str) -> None:
    data = dataset(count)
    with pytest.raises(TrainingError, match=message):
        loaded().step(data.x, data.y, lr=lr)
    with pytest.raises(TrainingError, match="array y, row 0"):
        loaded().step(data.x[:1], np.array([CLASSES]))


def test_a_delta_against_another_base_is_the_difference_of_parameters() -> None:
    trainer, data = loaded(), dataset(SIZE)
    trainer.step(data.x, data.y, lr=0.1)
    own, again = trainer.delta(), trainer.delta(PARAMS)
    assert all(np.array_equal(own[name], again[name]) for name in own)
    other = build("mlp", SHAPE, CLASSES, batch=SIZE, seed=9)[1]
    far = trainer.delta(other)
    for name, value in dequantize(other).items():
        np.testing.assert_allclose(value + far[name], trainer.parameters()[name], atol=1e-6)
    with pytest.raises(QuantizationError):
        trainer.delta(build("mlp", (7,), CLASSES, batch=SIZE, seed=0)[1])
    with pytest.raises(LocalProtocolError):
        Trainer(ARTIFACT).parameters()


def test_delta_is_zero_before_training_and_on_the_grid_after() -> None:
    trainer = loaded()
    assert all(not d.any() for d in trainer.delta().values())
    trainer.train(dataset(), steps=3, lr=0.1, rng=np.random.default_rng(2))
    tensor = PARAMS.tensors[0]
    steps = trainer.delta()[tensor.name] / (scale_values(tensor.scale_m, tensor.scale_k) / 256)
    np.testing.assert_array_equal(steps, np.rint(steps))
    assert np.abs(steps).max() > 0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("artifact", [ARTIFACT, FLOAT_ARTIFACT], ids=["int8", "fp32"])
def test_masked_places_do_not_count(backend: str, artifact: Artifact) -> None:
    """Whatever class stands in a masked place, and for float also whatever features, the step is the same."""
    trainer = Trainer(artifact, backend=backend)
    trainer.load(PARAMS)
    batch = next(dataset(5).batches(np.random.default_rng(0), size=SIZE))
    assert batch.weight.tolist() == [1, 1, 1, 1, 1, 0, 0, 0]
    spoiled_y, spoiled_x = batch.y.copy(), batch.x.copy()
    spoiled_y[5:] = 2
    if artifact is FLOAT_ARTIFACT:  # an int8 activation shares its range with the whole batch
        spoiled_x[5:] = 9.0
    first = trainer._backend.step(batch, 0.1, trainer._states, trainer._scales)
    second = trainer._backend.step(Batch(spoiled_x, spoiled_y, batch.weight), 0.1, trainer._states, trainer._scales)
    assert first[1] == pytest.approx(second[1], abs=1e-6)
    for name, state in first[0].items():
        np.testing.assert_allclose(second[0][name], state, rtol=0, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_state_saturates_instead_of_wrapping(backend: str) -> None:
    trainer = loaded(backend)
    report = trainer.train(dataset(), steps=5, lr=20.0, rng=np.random.default_rng(2))
    states = np.concatenate([trainer._states[name].ravel() for name in trainer._scales])
    assert report.saturated == np.isin(states, (-32_768, 32_767)).sum() > 0
    start = np.concatenate([trainer._start[name].ravel() for name in trainer._scales]).astype(np.int32)
    # A wrapped value would have jumped to the other end of the range.
    assert (
        np.sign(states[np.abs(states.astype(np.int32)) > 32_000]).tolist()
        == np.sign((states.astype(np.int32) - start)[np.abs(states.astype(np.int32)) > 32_000]).tolist()
    )


def test_resumed_job_ends_like_an_uninterrupted_one() -> None:
    whole = loaded()
    whole.train(dataset(), steps=11, lr=0.1, rng=np.random.default_rng(7))
    first = loaded()
    first.train(dataset(), steps=6, lr=0.1, rng=np.random.default_rng(7))
    checkpoint = first.state_bytes()
    second = loaded()
    second.restore(checkpoint)
    assert second.steps_done == 6
    second.train(dataset(), steps=11, lr=0.1, rng=np.random.default_rng(7), start_step=second.steps_done)
    assert whole.state_bytes() == second.state_bytes()
    assert all((whole.delta()[name] == second.delta()[name]).all() for name in whole.delta())


def test_callback_may_stop_between_steps() -> None:
    class Paused(Exception):  # noqa: N818 - not an error
        pass

    def pause(step: int, loss: float) -> None:
        assert loss > 0
        if step == 4:
            raise Paused

    trainer = loaded()
    with pytest.raises(Paused):
        trainer.train(dataset(), steps=9, lr=0.1, rng=np.random.default_rng(7), on_step=pause)
    reference = loaded()
    reference.train(dataset(), steps=4, lr=0.1, rng=np.random.default_rng(7))
    assert trainer.state_bytes() == reference.state_bytes()


def other_base() -> Trainer:
    values = bytearray(PARAMS.tensors[1].values)
    values[2] ^= 1
    tensors = list(PARAMS.tensors)
    tensors[1] = replace(tensors[1], values=bytes(values))
    return loaded(params=ModelParams(tensors=tuple(tensors)))


def other_artifact() -> Trainer:
    trainer = Trainer(FLOAT_ARTIFACT)
    trainer.load(PARAMS)
    return trainer


@pytest.mark.parametrize("target", [other_base, other_artifact])
def test_checkpoint_of_another_job_is_refused(target: Callable[[], Trainer]) -> None:
    checkpoint = loaded().state_bytes()
    with pytest.raises(DecodeError, match="checkpoint"):
        target().restore(checkpoint)


@pytest.mark.parametrize("data", [b"", b"\xa0", b"\x80", b"\xff" * 10])
def test_damaged_checkpoint_is_refused(data: bytes) -> None:
    trainer = loaded()
    with pytest.raises(DecodeError):
        trainer.restore(data)
    assert all(not d.any() for d in trainer.delta().values())


def test_truncated_checkpoint_is_refused() -> None:
    checkpoint = loaded().state_bytes()
    with pytest.raises(DecodeError):
        loaded().restore(checkpoint[:-1])


@pytest.mark.parametrize("backend", BACKENDS)
def test_diverging_training_stops(backend: str) -> None:
    trainer = Trainer(FLOAT_ARTIFACT, backend=backend)
    trainer.load(PARAMS)
    with np.errstate(all="ignore"), pytest.raises(NonFiniteError):
        trainer.train(dataset(), steps=60, lr=1e12, rng=np.random.default_rng(0))


@pytest.mark.parametrize("backend", BACKENDS)
def test_quantized_training_that_diverged_is_not_published(backend: str) -> None:
    """The weights saturate and the loss stays finite; the biases tell, and the clip would hide them in a small step."""
    trainer = loaded(backend)
    with np.errstate(all="ignore"), pytest.raises(NonFiniteError, match="no value that a model can hold"):
        trainer.train(dataset(), steps=3, lr=1e12, rng=np.random.default_rng(0))


def test_non_finite_parameters_are_not_scored() -> None:
    data = dataset()
    spoiled = dequantize(PARAMS)
    spoiled["dense0_weight"] = np.full_like(spoiled["dense0_weight"], np.nan)
    with pytest.raises(NonFiniteError):
        Trainer(ARTIFACT).evaluate(spoiled, data.x, data.y)


def test_evaluation_counts_per_class_and_in_slices() -> None:
    data = dataset(700)  # three slices
    whole = loaded().evaluate(PARAMS, data.x, data.y)
    parts = [loaded().evaluate(PARAMS, data.x[i::2], data.y[i::2]) for i in range(2)]
    assert whole.count == 700
    assert sum(whole.class_count) == 700
    assert whole.correct == sum(whole.class_correct) == sum(part.correct for part in parts)
    assert whole.loss_sum == pytest.approx(sum(part.loss_sum for part in parts), rel=1e-6)


def test_wrong_use_is_named() -> None:
    with pytest.raises(ConfigError, match=r"expected one of onnxruntime, .*numpy, "):
        Trainer(ARTIFACT, backend="torch7")
    with pytest.raises(LocalProtocolError, match="no model"):
        Trainer(ARTIFACT).delta()
    for steps, lr in ((0, 0.1), (5, 0.0), (5, float("nan"))):
        with pytest.raises(TrainingError):
            loaded().train(dataset(), steps=steps, lr=lr, rng=np.random.default_rng(0))


def test_released_trainer_can_be_used_again() -> None:
    trainer = loaded()
    trainer.train(dataset(), steps=2, lr=0.1, rng=np.random.default_rng(0))
    expected = trainer.state_bytes()
    trainer.release()
    with pytest.raises(LocalProtocolError):
        trainer.delta()
    trainer.load(PARAMS)
    trainer.train(dataset(), steps=2, lr=0.1, rng=np.random.default_rng(0))
    assert trainer.state_bytes() == expected
