"""The merge: an exact integer combination of updates, the same bytes on every machine and in every order.

For each parameter, with the update's value aligned to the model's exponent,

    a  = sum_i weight_i * delta_i
    q' = q + floor((2 * eta * a + W) / (2 * W)),   eta = server_rate_q16 / 2**16

that is q + eta * a / W rounded to nearest, halves up. One rounding, no floats, no intermediate that depends on the
order of the updates. Bounds are checked in Python integers before an array is made: max|a| + W < 2**61.

An update is mergeable when the model with all of it stays within ``MODEL_VALUE_MAX``. The merge of such updates moves
to a convex combination of such models, so it stays within as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from edge_sdk.errors import AggregationError, DecodeError
from edge_sdk.protocol.limits import ACCUMULATOR_BITS, BLOCK_UPDATES_MAX, MODEL_VALUE_MAX, WEIGHT_SHIFT
from edge_sdk.protocol.messages import Codec, ModelParams, ModelTensor, Reason, UpdatePayload
from edge_sdk.training.delta import check_payload
from edge_sdk.training.quantize import channel_scales, integers

if TYPE_CHECKING:
    import numpy.typing as npt

_TYPES: Final[dict[Codec, np.dtype[Any]]] = {Codec.INT8_DENSE: np.dtype("<i1"), Codec.INT16_DENSE: np.dtype("<i2")}
_BLOCK: Final = 32_768
"""Values summed at a time: accumulator and product stay in the second-level cache."""
_RATE_ONE: Final = 1 << WEIGHT_SHIFT
_TOTAL_WEIGHT_MAX: Final = BLOCK_UPDATES_MAX << WEIGHT_SHIFT
_STEP_MAX: Final = 4 * MODEL_VALUE_MAX
"""A mean of updates that fit the model moves no value further than twice its range."""


def check_update(params: ModelParams, payload: UpdatePayload, *, codec: Codec) -> None:
    """Check that an update can be merged into a model: form, exponents, and no value beyond ``MODEL_VALUE_MAX``.

    Raises:
        DecodeError: it cannot; ``reason`` is CODEC, SHAPE, EXPONENT or OUT_OF_BOUNDS.

    Cost: O(parameters), usually without a full-width copy.
    """
    if payload.codec is not codec:
        raise DecodeError(f"codec {payload.codec.name}, the task takes {codec.name}", reason=Reason.CODEC)
    check_payload(payload, params)
    for sent, tensor in zip(payload.tensors, params.tensors, strict=True):
        delta = np.frombuffer(sent.values, _TYPES[codec])
        base = integers(tensor).reshape(-1)
        shift = sent.exponent - tensor.exponent
        if _peak(base) + (_peak(delta) << shift) <= MODEL_VALUE_MAX:
            continue
        moved = base.astype(np.int64) + np.left_shift(delta.astype(np.int64), shift)
        if _peak(moved) > MODEL_VALUE_MAX:
            raise DecodeError(f"tensor {tensor.name}: a value leaves the model's range", reason=Reason.OUT_OF_BOUNDS)


def merge(
    params: ModelParams,
    updates: Sequence[tuple[int, UpdatePayload]],
    total_weight: int,
    server_rate_q16: int,
) -> ModelParams:
    """Return the next model.

    Args:
        params: The model of the plan's base version.
        updates: (weight, payload) of every accepted update, in any order; 0 <= weight.
        total_weight: 0 < W <= 2**24, and at least the sum of the weights.
        server_rate_q16: eta * 2**16, 1..2**16.

    Raises:
        AggregationError: the plan breaks a bound, or the result leaves the model's range.
        DecodeError: an update does not fit the model.

    Cost: O(parameters * updates); memory: two models and small blocks.
    """
    weights = [weight for weight, _ in updates]
    if not updates or min(weights) < 0 or not 0 < sum(weights) <= total_weight <= _TOTAL_WEIGHT_MAX:
        raise AggregationError(f"{len(updates)} updates of weight {sum(weights)} for a total of {total_weight}")
    if not 1 <= server_rate_q16 <= _RATE_ONE:
        raise AggregationError(f"server rate {server_rate_q16} / 2**16 is outside of (0, 1]")
    for _, payload in updates:
        check_payload(payload, params)
    return ModelParams(
        tensors=tuple(
            _merge_tensor(tensor, _terms(tensor, position, updates), total_weight, server_rate_q16)
            for position, tensor in enumerate(params.tensors)
        )
    )


def _terms(
    tensor: ModelTensor, position: int, updates: Sequence[tuple[int, UpdatePayload]]
) -> list[tuple[int, npt.NDArray[Any]]]:
    """Coefficients (weight * 2**shift) and values as sent, without those that add nothing."""
    terms = []
    for weight, payload in updates:
        sent = payload.tensors[position]
        values = np.frombuffer(sent.values, _TYPES[payload.codec])
        if weight and _peak(values):
            terms.append((weight << (sent.exponent - tensor.exponent), values))
    return terms


def _merge_tensor(
    tensor: ModelTensor, terms: list[tuple[int, npt.NDArray[Any]]], total_weight: int, server_rate_q16: int
) -> ModelTensor:
    bound = sum(coefficient * _peak(values) for coefficient, values in terms)
    if bound + total_weight >= 1 << ACCUMULATOR_BITS or bound // total_weight >= _STEP_MAX:
        raise AggregationError(f"tensor {tensor.name}: the sum of the updates may overflow ({bound})")
    result = integers(tensor).reshape(-1).astype("<i4")  # a copy: the model's own bytes stay
    shared = min(((c & -c).bit_length() - 1 for c, _ in terms), default=0)
    for start in range(0, result.size if terms else 0, _BLOCK):
        block = slice(start, min(start + _BLOCK, result.size))
        sums = _weighted_sum([(c, values[block]) for c, values in terms], shared, bound)
        merged = result[block] + _step(sums, total_weight, server_rate_q16)
        if _peak(merged) > MODEL_VALUE_MAX:
            raise AggregationError(f"tensor {tensor.name}: the merged model leaves its range")
        result[block] = merged
    scale_m, scale_k = tensor.scale_m, tensor.scale_k
    if tensor.channel_axis >= 0:
        m, k = channel_scales(result.reshape(tensor.shape), tensor.exponent, tensor.channel_axis)
        scale_m, scale_k = m.tobytes(), k.tobytes()
    return ModelTensor(
        name=tensor.name,
        shape=tensor.shape,
        exponent=tensor.exponent,
        channel_axis=tensor.channel_axis,
        values=result.tobytes(),
        scale_m=scale_m,
        scale_k=scale_k,
    )


def _weighted_sum(terms: list[tuple[int, npt.NDArray[Any]]], shared: int, bound: int) -> npt.NDArray[np.int64]:
    """Sum of coefficient * values, exactly.

    Args:
        terms: At least one.
        shared: All coefficients are multiples of 2**shared. What is left usually fits 32 bits, where the processor
            multiplies twice as many values at a time.
        bound: Largest magnitude that any partial sum can reach.
    """
    kind: type[np.int32 | np.int64] = np.int32 if bound >> shared <= np.iinfo(np.int32).max else np.int64
    sums = np.zeros(terms[0][1].size, kind)
    product = np.empty_like(sums)
    for coefficient, values in terms:
        np.multiply(values, kind(coefficient >> shared), out=product, dtype=kind)
        sums += product
    return np.left_shift(sums, shared, dtype=np.int64)


def _step(total: npt.NDArray[np.int64], total_weight: int, server_rate_q16: int) -> npt.NDArray[np.int64]:
    """Round eta * a / W to nearest, halves up, without a product that could overflow.

    With a = Q * W + R, 0 <= R < W, and eta * Q = s + t / 2**16, 0 <= t < 2**16:

        eta * a / W = s + (t * W + server_rate_q16 * R) / (W * 2**16)

    Both products are below 2**16 * W <= 2**40, and eta * Q below 2**(16 + 32).
    """
    quotient = total // total_weight  # vectorized for one divisor, ten times as fast as divmod
    remainder = total - quotient * total_weight
    if server_rate_q16 == _RATE_ONE:
        return quotient + (2 * remainder >= total_weight)
    scaled = quotient * server_rate_q16
    fraction = (scaled & (_RATE_ONE - 1)) * total_weight + remainder * server_rate_q16
    divisor = total_weight << WEIGHT_SHIFT
    step: npt.NDArray[np.int64] = (scaled >> WEIGHT_SHIFT) + (2 * fraction + divisor) // (2 * divisor)
    return step


def _peak(values: npt.NDArray[Any]) -> int:
    """Largest magnitude, as a Python integer."""
    return max(int(values.max()), -int(values.min())) if values.size else 0
