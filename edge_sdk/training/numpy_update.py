"""The update of a training step in numpy, from the equations of ``update_rule`` and of this package's README."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from edge_sdk.training.artifact import base_key, noise_names, velocity_key
from edge_sdk.training.quantize import STATE_LIMITS, STATES_PER_STEP, align
from edge_sdk.training.update_rule import VELOCITY_MAX, VELOCITY_MIN, VELOCITY_UNITS

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    from edge_sdk.training.artifact import Artifact
    from edge_sdk.training.network import TensorSpec

    F32 = npt.NDArray[np.float32]

_ONE = np.float32(1)


def updated_states(
    artifact: Artifact,
    gradients: Mapping[str, F32],
    lr: float,
    states: Mapping[str, npt.NDArray[Any]],
    scales: Mapping[str, F32],
    noise: Mapping[str, F32],
) -> dict[str, npt.NDArray[Any]]:
    """All states after the step.

    Args:
        artifact: Tensor table, scheme and update rule.
        gradients: dL/d(parameter) of each trained tensor.
        lr: Learning rate.
        states: As ``Backend.step`` takes them.
        scales: Of the quantized weights.
        noise: Of stochastic rounding.
    """
    rule, specs = artifact.rule, [spec for spec in artifact.network.tensors if spec.is_trainable]
    grids = {spec.name: _grid(artifact, spec, scales) for spec in specs}
    total = dict(gradients)
    if rule.prox:
        for name, value in gradients.items():
            moved = states[name].astype(np.float32) - states[base_key(name)].astype(np.float32)
            total[name] = value + moved * (grids[name] * np.float32(rule.prox))
    rate = np.float32(lr)
    if rule.clip_norm:
        norm = np.sqrt(sum(float(np.square(value, dtype=np.float64).sum()) for value in total.values()))
        rate *= np.float32(rule.clip_norm / max(norm, rule.clip_norm))
    after = dict(states)
    for spec in specs:
        name = spec.name
        move = rate * total[name] / grids[name]
        if rule.momentum:
            key = velocity_key(name)
            after[key], move = _velocity(artifact, spec, states[key], move)
        moved = states[name].astype(np.float32) - move
        after[name] = _rounded(artifact, spec, moved, noise) if artifact.is_quantized(spec) else moved
    return after


def _grid(artifact: Artifact, spec: TensorSpec, scales: Mapping[str, F32]) -> Any:
    """What one unit of the state is worth: S per channel / states per step; 1 for a float32 state."""
    if not artifact.is_quantized(spec):
        return _ONE
    return align(scales[spec.name], spec) / np.float32(STATES_PER_STEP[artifact.scheme])


def _velocity(
    artifact: Artifact, spec: TensorSpec, velocity: npt.NDArray[Any], move: F32
) -> tuple[npt.NDArray[Any], F32]:
    """The velocity after the step, as it is kept and in units of the state."""
    momentum = np.float32(artifact.rule.momentum)
    if not artifact.is_quantized(spec):
        total = momentum * velocity + move
        return total, total
    unit = np.float32(STATES_PER_STEP[artifact.scheme] / VELOCITY_UNITS)
    total = np.clip(momentum * velocity.astype(np.float32) + move / unit, VELOCITY_MIN, VELOCITY_MAX)
    kept = np.trunc(total).astype(np.int16)
    return kept, kept.astype(np.float32) * unit


def _rounded(artifact: Artifact, spec: TensorSpec, moved: F32, noise: Mapping[str, F32]) -> npt.NDArray[Any]:
    """To the type of the state, saturated; an int8 state goes up with the probability of its fraction."""
    low, high, kind = STATE_LIMITS[artifact.scheme]
    if artifact.rounds_stochastically:
        rows, columns = (noise[name] for name in noise_names(spec.name))
        drawn = rows + columns
        moved = moved + (drawn - np.rint(drawn))
    return np.clip(np.rint(moved), low, high).astype(kind)
