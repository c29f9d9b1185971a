"""The recipes that ship: shapes, determinism, refusals, and graphs that old runtimes load."""

import numpy as np
import onnx
import pytest

from coordinator.authoring.builder import build_artifact
from coordinator.authoring.zoo import MODELS, build, network
from edge_sdk.errors import ConfigError, TrainingError
from edge_sdk.training.network import Network, Node, Op, Scheme
from edge_sdk.training.quantize import check_params, dequantize

SHAPES = {"mlp": (64,), "lenet": (1, 28, 28), "cnn1d": (6, 128)}
PARAMETERS = {"mlp": 17_226, "lenet": 61_706, "cnn1d": 10_902}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("scheme", Scheme)
def test_recipe_builds_what_its_docstring_says(model: str, scheme: Scheme) -> None:
    classes = 6 if model == "cnn1d" else 10
    artifact, params = build(model, SHAPES[model], classes, batch=32, scheme=scheme, seed=0)
    check_params(params, artifact.network.tensors)
    assert artifact.network.parameter_count == PARAMETERS[model]
    again, same = build(model, SHAPES[model], classes, batch=32, scheme=scheme, seed=0)
    assert (again.digest, same) == (artifact.digest, params)
    assert build(model, SHAPES[model], classes, batch=32, scheme=scheme, seed=1)[1] != params


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("scheme", Scheme)
def test_graphs_keep_to_the_operators_of_old_runtimes(model: str, scheme: Scheme) -> None:
    artifact, _ = build(model, SHAPES[model], 10, batch=4, scheme=scheme, seed=0)
    for data in (artifact.train_onnx, artifact.eval_onnx):
        loaded = onnx.load_from_string(data)
        assert loaded.ir_version <= 9
        assert [(entry.domain, entry.version) for entry in loaded.opset_import] == [("", 18)]
        assert not {node.op_type for node in loaded.graph.node} & {"ConvInteger", "If", "Loop", "Scan"}


def test_genesis_is_he_normal() -> None:
    _, params = build("mlp", (784,), 10, batch=4, seed=0)
    weight = dequantize(params)["dense0_weight"]
    assert weight.std() == pytest.approx(np.sqrt(2 / 784), rel=0.02)
    assert abs(weight.mean()) < 1e-3
    assert not dequantize(params)["dense0_bias"].any()


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (1, 20, 24)])
def test_lenet_adapts_to_the_image(shape: tuple[int, ...]) -> None:
    artifact, _ = build("lenet", shape, 10, batch=2, seed=0)
    assert artifact.network.tensors[0].shape[:2] == (6, shape[0])


REFUSED = [("resnet", (1, 28, 28)), ("lenet", (784,)), ("lenet", (1, 6, 6)), ("cnn1d", (1, 28, 28)), ("cnn1d", (6, 60))]


@pytest.mark.parametrize(("model", "shape"), REFUSED)
def test_recipe_that_does_not_fit_is_refused(model: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="model"):
        build(model, shape, 10, batch=2, seed=0)


def test_mlp_flattens_images() -> None:
    assert network("mlp", (1, 8, 8), 10).nodes[0].op is Op.FLATTEN


def test_value_without_a_consumer_gets_no_gradient() -> None:
    """A side branch that the loss does not read is computed, and emits no backward nodes."""
    plain = network("mlp", (8,), 3)
    side = Node(op=Op.RELU, inputs=(plain.nodes[0].output,), output="side")
    branched = Network(
        input_shape=plain.input_shape,
        class_count=3,
        tensors=plain.tensors,
        nodes=(*plain.nodes[:-1], side, plain.nodes[-1]),
    )
    artifacts = [build_artifact("a", net, batch=2, scheme=Scheme.FP32) for net in (plain, branched)]
    counts = [len(onnx.load_from_string(artifact.train_onnx).graph.node) for artifact in artifacts]
    assert counts[1] == counts[0] + 1


def test_tensor_that_two_nodes_use_is_refused() -> None:
    plain = network("mlp", (8,), 3)
    shared = Node(op=Op.GEMM, inputs=("x", *plain.nodes[0].inputs[1:]), output="again")
    doubled = Network(
        input_shape=(8,), class_count=3, tensors=plain.tensors, nodes=(plain.nodes[0], shared, *plain.nodes[1:])
    )
    with pytest.raises(TrainingError, match="already in use"):
        build_artifact("a", doubled, batch=2, scheme=Scheme.FP32)
