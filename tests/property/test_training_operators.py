"""Every operator against torch autograd and against finite differences of the oracle in float64, over drawn shapes.

Each case is x -> convolution -> operator -> Flatten -> Gemm -> loss, so that a gradient passes through the operator.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from coordinator.authoring.builder import build_artifact
from coordinator.authoring.conv_places import pooled_values
from coordinator.authoring.conv_products import is_product
from coordinator.authoring.layout import channel_major_values
from coordinator.authoring.zoo import genesis_params
from edge_sdk.training import numpy_backend
from edge_sdk.training.artifact import Artifact
from edge_sdk.training.backend import Batch
from edge_sdk.training.dropout import DropoutMasks
from edge_sdk.training.network import Network, Node, Op, Role, Scheme, TensorSpec, infer_shapes
from edge_sdk.training.numpy_backend import NumpyBackend
from edge_sdk.training.numpy_functions import loss_and_slope
from edge_sdk.training.onnx_backend import OnnxBackend
from edge_sdk.training.quantize import dequantize
from edge_sdk.training.shape_rules import output_shape
from edge_sdk.training.trainer import Trainer

EXAMPLES = 8
OUTPUTS = 3
TIE = 1e-3
"""Of a step of a grid: nearer to a tie, a float32 sum decides which integer a value becomes."""
ACTIVATIONS: dict[Op, tuple[float, ...]] = {
    Op.RELU: (),
    Op.CLIP: (-0.25, 0.5),
    Op.LEAKY_RELU: (0.1,),
    Op.SIGMOID: (),
    Op.TANH: (),
    Op.HARD_SWISH: (),
    Op.DROPOUT: (0.4,),
}
UNDER_TEST = (
    *ACTIVATIONS,
    Op.CONV,
    Op.AFFINE,
    Op.AVERAGE_POOL,
    Op.GLOBAL_AVERAGE_POOL,
    Op.ADD,
    Op.MUL,
    Op.CONCAT,
    Op.RESHAPE,
    Op.TRANSPOSE,
)
LOSSES = (Op.SOFTMAX_CROSS_ENTROPY, Op.MEAN_SQUARED_ERROR, Op.BINARY_CROSS_ENTROPY)


@dataclass(frozen=True)
class Case:
    network: Network
    size: int


class Layers:
    """Appends nodes and keeps the shapes, all for a batch of 1."""

    def __init__(self, input_shape: tuple[int, ...]) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {"x": (1, *input_shape)}
        self.tensors: list[TensorSpec] = []
        self.nodes: list[Node] = []

    def tensor(self, shape: tuple[int, ...], *, axis: int = -1, is_trainable: bool = True) -> str:
        role = Role.BIAS if axis < 0 else Role.WEIGHT
        name = f"t{len(self.tensors)}"
        self.tensors.append(
            TensorSpec(name=name, shape=shape, role=role, channel_axis=axis, exponent=-24, is_trainable=is_trainable)
        )
        return name

    def add(self, op: Op, *inputs: str, **fields: Any) -> str:
        node = Node(op=op, inputs=inputs, output=f"h{len(self.nodes)}", **fields)
        specs = {spec.name: spec for spec in self.tensors}
        values = [self.shapes[name] for name in node.values]
        self.shapes[node.output] = output_shape(op.name, node, values, [specs[name] for name in node.tensors])
        self.nodes.append(node)
        return node.output

    def conv(self, value: str, channels: int, *, groups: int = 1, is_trainable: bool = True, **window: Any) -> str:
        shape = (channels, self.shapes[value][1] // groups, *window["kernel"])
        weight = self.tensor(shape, axis=0, is_trainable=is_trainable)
        bias = self.tensor((channels,), is_trainable=is_trainable)
        return self.add(Op.CONV, value, weight, bias, groups=groups, **window)

    def mix(self, value: str, channels: int) -> str:
        """A convolution over single positions."""
        axes = len(self.shapes[value]) - 2
        return self.conv(value, channels, kernel=(1,) * axes, stride=(1,) * axes, padding=(0,) * axes)

    def finish(self, value: str, loss: Op, constants: tuple[float, ...] = ()) -> Network:
        flat = self.add(Op.FLATTEN, value)
        weight = self.tensor((self.shapes[flat][1], OUTPUTS), axis=1)
        logits = self.add(Op.GEMM, flat, weight, self.tensor((OUTPUTS,)))
        self.add(loss, logits, constants=constants)
        return Network(
            input_shape=self.shapes["x"][1:],
            class_count=OUTPUTS,
            tensors=tuple(self.tensors),
            nodes=tuple(self.nodes),
        )


@st.composite
def windows(draw: st.DrawFn, sizes: tuple[int, ...], *, is_dilated: bool) -> dict[str, Any]:
    kernel, dilation, begin, end = [], [], [], []
    for size in sizes:
        kernel.append(draw(st.integers(1, min(3, size))))
        room = (size - 1) // (kernel[-1] - 1) if kernel[-1] > 1 else 1
        dilation.append(draw(st.integers(1, min(3, room))) if is_dilated else 1)
        begin.append(draw(st.integers(0, kernel[-1] - 1)))
        end.append(draw(st.integers(0, kernel[-1] - 1)))
    return {
        "kernel": tuple(kernel),
        "stride": tuple(draw(st.integers(1, 3)) for _ in sizes),
        "padding": (*begin, *end),
    } | ({"dilation": tuple(dilation)} if is_dilated else {})


@st.composite
def cases(draw: st.DrawFn, op: Op, loss: Op = Op.SOFTMAX_CROSS_ENTROPY) -> Case:
    sizes = tuple(draw(st.lists(st.integers(2, 6), min_size=1, max_size=2)))
    layers = Layers((draw(st.integers(1, 3)), *sizes))
    channels = draw(st.integers(1, 4))
    value = layers.mix("x", channels)
    match op:
        case Op.CONV:
            groups = draw(st.sampled_from([g for g in range(1, channels + 1) if channels % g == 0]))
            window = draw(windows(sizes, is_dilated=True))
            value = layers.conv(value, groups * draw(st.integers(1, 2)), groups=groups, **window)
        case Op.AVERAGE_POOL:
            window = draw(windows(sizes, is_dilated=False))
            value = layers.add(op, value, counts_padding=draw(st.booleans()), **window)
        case Op.AFFINE:
            value = layers.add(op, value, layers.tensor((channels,)), layers.tensor((channels,)))
        case Op.ADD | Op.MUL:
            other = layers.mix("x", draw(st.sampled_from([1, channels])))
            if draw(st.booleans()):
                other = layers.add(Op.GLOBAL_AVERAGE_POOL, other)
            value = layers.add(op, *((value, other) if draw(st.booleans()) else (other, value)))
        case Op.CONCAT:
            joined = (value, layers.mix("x", draw(st.integers(1, 3))), value)
            value = layers.add(op, *joined, axes=(1,))
        case Op.RESHAPE:
            value = layers.add(op, value, shape=(*sizes[::-1], channels))
        case Op.TRANSPOSE:
            value = layers.add(op, value, axes=tuple(draw(st.permutations(range(1, 2 + len(sizes))))))
        case _:
            value = layers.add(op, value, constants=ACTIVATIONS.get(op, ()))
    smoothing = (0.1,) if loss is Op.SOFTMAX_CROSS_ENTROPY and draw(st.booleans()) else ()
    return Case(layers.finish(value, loss, smoothing), draw(st.integers(1, 4)))


@st.composite
def product_cases(draw: st.DrawFn) -> Case:
    """Convolutions that are written as products, with a sum, poolings and a convolution of the other order between."""
    sizes = tuple(draw(st.lists(st.integers(2, 4), min_size=1, max_size=2)))
    layers = Layers((draw(st.integers(1, 3)), *sizes))
    channels = draw(st.integers(1, 4))
    start = layers.mix("x", channels)
    window = draw(windows(sizes, is_dilated=True))
    value = layers.conv(layers.add(Op.TANH, start), channels, groups=channels, **window)
    if draw(st.booleans()):
        # Both spread over the sizes of the first: one from the same order, one that a node of the other order makes.
        other = draw(st.sampled_from([start, "x"]))
        if other == "x":
            other = layers.conv(other, channels, kernel=sizes, stride=sizes, padding=(0,) * len(sizes))
        value = layers.add(draw(st.sampled_from([Op.ADD, Op.MUL])), value, layers.add(Op.GLOBAL_AVERAGE_POOL, other))
    if draw(st.booleans()):
        window = draw(windows(layers.shapes[value][2:], is_dilated=False))
        value = layers.add(Op.AVERAGE_POOL, value, counts_padding=draw(st.booleans()), **window)
    value = layers.mix(layers.add(Op.HARD_SWISH, value), draw(st.integers(1, 3)))
    return Case(layers.finish(value, Op.SOFTMAX_CROSS_ENTROPY), draw(st.integers((math.prod(sizes) + 1) // 2, 9)))


@st.composite
def pooled_cases(draw: st.DrawFn) -> Case:
    """A convolution that only a pool reads, whose windows may leave positions at the end."""
    sizes = tuple(draw(st.lists(st.integers(6, 9), min_size=1, max_size=2)))
    layers = Layers((draw(st.integers(1, 2)), *sizes))
    value = layers.mix("x", draw(st.integers(1, 2)))
    axes = len(sizes)
    kernel = tuple(draw(st.integers(2, 3)) for _ in sizes)
    padding = tuple(draw(st.integers(0, 1)) for _ in range(2 * axes))
    stride = tuple(draw(st.integers(1, 2)) for _ in sizes)
    value = layers.conv(value, draw(st.integers(1, 3)), kernel=kernel, stride=stride, padding=padding)
    places = tuple(draw(st.integers(1, 2)) for _ in sizes)
    value = layers.add(Op.MAX_POOL, value, kernel=places, stride=places, padding=(0,) * axes)
    return Case(layers.finish(layers.add(Op.RELU, value), Op.SOFTMAX_CROSS_ENTROPY), draw(st.integers(1, 4)))


def batch_for(case: Case) -> Batch:
    rng = np.random.default_rng(case.size)
    x = rng.normal(size=(case.size, *case.network.input_shape)).astype(np.float32)
    weight = (np.arange(case.size) < max(1, case.size - 1)).astype(np.float32)
    if case.network.is_classifier:
        return Batch(x, rng.integers(0, OUTPUTS, case.size), weight)
    return Batch(x, rng.random((case.size, OUTPUTS)).astype(np.float32), weight)


def start_for(network: Network) -> dict[str, Any]:
    """Genesis weights; biases and affine parameters that are not zero, and keep values off the kinks."""
    rng = np.random.default_rng(7)
    return {
        name: value if value.ndim > 1 else rng.normal(0.3, 0.5, value.shape).astype(np.float32)
        for name, value in dequantize(genesis_params(network.tensors, seed=5)).items()
    }


def shapes_of(case: Case) -> dict[str, tuple[int, ...]]:
    return infer_shapes(case.network, batch=case.size)


def masks_for(artifact: Artifact) -> dict[str, Any]:
    return DropoutMasks(artifact.network, batch=artifact.batch, rng=np.random.default_rng(3)).draw(0)


def torch_gradients(case: Case, start: dict[str, Any], masks: dict[str, Any]) -> dict[str, Any]:
    import torch

    batch = batch_for(case)
    params = {name: torch.tensor(value, requires_grad=True) for name, value in start.items()}
    values = {"x": torch.tensor(batch.x)}
    nodes = case.network.nodes
    for node in nodes[:-1]:
        inputs = [values[name] for name in node.values]
        values[node.output] = torch_forward(node, inputs, [params[name] for name in node.tensors], masks)
    weight = torch.tensor(batch.weight)
    losses = torch_losses(nodes[-1], values[nodes[-2].output], torch.tensor(batch.y))
    gradients = torch.autograd.grad((losses * weight).sum() / weight.sum(), list(params.values()))
    return {name: gradient.numpy() for name, gradient in zip(params, gradients, strict=True)}


def torch_forward(node: Node, inputs: list[Any], tensors: list[Any], masks: dict[str, Any]) -> Any:
    import torch
    from torch.nn import functional

    def padded(value: Any) -> Any:
        pairs = zip(reversed(node.pads[0]), reversed(node.pads[1]), strict=True)
        return functional.pad(value, [size for pair in pairs for size in pair])

    def pooled(value: Any) -> Any:
        pool = functional.avg_pool1d if len(node.kernel) == 1 else functional.avg_pool2d
        return pool(padded(value), node.kernel, node.stride)

    def largest(value: Any) -> Any:
        pool = functional.max_pool1d if len(node.kernel) == 1 else functional.max_pool2d
        return pool(value, node.kernel, node.stride)

    def averaged(value: Any) -> Any:
        return pooled(value) if node.counts_padding else pooled(value) / pooled(torch.ones_like(value))

    def convolved(value: Any) -> Any:
        convolve = functional.conv1d if len(node.kernel) == 1 else functional.conv2d
        return convolve(padded(value), *tensors, stride=node.stride, dilation=node.dilations, groups=node.groups)

    def affine(value: Any) -> Any:
        scale, shift = (tensor.reshape(-1, *(1 for _ in value.shape[2:])) for tensor in tensors)
        return value * scale + shift

    table: dict[Op, Callable[..., Any]] = {
        Op.GEMM: lambda x: x @ tensors[0] + tensors[1],
        Op.CONV: convolved,
        Op.AFFINE: affine,
        Op.AVERAGE_POOL: averaged,
        Op.GLOBAL_AVERAGE_POOL: lambda x: x.mean(dim=tuple(range(2, x.ndim)), keepdim=True),
        Op.MAX_POOL: largest,
        Op.RELU: functional.relu,
        Op.CLIP: lambda x: functional.hardtanh(x, node.constants[0], node.constants[1]),
        Op.LEAKY_RELU: lambda x: functional.leaky_relu(x, node.constants[0]),
        Op.SIGMOID: torch.sigmoid,
        Op.TANH: torch.tanh,
        Op.HARD_SWISH: functional.hardswish,
        Op.DROPOUT: lambda x: x * torch.tensor(masks[node.output]),
        Op.ADD: lambda a, b: a + b,
        Op.MUL: lambda a, b: a * b,
        Op.CONCAT: lambda *parts: torch.cat(parts, node.axes[0]),
        Op.RESHAPE: lambda x: x.reshape(len(x), *node.shape),
        Op.TRANSPOSE: lambda x: x.permute(0, *node.axes),
        Op.FLATTEN: lambda x: x.flatten(1),
    }
    return table[node.op](*inputs)


def torch_losses(node: Node, logits: Any, y: Any) -> Any:
    from torch.nn import functional

    match node.op:
        case Op.MEAN_SQUARED_ERROR:
            return functional.mse_loss(logits, y, reduction="none").mean(1)
        case Op.BINARY_CROSS_ENTROPY:
            return functional.binary_cross_entropy_with_logits(logits, y, reduction="none").mean(1)
        case _:
            smoothing = node.constants[0] if node.constants else 0.0
            return functional.cross_entropy(logits, y, reduction="none", label_smoothing=smoothing)


def check_with_torch(case: Case) -> None:
    artifact = build_artifact("drawn", case.network, batch=case.size, scheme=Scheme.FP32)
    start, masks, batch = start_for(case.network), masks_for(artifact), batch_for(case)
    expected = torch_gradients(case, start, masks)
    for backend in (OnnxBackend(artifact), NumpyBackend(artifact)):
        after, _ = backend.step(batch, 1.0, start, {}, masks)
        for tensor, gradient in expected.items():
            np.testing.assert_allclose(start[tensor] - after[tensor], gradient, rtol=2e-5, atol=3e-6)


@pytest.mark.torch
@pytest.mark.parametrize("op", UNDER_TEST, ids=lambda op: op.name.lower())
def test_operator_has_the_gradients_of_torch(op: Op) -> None:
    settings(max_examples=EXAMPLES)(given(case=cases(op))(check_with_torch))()


@pytest.mark.torch
@pytest.mark.parametrize("loss", LOSSES, ids=lambda op: op.name.lower())
def test_loss_has_the_gradients_of_torch(loss: Op) -> None:
    settings(max_examples=EXAMPLES)(given(case=cases(Op.TANH, loss))(check_with_torch))()


@pytest.mark.torch
@settings(max_examples=2 * EXAMPLES)
@given(case=product_cases())
def test_products_have_the_gradients_of_torch(case: Case) -> None:
    convolved = {node.output for node in case.network.nodes if is_product(node, shapes_of(case))}
    assert convolved
    assert convolved <= channel_major_values(case.network, shapes_of(case))
    check_with_torch(case)


@pytest.mark.torch
@settings(max_examples=2 * EXAMPLES)
@given(case=pooled_cases())
def test_pooled_convolution_has_the_gradients_of_torch(case: Case) -> None:
    assume(pooled_values(case.network, shapes_of(case)))  # of one channel at few positions it is a product
    check_with_torch(case)


@settings(max_examples=2 * EXAMPLES)
@given(case=pooled_cases())
def test_first_of_equal_windows_has_the_gradient(case: Case) -> None:
    """Black and white images: most windows of a pool see the same, as in the background of a digit."""
    rng = np.random.default_rng(case.size)
    drawn = batch_for(case)
    batch = Batch((rng.random(drawn.x.shape) < 0.1).astype(np.float32), drawn.y, drawn.weight)
    artifact = build_artifact("drawn", case.network, batch=case.size, scheme=Scheme.FP32)
    start = start_for(case.network)
    states = [backend.step(batch, 1.0, start, {})[0] for backend in (OnnxBackend(artifact), NumpyBackend(artifact))]
    for name, state in states[0].items():
        np.testing.assert_allclose(state, states[1][name], rtol=2e-5, atol=3e-6)


def loss_of(artifact: Artifact, batch: Batch, params: dict[str, Any], masks: dict[str, Any]) -> float:
    """The oracle's forward pass; float64 where the parameters are."""
    run, logits = NumpyBackend(artifact)._forward(batch.x.astype(np.float64), params, {}, masks)
    share = batch.weight / batch.weight.sum()
    return loss_and_slope(run.network.nodes[-1], logits, batch.y, share)[0]


def check_with_differences(case: Case) -> None:
    """dL along a random direction; float64 leaves room for steps that no kink comes between."""
    artifact = build_artifact("drawn", case.network, batch=case.size, scheme=Scheme.FP32)
    start, masks, batch = start_for(case.network), masks_for(artifact), batch_for(case)
    rng = np.random.default_rng(1)
    direction = {name: rng.normal(size=value.shape) for name, value in start.items()}
    step = 1e-6
    ends = [
        loss_of(artifact, batch, {name: value + sign * step * direction[name] for name, value in start.items()}, masks)
        for sign in (1, -1)
    ]
    after, loss = OnnxBackend(artifact).step(batch, 1.0, start, {}, masks)
    slope = sum(float(((start[name] - after[name]) * direction[name]).sum()) for name in start)
    assert loss == pytest.approx(sum(ends) / 2, rel=1e-5, abs=1e-6)
    assert slope == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=2e-4, abs=2e-4)


@pytest.mark.parametrize("op", UNDER_TEST, ids=lambda op: op.name.lower())
def test_operator_has_the_slope_of_finite_differences(op: Op) -> None:
    settings(max_examples=EXAMPLES)(given(case=cases(op))(check_with_differences))()


@pytest.mark.parametrize("loss", LOSSES, ids=lambda op: op.name.lower())
def test_loss_has_the_slope_of_finite_differences(loss: Op) -> None:
    settings(max_examples=EXAMPLES)(given(case=cases(Op.TANH, loss))(check_with_differences))()


@contextmanager
def distances_to_ties() -> Iterator[list[float]]:
    """What the oracle quantizes meanwhile: how near to a tie each array comes, in steps of its grid."""
    found: list[float] = []

    def recorded(values: Any) -> numpy_backend.Quantized:
        quantized = quantize_dynamic(values)
        steps = np.append(values, min(values.min(), 0.0)) / quantized.scale  # the zero point is rounded too
        found.append(float(np.abs(steps % 1 - 0.5).min()))
        return quantized

    quantize_dynamic = numpy_backend.quantize_dynamic
    with patch.object(numpy_backend, "quantize_dynamic", recorded):
        yield found


@settings(max_examples=2 * EXAMPLES)
@given(case=cases(Op.CONV) | product_cases())
def test_grouped_dilated_int8_step_is_the_oracle(case: Case) -> None:
    """One unit of the state, which is its own rounding, wherever both backends quantize to the same integers.

    They need not where a value lies at a tie: the float32 sums before it differ in their last bits, and one of 255
    integers more or less moves every gradient behind it, in 1,500 drawn networks by up to 169 units. None of the seven
    that were off by more than one unit was further from a tie than 2e-6 of a step; sums of the sizes drawn here differ
    by 255 steps times 2^-24 times a few terms.
    """
    artifact = build_artifact("drawn", case.network, batch=case.size, scheme=Scheme.INT8)
    params = genesis_params(case.network.tensors, seed=2)
    states = []
    with distances_to_ties() as distances:
        for backend in ("onnxruntime", "numpy"):
            trainer = Trainer(artifact, backend=backend)
            trainer.load(params)
            states.append(trainer._backend.step(batch_for(case), 0.05, trainer._states, trainer._scales)[0])
    assume(min(distances) > TIE)
    for name in states[0]:
        if states[0][name].dtype == np.int16:
            assert np.abs(states[0][name].astype(np.int32) - states[1][name]).max() <= 1


@settings(max_examples=EXAMPLES)
@given(case=cases(Op.ADD), data=st.data())
def test_frozen_tensors_stay_and_do_not_change_the_gradients_of_others(case: Case, data: st.DataObject) -> None:
    names = [spec.name for spec in case.network.tensors]
    frozen = data.draw(st.sets(st.sampled_from(names[:-1])))
    tensors = tuple(
        TensorSpec(
            name=s.name,
            shape=s.shape,
            role=s.role,
            channel_axis=s.channel_axis,
            exponent=s.exponent,
            is_trainable=s.name not in frozen,
        )
        for s in case.network.tensors
    )
    part = Network(input_shape=case.network.input_shape, class_count=OUTPUTS, tensors=tensors, nodes=case.network.nodes)
    start, batch = start_for(case.network), batch_for(case)
    whole = build_artifact("whole", case.network, batch=case.size, scheme=Scheme.FP32)
    artifact = build_artifact("part", part, batch=case.size, scheme=Scheme.FP32)
    assert Artifact.load(artifact.data).network == artifact.network
    assert len(artifact.train_onnx) < len(whole.train_onnx) or not frozen
    expected, loss = OnnxBackend(whole).step(batch, 0.5, start, {})
    for backend in (OnnxBackend(artifact), NumpyBackend(artifact)):
        after, found = backend.step(batch, 0.5, start, {})
        assert found == pytest.approx(loss, rel=1e-5)
        for name in names:
            np.testing.assert_allclose(after[name], start[name] if name in frozen else expected[name], atol=2e-6)
