"""Recipes of the networks that ship: shapes, not parameters.

- mlp: in-128-64-classes.
- lenet: conv 6, pool, conv 16, pool, 120-84-classes with 5x5 kernels from a side of 20 up (LeCun et al. 1998: 61,706
  parameters at 28x28); below, 3x3 kernels and 64-classes.
- cnn1d: conv 16, pool 4, conv 32, pool 8 over time, 64-classes; for windows of sensor channels. Wide pooling makes it
  insensitive to where in the window a movement starts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import numpy as np

from coordinator.authoring.builder import build_artifact
from coordinator.authoring.parameters import EXPONENT, to_tensor
from edge_sdk.errors import ConfigError
from edge_sdk.protocol.messages import ModelParams, ModelTensor
from edge_sdk.training.artifact import Artifact
from edge_sdk.training.network import INPUT, Network, Node, Op, Role, Scheme, TensorSpec

_LENET_SIDE_MIN: Final = 20
_LENET_SIDE_UNPADDED: Final = 32
_IMAGE_RANK, _SERIES_RANK = 3, 2
_SERIES_STEPS_MIN: Final = 64
"""Kernels of 7 and poolings of 4 and 8 leave one step of 62."""


class _Layers:
    """Appends layers and keeps the running shape (channel first, no batch axis)."""

    def __init__(self, input_shape: tuple[int, ...]) -> None:
        self.shape = input_shape
        self.nodes: list[Node] = []
        self.tensors: list[TensorSpec] = []
        self._value = INPUT

    def conv(self, channels: int, size: int, *, padding: int = 0) -> None:
        axes = len(self.shape) - 1
        kernel, ones, pads = (size,) * axes, (1,) * axes, (padding,) * axes
        weight = self._tensors("conv", (channels, self.shape[0], *kernel), channel_axis=0)
        self._node(Op.CONV, *weight, kernel=kernel, stride=ones, padding=pads)
        self.shape = (channels, *(side + 2 * padding - size + 1 for side in self.shape[1:]))

    def pool(self, size: int) -> None:
        axes = len(self.shape) - 1
        self._node(Op.MAX_POOL, kernel=(size,) * axes, stride=(size,) * axes, padding=(0,) * axes)
        self.shape = (self.shape[0], *(side // size for side in self.shape[1:]))

    def relu(self) -> None:
        self._node(Op.RELU)

    def flatten(self) -> None:
        if len(self.shape) > 1:
            self._node(Op.FLATTEN)
            self.shape = (math.prod(self.shape),)

    def dense(self, width: int) -> None:
        self._node(Op.GEMM, *self._tensors("dense", (self.shape[0], width), channel_axis=1))
        self.shape = (width,)

    def classifier(self, hidden: tuple[int, ...], class_count: int) -> None:
        self.flatten()
        for width in hidden:
            self.dense(width)
            self.relu()
        self.dense(class_count)
        self._node(Op.SOFTMAX_CROSS_ENTROPY)

    def _node(
        self,
        op: Op,
        *parameters: str,
        kernel: tuple[int, ...] = (),
        stride: tuple[int, ...] = (),
        padding: tuple[int, ...] = (),
    ) -> None:
        output = f"h{len(self.nodes)}"
        inputs = (self._value, *parameters)
        self.nodes.append(Node(op=op, inputs=inputs, output=output, kernel=kernel, stride=stride, padding=padding))
        self._value = output

    def _tensors(self, kind: str, shape: tuple[int, ...], *, channel_axis: int) -> tuple[str, str]:
        index = len(self.tensors) // 2
        weight, bias = f"{kind}{index}_weight", f"{kind}{index}_bias"
        channels = (shape[channel_axis],)
        self.tensors += [
            TensorSpec(name=weight, shape=shape, role=Role.WEIGHT, channel_axis=channel_axis, exponent=EXPONENT),
            TensorSpec(name=bias, shape=channels, role=Role.BIAS, channel_axis=-1, exponent=EXPONENT),
        ]
        return weight, bias


def _mlp(layers: _Layers, class_count: int) -> None:
    layers.classifier((128, 64), class_count)


def _lenet(layers: _Layers, class_count: int) -> None:
    if len(layers.shape) != _IMAGE_RANK or min(layers.shape[1:]) < 8:  # two halvings leave 2x2
        raise ConfigError(
            f"model lenet for examples of shape {layers.shape}: "
            "expected images (channels, height, width) of 8x8 or more"
        )
    side = min(layers.shape[1:])
    hidden: tuple[int, ...]
    if side >= _LENET_SIDE_MIN:
        kernel, hidden = 5, (120, 84)
        paddings = (2 if side < _LENET_SIDE_UNPADDED else 0, 0)
    else:
        kernel, hidden = 3, (64,)
        paddings = (1, 1)
    for channels, padding in zip((6, 16), paddings, strict=True):
        layers.conv(channels, kernel, padding=padding)
        layers.pool(2)  # before ReLU: the same result on a quarter of the values
        layers.relu()
    layers.classifier(hidden, class_count)


def _cnn1d(layers: _Layers, class_count: int) -> None:
    if len(layers.shape) != _SERIES_RANK or layers.shape[1] < _SERIES_STEPS_MIN:
        raise ConfigError(
            f"model cnn1d for examples of shape {layers.shape}: "
            f"expected series (channels, time) of {_SERIES_STEPS_MIN} steps or more"
        )
    for channels, pool in ((16, 4), (32, 8)):
        layers.conv(channels, 7)
        layers.pool(pool)
        layers.relu()
    layers.classifier((64,), class_count)


_RECIPES: Final[dict[str, Callable[[_Layers, int], None]]] = {"mlp": _mlp, "lenet": _lenet, "cnn1d": _cnn1d}
MODELS: Final = tuple(_RECIPES)


def network(model: str, input_shape: tuple[int, ...], class_count: int) -> Network:
    """The forward network of a recipe.

    Raises:
        ConfigError: unknown recipe, or one that does not take this input shape.
    """
    if model not in _RECIPES:
        raise ConfigError(f"model {model!r}: expected one of {', '.join(MODELS)}")
    layers = _Layers(input_shape)
    _RECIPES[model](layers, class_count)
    return Network(
        input_shape=input_shape, class_count=class_count, tensors=tuple(layers.tensors), nodes=tuple(layers.nodes)
    )


def genesis_params(tensors: tuple[TensorSpec, ...], *, seed: int) -> ModelParams:
    """Version 0: weights from N(0, 2 / fan-in) (He et al. 2015, arXiv:1502.01852), biases zero, as integers."""
    rng = np.random.default_rng(seed)
    return ModelParams(tensors=tuple(_genesis_tensor(spec, rng) for spec in tensors))


def _genesis_tensor(spec: TensorSpec, rng: np.random.Generator) -> ModelTensor:
    if spec.role is Role.BIAS:
        return to_tensor(spec, np.zeros(spec.shape))
    fan_in = spec.size // spec.shape[spec.channel_axis]
    return to_tensor(spec, rng.normal(0.0, math.sqrt(2.0 / fan_in), spec.shape))


def build(
    model: str,
    input_shape: tuple[int, ...],
    class_count: int,
    *,
    batch: int,
    scheme: Scheme = Scheme.INT8,
    seed: int,
) -> tuple[Artifact, ModelParams]:
    """Artifact and genesis parameters of a recipe; the same seed gives the same bytes.

    Raises:
        ConfigError: unknown recipe, or one that does not take this input shape.
    """
    forward = network(model, input_shape, class_count)
    artifact = build_artifact(model, forward, batch=batch, scheme=scheme)
    return artifact, genesis_params(forward.tensors, seed=seed)
