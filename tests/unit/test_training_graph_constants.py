"""Inputs of a graph as constants of its session: the same graph to ``onnx``, the same answers; other bytes refused."""

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper

from coordinator.authoring.builder import build_artifact
from coordinator.authoring.trainable import with_trainable
from coordinator.authoring.zoo import genesis_params, imported
from edge_sdk.errors import TrainingError
from edge_sdk.training.artifact import state_name
from edge_sdk.training.backend import Batch
from edge_sdk.training.graph_constants import with_constants
from edge_sdk.training.network import Scheme
from edge_sdk.training.onnx_backend import OnnxBackend
from edge_sdk.training.trainer import Trainer

FORWARD = with_trainable(imported("dscnn", input_shape=(1, 12, 4), class_count=3, seed=0), "last:2")
ARTIFACT = build_artifact("frozen", FORWARD, batch=4, scheme=Scheme.INT8)
RNG = np.random.default_rng(5)
BATCH = Batch(RNG.normal(size=(4, 1, 12, 4)).astype(np.float32), np.array([0, 1, 2, 0]), np.ones(4, np.float32))


def loaded(seed: int) -> Trainer:
    trainer = Trainer(ARTIFACT)
    trainer.load(genesis_params(FORWARD.tensors, seed=seed))
    return trainer


def values() -> dict[str, Any]:
    trainer = loaded(1)
    feed = {state_name(name): state for name, state in trainer._states.items()}
    feed |= {f"{name}.scale": scale for name, scale in trainer._scales.items()}
    return {name: feed[name] for name in ARTIFACT.frozen_inputs}


def test_frozen_inputs_are_states_and_scales_of_what_is_not_trained() -> None:
    trained = {spec.name for spec in FORWARD.tensors if spec.is_trainable}
    assert len(trained) == 4
    assert set(ARTIFACT.frozen_inputs) <= set(ARTIFACT.train_inputs)
    states = [name for name in ARTIFACT.train_inputs if name.endswith(".state")]
    assert {name for name in states if name not in ARTIFACT.frozen_inputs} == set(map(state_name, trained))


def test_inputs_become_initializers() -> None:
    constants = values()
    before = onnx.load_from_string(ARTIFACT.train_onnx)
    after = onnx.load_from_string(with_constants(ARTIFACT.train_onnx, constants))
    onnx.checker.check_model(after, full_check=True)
    assert [value.name for value in after.graph.input] == [
        value.name for value in before.graph.input if value.name not in constants
    ]
    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in after.graph.initializer}
    assert {found[name].dtype.name for name in constants} == {"int16", "float32"}
    for name, value in constants.items():
        np.testing.assert_array_equal(found[name], value)
        assert found[name].dtype == value.dtype
    assert (after.graph.node, after.graph.output) == (before.graph.node, before.graph.output)
    assert (after.opset_import, after.ir_version) == (before.opset_import, before.ir_version)


def test_graph_without_constants_is_left_alone() -> None:
    assert with_constants(ARTIFACT.train_onnx, {}) is ARTIFACT.train_onnx


def test_input_that_is_not_there_is_named() -> None:
    with pytest.raises(TrainingError, match="no inputs nobody"):
        with_constants(ARTIFACT.train_onnx, {"nobody": np.zeros(3, np.float32)})


@pytest.mark.parametrize("data", [b"", b"\x08", b"\x3a\x05abc", b"\x3b", b"\xff" * 12, b"\x3a\x02\x5a\x09"])
def test_bytes_that_are_no_model_are_refused(data: bytes) -> None:
    with pytest.raises(TrainingError, match="graph"):
        with_constants(data, {"w": np.zeros(3, np.float32)})


@given(st.binary(max_size=200))
def test_bytes_at_random_are_refused(data: bytes) -> None:
    with pytest.raises(TrainingError, match="graph"):
        with_constants(data, {"w": np.zeros(3, np.float32)})


def test_other_frozen_tensors_take_another_session() -> None:
    """A backend holds no state: it follows what it is given, also where no global model ever changes."""
    first, second = loaded(1), loaded(2)
    shared = OnnxBackend(ARTIFACT)
    for trainer in (first, second, first):
        apart, loss = OnnxBackend(ARTIFACT).step(BATCH, 0.1, trainer._states, trainer._scales)
        together, again = shared.step(BATCH, 0.1, trainer._states, trainer._scales)
        assert loss == again
        for name, state in apart.items():
            np.testing.assert_array_equal(together[name], state)


def test_a_job_keeps_its_session() -> None:
    trainer = loaded(1)
    trainer.step(BATCH.x, BATCH.y)
    backend = trainer._backend
    assert isinstance(backend, OnnxBackend)
    session = backend._training
    trainer.step(BATCH.x, BATCH.y)
    trainer.load(genesis_params(FORWARD.tensors, seed=1))  # the next version: other arrays of the same values
    trainer.step(BATCH.x, BATCH.y)
    assert backend._training is session
    trainer.release()
    assert backend._frozen == {}
