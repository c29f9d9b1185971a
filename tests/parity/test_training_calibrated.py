"""Calibrated artifacts: fixed uint8 grids in the step, and the int8 inference graph."""

import math
from typing import Any

import numpy as np
import onnx
import pytest

from coordinator.authoring.builder import build_artifact
from coordinator.authoring.calibration import calibrate
from coordinator.authoring.zoo import genesis_params, network
from edge_sdk.errors import DecodeError, TrainingError
from edge_sdk.protocol import codec
from edge_sdk.protocol.messages import ModelParams
from edge_sdk.training.artifact import Artifact
from edge_sdk.training.backend import Batch
from edge_sdk.training.dataset import ArrayDataset
from edge_sdk.training.grids import Grid, grid_of_range, gridded_values, output_grid
from edge_sdk.training.network import Network, Node, Op, Role, Scheme, TensorSpec
from edge_sdk.training.quantize import int8_model, round_to_int8
from edge_sdk.training.rounding_noise import RoundingNoise
from edge_sdk.training.trainer import Trainer

NETWORKS = [("mlp", (12,), 4), ("lenet", (1, 8, 8), 10), ("lenet", (3, 12, 12), 5), ("cnn1d", (6, 64), 5)]
BATCH = 8


def examples(shape: tuple[int, ...], count: int = 64) -> Any:
    return np.random.default_rng(1).normal(size=(count, *shape)).astype(np.float32)


def calibrated(
    model: str, shape: tuple[int, ...], classes: int, scheme: Scheme = Scheme.INT8
) -> tuple[Artifact, ModelParams]:
    forward = network(model, shape, classes)
    params = genesis_params(forward.tensors, seed=2)
    grids = calibrate(forward, params, examples(shape))
    return build_artifact(model, forward, batch=BATCH, scheme=scheme, grids=grids), params


@pytest.mark.parametrize("scheme", [Scheme.INT8, Scheme.INT8_SR])
@pytest.mark.parametrize(("model", "shape", "classes"), NETWORKS)
@pytest.mark.parametrize("other", ["numpy", pytest.param("torch", marks=pytest.mark.torch)])
def test_a_calibrated_step_is_the_oracle(
    model: str, shape: tuple[int, ...], classes: int, other: str, scheme: Scheme
) -> None:
    artifact, params = calibrated(model, shape, classes, scheme)
    graph, oracle = Trainer(artifact), Trainer(artifact, backend=other)
    graph.load(params)
    states = graph._states
    noise = RoundingNoise(artifact, rng=np.random.default_rng(0))
    # Twice as wide as the examples of the calibration, so that some values saturate.
    data = ArrayDataset(2 * examples(shape), np.arange(64) % classes, input_shape=shape, class_count=classes)
    for step, batch in zip(range(3), data.batches(np.random.default_rng(3), size=BATCH), strict=False):
        found, loss = graph._backend.step(batch, 0.05, states, graph._scales, {}, noise.draw(step))
        expected, expected_loss = oracle._backend.step(batch, 0.05, states, graph._scales, {}, noise.draw(step))
        assert loss == pytest.approx(expected_loss, abs=1e-4)
        tipped = np.concatenate([(found[name] != expected[name]).ravel() for name in graph._scales])
        assert tipped.mean() <= 5e-3
        assert all(np.abs(found[n].astype(np.int32) - expected[n]).max() <= 6 for n in graph._scales)
        states = found


@pytest.mark.parametrize(("model", "shape", "classes"), NETWORKS)
def test_int8_inference_is_the_oracle_and_near_float(model: str, shape: tuple[int, ...], classes: int) -> None:
    artifact, params = calibrated(model, shape, classes)
    states, scales = int8_model(params)
    x = examples(shape, 37)
    graph, oracle = Trainer(artifact)._backend, Trainer(artifact, backend="numpy")._backend
    found, expected = graph.int8_logits(x, states, scales), oracle.int8_logits(x, states, scales)
    spread = float(np.ptp(expected))
    np.testing.assert_allclose(found, expected, rtol=0, atol=0.01 * spread)
    assert np.mean(np.abs(found - expected) > 1e-4 * spread) < 0.1, "roundings tip now and then, not everywhere"
    exact = graph.logits(x, round_to_int8(params))
    assert np.abs(found - exact).max() < 0.1 * spread
    assert np.mean(found.argmax(axis=1) == exact.argmax(axis=1)) > 0.85


def branching() -> Network:
    """A residual block of several channels, and a pooling that reads what a convolution reads too."""

    def weights(name: str, shape: tuple[int, ...], axis: int) -> tuple[TensorSpec, TensorSpec]:
        return (
            TensorSpec(name=f"{name}_w", shape=shape, role=Role.WEIGHT, channel_axis=axis, exponent=-24),
            TensorSpec(name=f"{name}_b", shape=(shape[axis],), role=Role.BIAS, channel_axis=-1, exponent=-24),
        )

    window: dict[str, Any] = {"kernel": (3, 3), "stride": (1, 1), "padding": (1, 1)}
    pool: dict[str, Any] = {"kernel": (2, 2), "stride": (2, 2), "padding": (0, 0)}
    return Network(
        input_shape=(3, 6, 6),
        class_count=3,
        tensors=(
            *weights("a", (4, 3, 3, 3), 0),
            *weights("b", (4, 4, 3, 3), 0),
            *weights("c", (4, 1, 3, 3), 0),
            *weights("d", (72, 3), 1),
        ),
        nodes=(
            Node(op=Op.CONV, inputs=("x", "a_w", "a_b"), output="a", **window),
            Node(op=Op.RELU, inputs=("a",), output="ra"),
            Node(op=Op.CONV, inputs=("ra", "b_w", "b_b"), output="b", **window),
            Node(op=Op.ADD, inputs=("b", "ra"), output="sum"),
            Node(op=Op.CONV, inputs=("sum", "c_w", "c_b"), output="c", groups=4, **window),
            Node(op=Op.MAX_POOL, inputs=("c",), output="pc", **pool),
            Node(op=Op.MAX_POOL, inputs=("sum",), output="ps", **pool),
            Node(op=Op.CONCAT, inputs=("pc", "ps"), output="both", axes=(1,)),
            Node(op=Op.FLATTEN, inputs=("both",), output="flat"),
            Node(op=Op.GEMM, inputs=("flat", "d_w", "d_b"), output="z"),
            Node(op=Op.SOFTMAX_CROSS_ENTROPY, inputs=("z",), output="loss"),
        ),
    )


def test_a_value_is_converted_where_a_branch_needs_it() -> None:
    forward = branching()
    params = genesis_params(forward.tensors, seed=5)
    grids = calibrate(forward, params, examples((3, 6, 6)))
    artifact = build_artifact("branching", forward, batch=BATCH, scheme=Scheme.INT8, grids=grids)
    states, scales = int8_model(params)
    x = examples((3, 6, 6), 20)
    found, expected = (
        Trainer(artifact, backend=name)._backend.int8_logits(x, states, scales) for name in ("onnxruntime", "numpy")
    )
    np.testing.assert_allclose(found, expected, rtol=0, atol=0.01 * float(np.ptp(expected)))
    operators = [node.op_type for node in onnx.load_model_from_string(artifact.int8_onnx).graph.node]
    assert operators.count("QLinearConv") == 1, "only the first has one reader up to the next grid"


def test_int8_inference_has_the_operators_that_are_fast() -> None:
    artifact, _ = calibrated("lenet", (1, 8, 8), 10)
    operators = [node.op_type for node in onnx.load_model_from_string(artifact.int8_onnx).graph.node]
    assert operators.count("Conv") == 1, "the first, of one channel"
    assert operators.count("QLinearConv") == 1
    assert operators.count("MatMulInteger") == 2
    assert "ConvInteger" not in operators
    assert "Relu" in operators
    # After the second convolution, bytes flow through pooling, rectifier and flattening into the linear layer.
    behind = operators[operators.index("QLinearConv") + 1 : operators.index("MatMulInteger")]
    assert set(behind) <= {"MaxPool", "Flatten", "Clip"}


def test_a_convolution_writes_to_the_grid_of_the_value_behind_it() -> None:
    forward = network("lenet", (3, 12, 12), 5)
    grids = {name: Grid(0.5, place) for place, name in enumerate(gridded_values(forward))}
    convolutions = [node for node in forward.nodes if node.op is Op.CONV]
    assert [output_grid(forward, node, grids) for node in convolutions] == [Grid(0.5, 1), Grid(0.5, 2)]
    last = next(node for node in reversed(forward.nodes) if node.op is Op.GEMM)
    assert output_grid(forward, last, grids) is None


@pytest.mark.parametrize("backend", ["onnxruntime", "numpy", pytest.param("torch", marks=pytest.mark.torch)])
def test_what_saturates_gets_no_gradient(backend: str) -> None:
    """With a grid for the hidden layer that ends far below its values, nothing reaches the layer before."""
    forward = network("mlp", (6,), 3)
    params = genesis_params(forward.tensors, seed=2)
    wide = {name: grid_of_range(-20.0, 20.0) for name in gridded_values(forward)}
    rng = np.random.default_rng(0)
    batch = Batch(
        np.abs(rng.normal(size=(BATCH, 6))).astype(np.float32), np.arange(BATCH) % 3, np.ones(BATCH, np.float32)
    )
    moved = {}
    for grids in (wide, wide | {gridded_values(forward)[1]: grid_of_range(0.0, 1e-6)}):
        trainer = Trainer(build_artifact("x", forward, batch=BATCH, scheme=Scheme.INT8, grids=grids), backend=backend)
        trainer.load(params)
        trainer._states, _ = trainer._backend.step(batch, 0.1, trainer._states, trainer._scales)
        delta = trainer.delta()
        moved[grids is wide] = {name: bool(value.any()) for name, value in delta.items()}
    assert moved[True]["dense0_weight"]
    assert not moved[False]["dense0_weight"]
    assert moved[False]["dense2_bias"]


def test_evaluation_takes_the_int8_network_for_a_model_and_float_for_arrays() -> None:
    artifact, params = calibrated("lenet", (1, 8, 8), 10)
    x, y = examples((1, 8, 8), 50), np.arange(50) % 10
    plain = build_artifact("lenet", artifact.network, batch=BATCH, scheme=Scheme.INT8)
    trainer = Trainer(artifact)
    arrays = round_to_int8(params)
    as_board, as_miner = trainer.evaluate(params, x, y), trainer.evaluate(arrays, x, y)
    assert as_board.loss_mean != as_miner.loss_mean
    assert as_board.loss_mean == pytest.approx(as_miner.loss_mean, rel=0.05)
    assert as_miner.loss_mean == Trainer(plain).evaluate(arrays, x, y).loss_mean


def test_ranges_become_grids_that_hold_zero() -> None:
    assert grid_of_range(0.0, 2.55) == Grid(float(np.float32(0.01)), 0)
    grid = grid_of_range(-1.0, 3.0)
    assert grid.zero == 64
    assert grid.bounds[0] == pytest.approx(-1.0, abs=grid.scale)
    assert grid.bounds[1] == pytest.approx(3.0, abs=grid.scale)
    assert grid_of_range(1.0, 2.0).bounds[0] == 0.0
    assert grid_of_range(0.0, 0.0) == Grid(1.0, 0)
    with pytest.raises(TrainingError, match="not finite"):
        grid_of_range(0.0, math.inf)


def test_calibration_refuses_what_says_nothing() -> None:
    forward = network("mlp", (6,), 3)
    params = genesis_params(forward.tensors, seed=2)
    with pytest.raises(TrainingError, match="no example"):
        calibrate(forward, params, np.zeros((0, 6), np.float32))
    with pytest.raises(TrainingError, match="activation x is not finite"):
        calibrate(forward, params, np.full((2, 6), np.nan, np.float32))


def test_a_file_with_spoiled_grids_is_not_loaded() -> None:
    artifact, _ = calibrated("mlp", (6,), 3)
    assert Artifact.load(artifact.data).grids == artifact.grids
    spoils: list[tuple[str, Any]] = [
        ("scale nan", lambda content: content[1][16][0].__setitem__(1, b"\x00\x00\xc0\x7f")),
        ("zero point 256", lambda content: content[1][16][0].__setitem__(2, 256)),
        ("grids are given for", lambda content: content[1][16].pop()),
        ("float32 scheme", lambda content: content[1].__setitem__(6, int(Scheme.FP32))),
        ("without a hash", lambda content: content[1].pop(15)),
        ("does not match", lambda content: content.__setitem__(5, b"another graph")),
        ("grids without", lambda content: (content.pop(5), content[1].pop(15))),
        ("expected 3 fields", lambda content: content[1][16][0].pop()),
    ]
    for message, spoil in spoils:
        content: Any = codec.decode(artifact.data, bytes_max=len(artifact.data))
        spoil(content)
        with pytest.raises(DecodeError, match=message):
            Artifact.load(codec.encode(content))
