"""The networks that ship, by name: shapes, not parameters. What each is made of stands in ``recipes``."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from coordinator.authoring.builder import build_artifact
from coordinator.authoring.import_onnx import Imported
from coordinator.authoring.output_layer import train_output_only
from coordinator.authoring.recipes.classifiers import cnn1d, dscnn, lenet, mlp
from coordinator.authoring.recipes.layers import Layers, fan_in
from coordinator.authoring.recipes.mobilenet import mobilenetv2
from coordinator.authoring.recipes.regressors import autoencoder, regressor
from edge_sdk.errors import ConfigError
from edge_sdk.protocol.messages import ModelParams, ModelTensor
from edge_sdk.training.artifact import Artifact
from edge_sdk.training.network import Network, Op, Role, Scheme, TensorSpec
from edge_sdk.training.quantize import dequantize, to_tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How a network is stacked, and the examples it is named for."""

    stack: Callable[[Layers, int], None]
    input_shape: tuple[int, ...]
    outputs: int
    """Classes, or the outputs of a network that is no classifier."""
    is_classifier: bool = True


RECIPES: Final[dict[str, Recipe]] = {
    "mlp": Recipe(stack=mlp, input_shape=(784,), outputs=10),
    "lenet": Recipe(stack=lenet, input_shape=(1, 28, 28), outputs=10),
    "cnn1d": Recipe(stack=cnn1d, input_shape=(6, 128), outputs=6),
    "dscnn": Recipe(stack=dscnn, input_shape=(1, 49, 10), outputs=12),
    "mobilenetv2": Recipe(stack=mobilenetv2, input_shape=(3, 96, 96), outputs=10),
    "autoencoder": Recipe(stack=autoencoder, input_shape=(8, 16), outputs=128, is_classifier=False),
    "regressor": Recipe(stack=regressor, input_shape=(16,), outputs=1, is_classifier=False),
}
MODELS: Final = tuple(RECIPES)
CLASSIFIERS: Final = tuple(name for name, recipe in RECIPES.items() if recipe.is_classifier)
_RESIDUAL_GAIN: Final = 0.25
"""Variance of a branch that is added to its own input, so that a chain of them neither grows nor dies."""


def network(model: str, input_shape: tuple[int, ...], class_count: int) -> Network:
    """The forward network of a recipe.

    Raises:
        ConfigError: unknown recipe, or one that does not take this input shape.
    """
    if model not in RECIPES:
        raise ConfigError(f"model {model!r}: expected one of {', '.join(MODELS)}")
    layers = Layers(input_shape)
    RECIPES[model].stack(layers, class_count)
    return layers.network(class_count)


def genesis_params(tensors: tuple[TensorSpec, ...], *, seed: int, gains: dict[str, float] | None = None) -> ModelParams:
    """Version 0: weights from N(0, gain / fan-in), biases zero, as integers.

    Args:
        tensors: The tensor table.
        seed: Of the draw.
        gains: By weight, where it is not 2, the gain of a layer behind a rectifier (He et al. 2015, arXiv:1502.01852).
    """
    rng = np.random.default_rng(seed)
    chosen = gains or {}
    return ModelParams(tensors=tuple(_genesis_tensor(spec, rng, chosen.get(spec.name, 2.0)) for spec in tensors))


def genesis_gains(forward: Network) -> dict[str, float]:
    """Gains of the weights that no rectifier feeds, and of those that end a residual branch."""
    makers = {node.output: node for node in forward.nodes}
    added = {value for node in forward.nodes if node.op is Op.ADD for value in node.values}
    gains: dict[str, float] = {}
    for node in forward.nodes:
        if node.op not in {Op.CONV, Op.GEMM}:
            continue
        before = makers.get(node.values[0])
        if before is not None and before.op in {Op.CONV, Op.ADD}:
            gains[node.tensors[0]] = 1.0
        elif node.output in added:
            gains[node.tensors[0]] = _RESIDUAL_GAIN
    return gains


def imported(model: str, *, input_shape: tuple[int, ...] | None, class_count: int | None, seed: int) -> Imported:
    """A recipe in the form of an imported model; shapes that are not given are those it is named for.

    Raises:
        ConfigError: unknown recipe, or one that does not take this input shape.
    """
    if model not in RECIPES:
        raise ConfigError(f"model {model!r}: expected one of {', '.join(MODELS)}")
    recipe = RECIPES[model]
    forward = network(model, input_shape or recipe.input_shape, class_count or recipe.outputs)
    params = genesis_params(forward.tensors, seed=seed, gains=genesis_gains(forward))
    return Imported(
        network=forward,
        arrays=dequantize(params),
        layers=tuple(node.tensors for node in forward.nodes if node.op in {Op.GEMM, Op.CONV}),
        fixed=frozenset(),
        notes=(f"{model}: random weights, seed {seed}",),
    )


def _genesis_tensor(spec: TensorSpec, rng: np.random.Generator, gain: float) -> ModelTensor:
    if spec.role is Role.BIAS:
        return to_tensor(spec, np.zeros(spec.shape))
    return to_tensor(spec, rng.normal(0.0, math.sqrt(gain / fan_in(spec)), spec.shape))


def build(
    model: str,
    input_shape: tuple[int, ...],
    class_count: int,
    *,
    batch: int,
    scheme: Scheme = Scheme.INT8,
    seed: int,
    is_output_only: bool = False,
) -> tuple[Artifact, ModelParams]:
    """Artifact and genesis parameters of a recipe; the same seed gives the same bytes.

    ``is_output_only`` freezes every layer but the last.

    Raises:
        ConfigError: unknown recipe, or one that does not take this input shape.
    """
    forward = network(model, input_shape, class_count)
    if is_output_only:
        forward = train_output_only(forward)
    artifact = build_artifact(model, forward, batch=batch, scheme=scheme)
    return artifact, genesis_params(forward.tensors, seed=seed, gains=genesis_gains(forward))
