"""The recipes that ship: shapes, determinism, refusals, and graphs that old runtimes load."""

import numpy as np
import onnx
import pytest

from coordinator.authoring.builder import build_artifact
from coordinator.authoring.zoo import CLASSIFIERS, MODELS, RECIPES, build, genesis_gains, network
from edge_sdk.errors import ConfigError, TrainingError
from edge_sdk.protocol.messages import ModelParams
from edge_sdk.training.artifact import Artifact
from edge_sdk.training.dataset import ArrayDataset
from edge_sdk.training.network import Network, Node, Op, Role, Scheme
from edge_sdk.training.quantize import check_params, dequantize
from edge_sdk.training.trainer import Trainer

PARAMETERS = {
    "mlp": 109_386,
    "lenet": 61_706,
    "cnn1d": 10_902,
    "dscnn": 22_604,
    "mobilenetv2": 401_898,
    "autoencoder": 18_704,
    "regressor": 3_201,
}


def small(model: str, scheme: Scheme, *, seed: int = 0) -> tuple[Artifact, ModelParams]:
    recipe = RECIPES[model]
    return build(model, recipe.input_shape, recipe.outputs, batch=4, scheme=scheme, seed=seed)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("scheme", Scheme)
def test_recipe_builds_what_its_docstring_says(model: str, scheme: Scheme) -> None:
    artifact, params = small(model, scheme)
    check_params(params, artifact.network.tensors)
    assert artifact.network.parameter_count == PARAMETERS[model]
    assert artifact.network.is_classifier == (model in CLASSIFIERS)
    again, same = small(model, scheme)
    assert (again.digest, same) == (artifact.digest, params)
    assert small(model, scheme, seed=1)[1] != params


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("scheme", Scheme)
def test_graphs_keep_to_the_operators_of_old_runtimes(model: str, scheme: Scheme) -> None:
    artifact, _ = small(model, scheme)
    for data in (artifact.train_onnx, artifact.eval_onnx):
        loaded = onnx.load_from_string(data)
        assert loaded.ir_version <= 9
        assert [(entry.domain, entry.version) for entry in loaded.opset_import] == [("", 18)]
        assert not {node.op_type for node in loaded.graph.node} & {"ConvInteger", "If", "Loop", "Scan"}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("backend", ["onnxruntime", "numpy"])
def test_every_recipe_takes_steps_that_lower_its_loss(model: str, backend: str) -> None:
    artifact, params = small(model, Scheme.INT8)
    network_ = artifact.network
    rng = np.random.default_rng(5)
    x = rng.normal(0, 1, (4, *network_.input_shape)).astype(np.float32)
    y = np.arange(4) if network_.is_classifier else x.reshape(4, -1)[:, : network_.class_count]
    data = ArrayDataset(
        x, y, input_shape=network_.input_shape, class_count=network_.class_count, has_labels=network_.is_classifier
    )
    trainer = Trainer(artifact, backend=backend)
    trainer.load(params)
    report = trainer.train(data, steps=8, lr=0.01, rng=rng)
    assert report.loss_mean < report.loss_first
    moved = {name for name, delta in trainer.delta().items() if delta.any()}
    trained = {spec.name for spec in network_.tensors if spec.is_trainable}
    assert moved <= trained  # a weight may still be within one step of its grid
    assert len(moved) > 0.5 * len(trained)


def test_mobilenetv2_trains_its_last_two_blocks() -> None:
    tensors = network("mobilenetv2", (3, 96, 96), 10).tensors
    assert len(tensors) == 2 * (52 + 1)  # convolutions and the linear layer
    weights, biases = (
        sum(spec.size for spec in tensors if spec.role is role and spec.name.startswith("conv")) for role in Role
    )
    assert weights + 4 * biases == 410_208  # the published network of this width, four numbers per normalized channel
    trained = [spec.name for spec in tensors if spec.is_trainable]
    assert trained[0] == "conv45_weight"
    assert trained[-1] == "dense52_bias"
    assert sum(spec.size for spec in tensors if spec.is_trainable) == 259_090


def test_genesis_keeps_activations_in_range_through_the_depth() -> None:
    """53 layers without normalization: neither dead nor saturated at 6."""
    artifact, params = small("mobilenetv2", Scheme.FP32)
    assert set(genesis_gains(artifact.network).values()) == {0.25, 1.0}
    trainer = Trainer(artifact, backend="numpy")
    x = np.random.default_rng(0).normal(0, 1, (8, 3, 96, 96)).astype(np.float32)
    loss = trainer.evaluate(params, x, np.arange(8)).loss_mean
    assert 2.0 < loss < 3.5  # ln 10 = 2.3


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


REFUSED = [
    ("resnet", (1, 28, 28)),
    ("lenet", (784,)),
    ("lenet", (1, 6, 6)),
    ("cnn1d", (1, 28, 28)),
    ("cnn1d", (6, 60)),
    ("dscnn", (49, 10)),
    ("dscnn", (1, 9, 10)),
    ("mobilenetv2", (3, 24, 96)),
    ("autoencoder", (8, 16)),  # 10 outputs for 128 values
]


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
