"""The update of a training step: from the gradients of the trained tensors to their next states.

Equations in ``edge_sdk.training.update_rule``. A quantized weight moves in steps of its grid: with S the scale per
channel and N the states per step of the grid (Q8.8: 2**8; int8: 1),

    u  = momentum u + lr N (g / S)                      g / S: quantization-aware scaling
    Q  <- sat(round(Q - u))                             Q8.8: to nearest; int8: up with probability frac(Q - u)

Dividing by S makes SGD move in units of the grid (Lin et al. 2022, arXiv:2206.15472). u of a quantized weight is kept
as int16 in 2**-12 of a grid step and rounded towards zero: rounded to nearest, a velocity below 1 / (2 (1 - momentum))
units would never decay.

Without clipping, a tensor is updated as soon as its gradient is known; with it, when the norm over all is known.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from coordinator.authoring.graph import FLOAT, INT16
from edge_sdk.training.artifact import LEARNING_RATE, base_key, noise_names, scale_name, state_name, velocity_key
from edge_sdk.training.network import Scheme
from edge_sdk.training.quantize import STATES_PER_STEP
from edge_sdk.training.update_rule import VELOCITY_MAX, VELOCITY_MIN, VELOCITY_UNITS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from coordinator.authoring.step import Step

_Q88_MIN, _Q88_MAX = -32_768.0, 32_767.0


@dataclass(frozen=True, slots=True)
class Gradient:
    """dL/d(tensor) = product * scale; a scale of quantization stays apart, so that it costs nothing per element."""

    product: str
    scale: str = ""
    """A scalar; empty: 1."""


def write_updates(step: Step, tensors: Iterable[str]) -> None:
    """Write the update of tensors whose gradients are known: of all, where a clip norm is set."""
    names = tuple(tensors)
    factor = _clip_factor(step, names) if step.rule.clip_norm else ""
    for name in names:
        if step.is_quantized(name):
            _move_quantized(step, name, factor)
        else:
            _move_float(step, name, factor)


def _clip_factor(step: Step, tensors: tuple[str, ...]) -> str:
    """min(1, C / ||g||), written as C / max(||g||, C), which no zero divides."""
    writer = step.writer
    squares = [_square_norm(step, name) for name in tensors]
    norm = writer.add("Sqrt", writer.add("Sum", *squares) if len(squares) > 1 else squares[0])
    bound = writer.scalar(step.rule.clip_norm)
    return writer.add("Div", bound, writer.add("Max", norm, bound))


def _square_norm(step: Step, name: str) -> str:
    """Square of the L2 norm of one tensor's gradient, in units of the parameters."""
    writer, gradient = step.writer, step.tensor_gradients[name]
    if not step.rule.prox:
        square = writer.add("ReduceSumSquare", gradient.product, keepdims=0)
        return writer.add("Mul", square, _square(step, gradient.scale)) if gradient.scale else square
    scaled = writer.add("Mul", gradient.product, gradient.scale) if gradient.scale else gradient.product
    mu = writer.scalar(step.rule.prox)
    if step.is_quantized(name):
        scale = _per_channel(step, name, writer.add("Mul", scale_name(name), writer.scalar(1.0 / _states(step))))
        mu = writer.add("Mul", mu, scale)
    return writer.add(
        "ReduceSumSquare", writer.add("Add", scaled, writer.add("Mul", _from_base(step, name), mu)), keepdims=0
    )


def _square(step: Step, value: str) -> str:
    return step.writer.add("Mul", value, value)


def _move_float(step: Step, name: str, factor: str) -> None:
    """Update p <- p - u in float32."""
    writer, rule = step.writer, step.rule
    gradient = step.tensor_gradients[name].product
    if rule.prox:
        gradient = writer.add("Add", gradient, writer.add("Mul", _from_base(step, name), writer.scalar(rule.prox)))
    rate = writer.add("Mul", LEARNING_RATE, factor) if factor else LEARNING_RATE
    move = writer.add("Mul", rate, gradient)
    if rule.momentum:
        key = velocity_key(name)
        move = writer.add("Add", writer.add("Mul", state_name(key), writer.scalar(rule.momentum)), move)
        step.next_states[key] = move
    step.next_states[name] = writer.add("Sub", state_name(name), move)


def _move_quantized(step: Step, name: str, factor: str) -> None:
    """Update Q <- sat(round(Q - u)), u in states or, while it is kept, in ``VELOCITY_UNITS`` of a grid step."""
    writer, rule, gradient = step.writer, step.rule, step.tensor_gradients[name]
    units = VELOCITY_UNITS if rule.momentum else _states(step)
    rate = writer.add("Mul", LEARNING_RATE, factor) if factor else LEARNING_RATE
    unit_rate = writer.add("Mul", rate, writer.scalar(units))
    if gradient.scale:
        unit_rate = writer.add("Mul", unit_rate, gradient.scale)
    move = writer.add("Mul", gradient.product, _per_channel(step, name, writer.add("Div", unit_rate, scale_name(name))))
    if rule.prox:
        pull = writer.add("Mul", rate, writer.scalar(rule.prox * units / _states(step)))
        move = writer.add("Add", move, writer.add("Mul", _from_base(step, name), pull))
    if rule.momentum:
        key = velocity_key(name)
        kept = writer.add("Mul", writer.cast(state_name(key), FLOAT), writer.scalar(rule.momentum))
        total = writer.add("Add", kept, move)
        bounded = writer.add("Clip", total, writer.scalar(VELOCITY_MIN), writer.scalar(VELOCITY_MAX))
        step.next_states[key] = writer.cast(bounded, INT16)  # a cast rounds towards zero
        whole = writer.cast(step.next_states[key], FLOAT)
        move = writer.add("Mul", whole, writer.scalar(_states(step) / VELOCITY_UNITS))
    moved = writer.add("Sub", writer.cast(state_name(name), FLOAT), move)
    step.next_states[name] = _rounded(step, name, moved)


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


def _from_base(step: Step, name: str) -> str:
    """State less the state at the start of the job, float32."""
    now, base = state_name(name), state_name(base_key(name))
    if step.is_quantized(name):
        now, base = step.writer.cast(now, FLOAT), step.writer.cast(base, FLOAT)
    return step.writer.add("Sub", now, base)


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
