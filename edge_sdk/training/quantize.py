"""Per-channel scales and the two views of a global model: exact integers, and the float32 that training starts from.

A global tensor is int32 q with value q * 2**exponent. A weight channel c also has a scale S_c = m_c * 2**-k_c with
128 <= m_c <= 255, chosen in integers only, so that every miner computes the same bytes. The device trains Q = value /
S * 2**8 as int16 (Q8.8), where the forward pass uses the rounded high byte as int8; or Q = value / S as int8, rounded
stochastically in each step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from edge_sdk.errors import QuantizationError
from edge_sdk.protocol.limits import MODEL_VALUE_MAX
from edge_sdk.protocol.messages import ModelParams, ModelTensor
from edge_sdk.training.network import Scheme

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    from edge_sdk.training.network import TensorSpec

STATES_PER_STEP: Final = {Scheme.INT8: 256, Scheme.INT8_SR: 1}
"""States of a weight per step of its int8 grid."""
STATE_LIMITS: Final[dict[Scheme, tuple[int, int, type[np.signedinteger[Any]]]]] = {
    Scheme.INT8: (-32_768, 32_767, np.int16),
    Scheme.INT8_SR: (-128, 127, np.int8),
}
"""Smallest and largest state of a weight, and its type."""
WEIGHT_MAX: Final = 127
"""Largest int8 weight; -128 is left out so that the grid is symmetric."""
HEADROOM: Final = (5, 4)
"""The grid reaches 5/4 of the largest weight of the channel, so that training can enlarge it before Q8.8 saturates."""
CHANNEL_FLOOR_SHIFT: Final = 4
"""A channel's range is at least 1/16 of the tensor's, so that a channel of zeros can still learn."""
RANGE_EXPONENT_MIN: Final = -6
"""A tensor's range is at least 2**-6, also when all of it is zero."""
_MANTISSA_BITS: Final = 8
_MANTISSA_MIN: Final = 128
_MANTISSA_MAX: Final = 255


def channel_scales(
    values: npt.NDArray[np.int32], exponent: int, axis: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Choose S = m * 2**-k per channel, the smallest on this grid whose 127 steps cover the channel with headroom.

    Args:
        values: Integers of a tensor, |q| <= 2**30, any shape.
        exponent: value = q * 2**exponent.
        axis: Channel axis.

    Returns:
        m and k, uint8, one per channel; 128 <= m <= 255.

    Raises:
        QuantizationError: a channel needs S >= 2**8, so that k would be negative.

    Integers only: the same bytes on every machine.
    """
    others = tuple(a for a in range(values.ndim) if a != axis)
    # Two passes over the values as they are: a widened copy would cost more than the rest of a merge.
    magnitudes = np.maximum(values.max(axis=others), -values.min(axis=others))
    floor = max(int(magnitudes.max()) >> CHANNEL_FLOOR_SHIFT, 1 << max(0, RANGE_EXPONENT_MIN - exponent))
    pairs = [_scale(max(int(magnitude), floor), exponent) for magnitude in magnitudes]
    return np.array([m for m, _ in pairs], np.uint8), np.array([k for _, k in pairs], np.uint8)


def _scale(magnitude: int, exponent: int) -> tuple[int, int]:
    """Smallest m * 2**-k >= magnitude * 2**exponent * headroom / 127 with 128 <= m <= 255."""
    numerator, denominator = magnitude * HEADROOM[0], WEIGHT_MAX * HEADROOM[1]

    def mantissa(k: int) -> int:
        """ceil(numerator * 2**(exponent + k) / denominator)."""
        shift = exponent + k
        top, bottom = (numerator << shift, denominator) if shift >= 0 else (numerator, denominator << -shift)
        return -(-top // bottom)

    k = (
        _MANTISSA_BITS - (numerator.bit_length() - denominator.bit_length()) - exponent
    )  # within one or two of the answer
    while mantissa(k) > _MANTISSA_MAX:
        k -= 1
    while mantissa(k + 1) <= _MANTISSA_MAX:
        k += 1
    m = mantissa(k)  # >= 128: at k + 1 it would be 256 or more
    if not 0 <= k <= WEIGHT_MAX:
        raise QuantizationError(f"a channel of magnitude {magnitude} * 2**{exponent} needs a scale outside of the grid")
    return m, k


def scale_values(scale_m: bytes, scale_k: bytes) -> npt.NDArray[np.float32]:
    """S = m * 2**-k as float32: exact, since m has 8 bits."""
    m, k = np.frombuffer(scale_m, np.uint8), np.frombuffer(scale_k, np.uint8)
    return np.ldexp(m.astype(np.float32), -k.astype(np.int32))


def align(scales: npt.NDArray[np.float32], spec: TensorSpec) -> npt.NDArray[np.float32]:
    """Reshape one value per channel so that it broadcasts over a tensor."""
    shape = [1] * len(spec.shape)
    shape[spec.channel_axis] = -1
    return scales.reshape(shape)


def initial_state(
    value: npt.NDArray[np.float32], scales: npt.NDArray[np.float32], spec: TensorSpec, scheme: Scheme
) -> npt.NDArray[Any]:
    """The state nearest to a weight's value."""
    low, high, kind = STATE_LIMITS[scheme]
    states = np.rint(value * np.float32(STATES_PER_STEP[scheme]) / align(scales, spec))
    bounded: npt.NDArray[Any] = np.clip(states, low, high).astype(kind)
    return bounded


def integers(tensor: ModelTensor) -> npt.NDArray[np.int32]:
    """Integers of one tensor of the global model: a read-only view of its bytes in native order."""
    return np.frombuffer(tensor.values, "<i4").astype(np.int32, copy=False).reshape(tensor.shape)


def dequantize(params: ModelParams) -> dict[str, npt.NDArray[np.float32]]:
    """The global model as float32 arrays, by tensor name; rounded where q needs more than 24 bits."""
    return {t.name: np.ldexp(integers(t).astype(np.float32), t.exponent) for t in params.tensors}


def int8_model(
    params: ModelParams,
) -> tuple[dict[str, npt.NDArray[Any]], dict[str, npt.NDArray[np.float32]]]:
    """The model as a board infers with it: weights as int8 and their scales per channel; the rest as float32."""
    states: dict[str, npt.NDArray[Any]] = dict(dequantize(params))
    scales: dict[str, npt.NDArray[np.float32]] = {}
    for tensor in params.tensors:
        if tensor.channel_axis < 0:
            continue
        per_channel = scales[tensor.name] = scale_values(tensor.scale_m, tensor.scale_k)
        shape = [1] * len(tensor.shape)
        shape[tensor.channel_axis] = -1
        steps = np.rint(states[tensor.name] / per_channel.reshape(shape))
        states[tensor.name] = np.clip(steps, -WEIGHT_MAX - 1, WEIGHT_MAX).astype(np.int8)
    return states, scales


def round_to_int8(params: ModelParams) -> dict[str, npt.NDArray[np.float32]]:
    """The model as an int8 board runs it: weights rounded to their per-channel grid, biases as they are."""
    states, scales = int8_model(params)
    for tensor in params.tensors:
        if tensor.name in scales:
            shape = [1] * len(tensor.shape)
            shape[tensor.channel_axis] = -1
            states[tensor.name] = states[tensor.name].astype(np.float32) * scales[tensor.name].reshape(shape)
    return states


def to_params(specs: tuple[TensorSpec, ...], arrays: Mapping[str, npt.NDArray[Any]]) -> ModelParams:
    """The model whose integers are nearest to the arrays."""
    return ModelParams(tensors=tuple(to_tensor(spec, arrays[spec.name]) for spec in specs))


def to_tensor(spec: TensorSpec, floats: npt.NDArray[Any]) -> ModelTensor:
    """One tensor of a model; weights get scales per channel."""
    values = np.rint(np.ldexp(floats.astype(np.float64), -spec.exponent)).astype(np.int32)
    scale_m = scale_k = b""
    if spec.channel_axis >= 0:
        m, k = channel_scales(values, spec.exponent, spec.channel_axis)
        scale_m, scale_k = m.tobytes(), k.tobytes()
    return ModelTensor(
        name=spec.name,
        shape=spec.shape,
        exponent=spec.exponent,
        channel_axis=spec.channel_axis,
        values=values.astype("<i4").tobytes(),
        scale_m=scale_m,
        scale_k=scale_k,
    )


def check_params(params: ModelParams, specs: tuple[TensorSpec, ...]) -> None:
    """Check a global model against an artifact's tensor table: names in order, shapes, exponents, lengths and ranges.

    Raises:
        QuantizationError: it does not; the text names the tensor.
    """
    if tuple(t.name for t in params.tensors) != tuple(s.name for s in specs):
        raise QuantizationError("the model's tensors are not those of the artifact, in its order")
    for tensor, spec in zip(params.tensors, specs, strict=True):
        if (tensor.shape, tensor.exponent, tensor.channel_axis) != (spec.shape, spec.exponent, spec.channel_axis):
            raise QuantizationError(f"tensor {spec.name}: shape, exponent or channel axis differs from the artifact's")
        channels = spec.shape[spec.channel_axis] if spec.channel_axis >= 0 else 0
        if len(tensor.values) != 4 * spec.size or len(tensor.scale_m) != channels or len(tensor.scale_k) != channels:
            raise QuantizationError(
                f"tensor {spec.name}: {len(tensor.values)} bytes of values, {channels} channels: lengths do not fit"
            )
        values = integers(tensor)
        if values.size and (int(values.max()) > MODEL_VALUE_MAX or int(values.min()) < -MODEL_VALUE_MAX):
            raise QuantizationError(f"tensor {spec.name}: a value is beyond {MODEL_VALUE_MAX}")
        if channels and (min(tensor.scale_m) < _MANTISSA_MIN or max(tensor.scale_k) > WEIGHT_MAX):
            raise QuantizationError(f"tensor {spec.name}: a scale is outside of its grid")
