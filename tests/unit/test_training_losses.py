"""Regression and binary targets, dropout, and frozen tensors, through the trainer."""

from typing import Any

import numpy as np
import pytest

from coordinator.authoring.builder import build_artifact
from coordinator.authoring.zoo import genesis_params
from edge_sdk.errors import TrainingError
from edge_sdk.training.artifact import Artifact
from edge_sdk.training.dataset import ArrayDataset
from edge_sdk.training.network import Network, Node, Op, Role, Scheme, TensorSpec
from edge_sdk.training.trainer import Trainer

INPUTS, OUTPUTS, SIZE = 4, 2, 8
BACKENDS = ("onnxruntime", "numpy")


def artifact(loss: Op, *, rate: float = 0.0, frozen: frozenset[str] = frozenset()) -> Artifact:
    """Two layers of 16, with a dropout between them."""

    def tensor(name: str, shape: tuple[int, ...]) -> TensorSpec:
        role, axis = (Role.WEIGHT, 1) if len(shape) == 2 else (Role.BIAS, -1)
        return TensorSpec(
            name=name, shape=shape, role=role, channel_axis=axis, exponent=-24, is_trainable=name not in frozen
        )

    network = Network(
        input_shape=(INPUTS,),
        class_count=OUTPUTS,
        tensors=(
            tensor("w0", (INPUTS, 16)),
            tensor("b0", (16,)),
            tensor("w1", (16, OUTPUTS)),
            tensor("b1", (OUTPUTS,)),
        ),
        nodes=(
            Node(op=Op.GEMM, inputs=("x", "w0", "b0"), output="h"),
            Node(op=Op.TANH, inputs=("h",), output="t"),
            Node(op=Op.DROPOUT, inputs=("t",), output="d", constants=(rate,)),
            Node(op=Op.GEMM, inputs=("d", "w1", "b1"), output="z"),
            Node(op=loss, inputs=("z",), output="loss"),
        ),
    )
    return build_artifact("two-layers", network, batch=SIZE, scheme=Scheme.INT8)


def examples(loss: Op, count: int = 60) -> ArrayDataset:
    x = np.random.default_rng(3).normal(size=(count, INPUTS)).astype(np.float32)
    y: Any = x[:, :OUTPUTS] - 0.5 * x[:, 2:]
    if loss is Op.BINARY_CROSS_ENTROPY:
        y = (y > 0).astype(np.float32)
    elif loss is Op.SOFTMAX_CROSS_ENTROPY:
        y = y.argmax(axis=1)
    has_labels = loss is Op.SOFTMAX_CROSS_ENTROPY
    return ArrayDataset(x, y, input_shape=(INPUTS,), class_count=OUTPUTS, has_labels=has_labels)


def trained(made: Artifact, data: ArrayDataset, backend: str = "onnxruntime", *, steps: int = 80) -> Trainer:
    trainer = Trainer(made, backend=backend)
    trainer.load(genesis_params(made.network.tensors, seed=1))
    trainer.train(data, steps=steps, lr=0.2, rng=np.random.default_rng(2))
    return trainer


def moved(trainer: Trainer) -> dict[str, Any]:
    start = genesis_params(trainer.artifact.network.tensors, seed=1)
    return {
        tensor.name: np.ldexp(np.frombuffer(tensor.values, "<i4"), tensor.exponent).reshape(tensor.shape)
        + trainer.delta()[tensor.name]
        for tensor in start.tensors
    }


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("loss", [Op.MEAN_SQUARED_ERROR, Op.BINARY_CROSS_ENTROPY])
def test_targets_are_learned(loss: Op, backend: str) -> None:
    made, data = artifact(loss), examples(loss)
    trainer = trained(made, data, backend)
    before = trainer.evaluate(genesis_params(made.network.tensors, seed=1), data.x, data.y)
    after = trainer.evaluate({k: v.astype(np.float32) for k, v in moved(trainer).items()}, data.x, data.y)
    assert after.loss_mean < 0.4 * before.loss_mean
    assert after.class_count == ()
    assert (after.accuracy > 0.8) == (loss is Op.BINARY_CROSS_ENTROPY)


def test_evaluation_is_the_equation() -> None:
    made = artifact(Op.MEAN_SQUARED_ERROR)
    params = {spec.name: np.zeros(spec.shape, np.float32) for spec in made.network.tensors}
    y = np.array([[1.0, 3.0], [0.0, 2.0]], np.float32)
    found = Trainer(made).evaluate(params, np.zeros((2, INPUTS), np.float32), y)
    assert found.loss_mean == pytest.approx((5.0 + 2.0) / 2)
    assert (found.count, found.correct) == (2, 0)
    binary = Trainer(artifact(Op.BINARY_CROSS_ENTROPY))
    assert binary.evaluate(params, np.zeros((2, INPUTS), np.float32), y * 0).loss_mean == pytest.approx(np.log(2))


def test_dropout_drops_in_training_only_and_repeats_after_a_resume() -> None:
    loss = Op.SOFTMAX_CROSS_ENTROPY
    made, data = artifact(loss, rate=0.5), examples(loss)
    whole = trained(made, data, steps=7)
    first = trained(made, data, steps=4)
    saved = first.state_bytes()
    second = Trainer(made)
    second.load(genesis_params(made.network.tensors, seed=1))
    second.restore(saved)
    second.train(data, steps=7, lr=0.2, rng=np.random.default_rng(2), start_step=4)
    assert second.state_bytes() == whole.state_bytes()
    assert trained(artifact(loss), data, steps=7).state_bytes()[-200:] != whole.state_bytes()[-200:]
    scores = [
        trainer.evaluate(genesis_params(made.network.tensors, seed=1), data.x, data.y)
        for trainer in (whole, Trainer(made, backend="numpy"), Trainer(artifact(loss)))
    ]
    assert scores[0].loss_mean == pytest.approx(scores[1].loss_mean) == pytest.approx(scores[2].loss_mean)


@pytest.mark.parametrize("backend", BACKENDS)
def test_frozen_tensors_have_no_delta(backend: str) -> None:
    loss = Op.SOFTMAX_CROSS_ENTROPY
    trainer = trained(artifact(loss, frozen=frozenset({"w0", "b1"})), examples(loss), backend, steps=5)
    assert {name for name, delta in trainer.delta().items() if delta.any()} == {"b0", "w1"}
    assert "w0.next" not in trainer.artifact.train_outputs


def test_an_entirely_frozen_network_is_refused() -> None:
    with pytest.raises(TrainingError, match="frozen"):
        artifact(Op.MEAN_SQUARED_ERROR, frozen=frozenset({"w0", "b0", "w1", "b1"}))


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (np.zeros(3, np.float32), "expected 2 floats per example"),
        (np.zeros((3, 3), np.float32), "expected 2 floats per example"),
        (np.zeros((3, 2), np.int64), "expected 2 floats per example"),
        (np.array([[0, 0], [0, np.nan], [0, 0]], np.float32), "array y, row 1: a value is not finite"),
        (np.zeros((2, 2), np.float32), "array x has 3 rows, array y has 2"),
    ],
)
def test_wrong_targets_are_refused(y: Any, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        ArrayDataset(np.zeros((3, 4), np.float32), y, input_shape=(4,), class_count=2, has_labels=False)
