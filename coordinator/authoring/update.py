"""The update of a training step: from the gradients of the trained tensors to their next states.

Equations in ``edge_sdk.training.update_rule``. A quantized weight moves in steps of its grid: with S the scale per
channel and N the states per step of the grid (Q8.8: 2**8; int8: 1),

    u  = momentum u + lr N (g / S)                      g / S: quantization-aware scaling
    Q  <- sat(round(Q - u))                             Q8.8: to nearest; int8: up with probability frac(Q - u)

Dividing by S makes SGD move in units of the grid (Lin et al. 2022, arXiv:2206.15472). u of a quantized weight is kept
as int16 in 2**-12 of a grid step and rounded towards zero: rounded to nearest, a velocity below 1 / (2 (1 - momentum))
units would never decay.

What reaches this module is lr g: the loss has multiplied. The gradient of a linear layer comes as its two factors, so
that product and difference are one Gemm, and a scale per channel costs a multiplication per example instead of one per
weight. A tensor is updated as soon as its gradient is known, or with clipping when the norm over all is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from coordinator.authoring.graph import FLOAT, INT16
from edge_sdk.training.artifact import LEARNING_RATE, base_key, noise_names, scale_name, state_name, velocity_key
from edge_sdk.training.network import INPUT, Scheme
from edge_sdk.training.quantize import STATES_PER_STEP
from edge_sdk.training.update_rule import VELOCITY_MAX, VELOCITY_MIN, VELOCITY_UNITS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from coordinator.authoring.step import Step

_Q88_MIN, _Q88_MAX = -32_768.0, 32_767.0


@dataclass(frozen=True, slots=True)
class Product:
    """lr dL/d(tensor) as one value."""

    value: str


@dataclass(frozen=True, slots=True)
class OuterProduct:
    """lr dL/d(tensor) = factor left^T right, not yet multiplied: (batch, in) and (batch, out)."""

    left: str
    right: str
    factor: float = 1.0


@dataclass(frozen=True, slots=True)
class ColumnSums:
    """lr dL/d(tensor) = sum over the examples of (batch, out), not yet summed."""

    value: str


Gradient = Product | OuterProduct | ColumnSums


def write_updates(step: Step, tensors: Iterable[str]) -> None:
    """Write the update of tensors whose gradients are known: of all, where a clip norm is set."""
    names = tuple(tensors)
    if step.rule.prox:
        for name in names:
            _add_pull(step, name)
    if step.rule.clip_norm:
        _clip(step, names)
    for name in names:
        if step.is_quantized(name):
            _move_quantized(step, name)
        else:
            _move_float(step, name)


def _add_pull(step: Step, name: str) -> None:
    """Add lr prox (p - base) to a gradient."""
    writer = step.writer
    now, base = state_name(name), state_name(base_key(name))
    factor = writer.add("Mul", LEARNING_RATE, writer.scalar(step.rule.prox))
    if step.is_quantized(name):
        now, base = writer.cast(now, FLOAT), writer.cast(base, FLOAT)
        factor = writer.add("Mul", factor, writer.add("Mul", scale_name(name), writer.scalar(1.0 / _states(step))))
        factor = _per_channel(step, name, factor)
    pull = writer.add("Mul", writer.add("Sub", now, base), factor)
    step.tensor_gradients[name] = Product(_sum(step, pull, step.tensor_gradients[name]))


def _clip(step: Step, names: tuple[str, ...]) -> None:
    """Multiply all gradients with min(1, C / ||g||), written as C lr / max(||lr g||, C lr), which no zero divides."""
    writer = step.writer
    values = {name: _multiplied(step, step.tensor_gradients[name]) for name in names}
    squares = [writer.add("ReduceSumSquare", value, keepdims=0) for value in values.values()]
    norm = writer.add("Sqrt", writer.add("Sum", *squares) if len(squares) > 1 else squares[0])
    bound = writer.add("Mul", LEARNING_RATE, writer.scalar(step.rule.clip_norm))
    factor = writer.add("Div", bound, writer.add("Max", norm, bound))
    for name, value in values.items():
        step.tensor_gradients[name] = Product(writer.add("Mul", value, factor))


def _multiplied(step: Step, gradient: Gradient) -> str:
    match gradient:
        case Product(value):
            return value
        case OuterProduct(left, right, factor):
            return step.writer.add("Gemm", left, right, transA=1, alpha=factor)
        case ColumnSums(value):
            return step.writer.add("ReduceSum", value, step.writer.shape(0), keepdims=0)


def _move_float(step: Step, name: str) -> None:
    """Update p <- p - u in float32."""
    writer, gradient, state = step.writer, step.tensor_gradients[name], state_name(name)
    if step.rule.momentum:
        key = velocity_key(name)
        kept = writer.add("Mul", state_name(key), writer.scalar(step.rule.momentum))
        step.next_states[key] = _sum(step, kept, gradient)
        step.next_states[name] = writer.add("Sub", state, step.next_states[key])
    else:
        step.next_states[name] = _difference(step, state, gradient)


def _move_quantized(step: Step, name: str) -> None:
    """Update Q <- sat(round(Q - u)), u in states or, while it is kept, in ``VELOCITY_UNITS`` of a grid step."""
    writer = step.writer
    state = writer.cast(state_name(name), FLOAT)
    if not step.rule.momentum:
        moved = _difference(step, state, _on_grid(step, name, _states(step)))
        step.next_states[name] = _rounded(step, name, moved)
        return
    key = velocity_key(name)
    kept = writer.add("Mul", writer.cast(state_name(key), FLOAT), writer.scalar(step.rule.momentum))
    total = _sum(step, kept, _on_grid(step, name, VELOCITY_UNITS))
    bounded = writer.add("Clip", total, writer.scalar(VELOCITY_MIN), writer.scalar(VELOCITY_MAX))
    step.next_states[key] = writer.cast(bounded, INT16)  # a cast rounds towards zero
    whole = writer.cast(step.next_states[key], FLOAT)
    move = writer.add("Mul", whole, writer.scalar(_states(step) / VELOCITY_UNITS))
    step.next_states[name] = _rounded(step, name, writer.add("Sub", state, move))


def _on_grid(step: Step, name: str, units: float) -> Gradient:
    """A gradient in ``units`` of a step of the grid: times units / S."""
    writer, scale, gradient = step.writer, scale_name(name), step.tensor_gradients[name]
    if isinstance(gradient, OuterProduct):
        return replace(gradient, right=writer.add("Div", gradient.right, scale), factor=units * gradient.factor)
    factor = _per_channel(step, name, writer.add("Div", writer.scalar(units), scale))
    return Product(writer.add("Mul", _multiplied(step, gradient), factor))


def _difference(step: Step, value: str, gradient: Gradient) -> str:
    match gradient:
        case Product(product):
            return step.writer.add("Sub", value, product)
        case OuterProduct(left, right, factor):
            return step.writer.add("Gemm", left, right, value, transA=1, alpha=-factor)
        case ColumnSums(rows):  # as a product with ones, one node that computes instead of two
            writer = step.writer
            ones = writer.constant(np.ones((1, step.shapes[INPUT][0]), np.float32))
            return writer.add("Reshape", writer.add("Gemm", ones, rows, value, alpha=-1.0), writer.shape(-1))


def _sum(step: Step, value: str, gradient: Gradient) -> str:
    match gradient:
        case Product(product):
            return step.writer.add("Add", value, product)
        case OuterProduct(left, right, factor):
            return step.writer.add("Gemm", left, right, value, transA=1, alpha=factor)
        case ColumnSums():
            return step.writer.add("Add", value, _multiplied(step, gradient))


def _rounded(step: Step, name: str, moved: str) -> str:
    """To the type of the state, saturated."""
    writer = step.writer
    if step.scheme is Scheme.INT8:
        bounded = writer.add("Clip", writer.add("Round", moved), writer.scalar(_Q88_MIN), writer.scalar(_Q88_MAX))
        return writer.cast(bounded, INT16)
    # a + b less its nearest integer is uniform in -1/2..1/2; QuantizeLinear rounds the sum to nearest and saturates.
    noise = writer.add("Add", *noise_names(name))
    shifted = writer.add("Add", moved, writer.add("Sub", noise, writer.add("Round", noise)))
    return writer.add("QuantizeLinear", shifted, writer.scalar(1.0), writer.constant(np.array(0, np.int8)))


def _states(step: Step) -> int:
    """N."""
    return STATES_PER_STEP[step.scheme]


def _per_channel(step: Step, name: str, vector: str) -> str:
    """One value per channel, shaped to broadcast over the tensor."""
    spec = step.spec(name)
    trailing = len(spec.shape) - 1 - spec.channel_axis
    return (
        step.writer.add("Reshape", vector, step.writer.shape(-1, *(1 for _ in range(trailing)))) if trailing else vector
    )
