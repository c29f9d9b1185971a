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

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from edge_sdk.errors import AggregationError, DecodeError
from edge_sdk.protocol.limits import ACCUMULATOR_BITS, BLOCK_UPDATES_MAX, MODEL_VALUE_MAX, WEIGHT_SHIFT
from edge_sdk.protocol.messages import ModelParams, ModelTensor, Reason, UpdatePayload
from edge_sdk.training.codecs.reading import UpdateForm, check_payload, read_update
from edge_sdk.training.codecs.values import BLOCK, SentTensor, Values
from edge_sdk.training.quantize import channel_scales, integers

if TYPE_CHECKING:
    import numpy.typing as npt

_KINDS: Final = (np.int16, np.int32, np.int64)
_RATE_ONE: Final = 1 << WEIGHT_SHIFT
_TOTAL_WEIGHT_MAX: Final = BLOCK_UPDATES_MAX << WEIGHT_SHIFT
_STEP_MAX: Final = 4 * MODEL_VALUE_MAX
"""A mean of updates that fit the model moves no value further than twice its range."""


def check_update(params: ModelParams, payload: UpdatePayload, form: UpdateForm) -> None:
    """Check that an update can be merged into a model: form, exponents, and no value beyond ``MODEL_VALUE_MAX``.

    Raises:
        DecodeError: it cannot; ``reason`` is CODEC, SHAPE, EXPONENT, MALFORMED or OUT_OF_BOUNDS.

    Cost: O(parameters), usually without unfolding the update; never more than a block of it at a time.
    """
    for sent, tensor in zip(check_payload(payload, params, form), params.tensors, strict=True):
        if sent is None:
            continue
        base = integers(tensor).reshape(-1)
        if _peak(base) + (sent.values.peak() << sent.shift) <= MODEL_VALUE_MAX:
            continue
        for start in range(0, base.size, BLOCK):
            block = slice(start, start + BLOCK)
            moved = base[block].astype(np.int64) + np.left_shift(sent.values[block].astype(np.int64), sent.shift)
            if _peak(moved) > MODEL_VALUE_MAX:
                raise DecodeError(
                    f"tensor {tensor.name}: a value leaves the model's range", reason=Reason.OUT_OF_BOUNDS
                )


def merge(
    params: ModelParams,
    updates: Sequence[tuple[int, UpdatePayload]],
    total_weight: int,
    server_rate_q16: int,
    carried: tuple[int, ...] | None = None,
) -> ModelParams:
    """Return the next model.

    Args:
        params: The model of the plan's base version.
        updates: (weight, payload) of every accepted update, in any order; 0 <= weight.
        total_weight: 0 < W <= 2**24, and at least the sum of the weights.
        server_rate_q16: eta * 2**16, 1..2**16.
        carried: Positions of the tensors that updates of the task carry, None for all; the others stay as they are.

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
    opened = [(weight, read_update(payload, params, carried)) for weight, payload in updates]
    return ModelParams(
        tensors=tuple(
            _merge_tensor(
                tensor, _groups([(weight, sent[position]) for weight, sent in opened]), total_weight, server_rate_q16
            )
            for position, tensor in enumerate(params.tensors)
        )
    )


@dataclass(frozen=True, slots=True)
class _Group:
    """Updates of one weight: coefficient * sum of values_i * 2**shift_i."""

    coefficient: int
    members: tuple[tuple[int, Values], ...]
    """(shift, values as sent), largest shift first, smallest 0."""
    bound: int
    """Largest magnitude that any partial sum of the group can reach, without the coefficient."""


def _groups(updates: Sequence[tuple[int, SentTensor | None]]) -> tuple[_Group, ...]:
    """Sort the updates of one tensor by weight, without those that add nothing.

    Most updates of a block are equally stale, so one multiplication serves many of them.
    """
    by_weight: defaultdict[int, list[tuple[int, int, Values]]] = defaultdict(list)
    for weight, sent in updates:
        peak = sent.values.peak() if sent is not None and weight else 0
        if sent is not None and peak:
            by_weight[weight].append((sent.shift, peak, sent.values))
    groups = []
    for weight, found in by_weight.items():
        found.sort(key=lambda member: -member[0])
        least = found[-1][0]
        groups.append(
            _Group(
                coefficient=weight << least,
                members=tuple((shift - least, values) for shift, _, values in found),
                bound=sum(peak << shift - least for shift, peak, _ in found),
            )
        )
    return tuple(groups)


def _merge_tensor(
    tensor: ModelTensor, groups: tuple[_Group, ...], total_weight: int, server_rate_q16: int
) -> ModelTensor:
    bound = sum(group.coefficient * group.bound for group in groups)
    if bound + total_weight >= 1 << ACCUMULATOR_BITS or bound // total_weight >= _STEP_MAX:
        raise AggregationError(f"tensor {tensor.name}: the sum of the updates may overflow ({bound})")
    result = integers(tensor).reshape(-1).astype("<i4")  # a copy: the model's own bytes stay
    kind = _narrowest(_peak(result) + bound // total_weight + 1)
    for start in range(0, result.size if groups else 0, BLOCK):
        block = slice(start, min(start + BLOCK, result.size))
        merged = _steps(groups, block, bound, total_weight, server_rate_q16).astype(kind, copy=False)
        merged += result[block]
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


def _steps(
    groups: tuple[_Group, ...], block: slice, bound: int, total_weight: int, server_rate_q16: int
) -> npt.NDArray[Any]:
    """Round eta * a / W of one block of values to nearest, halves up.

    With a = s * 2**z, where 2**z divides every coefficient, and 2**c dividing both 2**z and W:

        floor((2 a + W) / 2 W) = floor((s * 2**(z - c + 1) + W / 2**c) / (2 W / 2**c))

    which usually fits 32 bits, where the processor works on twice as many values at a time.
    """
    shared = min(_zero_bits(group.coefficient) for group in groups)
    if server_rate_q16 != _RATE_ONE:
        sums = _weighted_sum(groups, block, shared, np.int64)
        return _scaled_steps(np.left_shift(sums, shared, out=sums), total_weight, server_rate_q16)
    common = min(shared, _zero_bits(total_weight))
    divisor = total_weight >> common
    kind = _narrowest(2 * (bound >> common) + divisor, at_least=np.int32)
    steps = _weighted_sum(groups, block, shared, kind)
    steps <<= kind(shared - common + 1)
    steps += kind(divisor)
    steps //= kind(2 * divisor)
    return steps


def _weighted_sum(
    groups: tuple[_Group, ...], block: slice, shared: int, kind: type[np.signedinteger[Any]]
) -> npt.NDArray[Any]:
    """Sum of coefficient / 2**shared * values, exactly; the caller has chosen a kind that no partial sum leaves."""
    total: npt.NDArray[Any] | None = None
    for group in groups:
        product = _aligned_sum(group, block).astype(kind, copy=False)
        product *= kind(group.coefficient >> shared)
        total = product if total is None else np.add(total, product, out=total)
    assert total is not None, "a block without updates has no sum"
    return total


def _aligned_sum(group: _Group, block: slice) -> npt.NDArray[Any]:
    """Sum of values * 2**shift in the narrowest integers, from the largest shift down: no multiplication."""
    shift_before, first = group.members[0]
    sums = first[block].astype(_narrowest(group.bound))
    for shift, values in group.members[1:]:
        if shift < shift_before:
            sums <<= sums.dtype.type(shift_before - shift)
        sums += values[block]
        shift_before = shift
    return sums


def _scaled_steps(total: npt.NDArray[np.int64], total_weight: int, server_rate_q16: int) -> npt.NDArray[np.int64]:
    """Round eta * a / W to nearest, halves up, without a product that could overflow.

    With a = Q * W + R, 0 <= R < W, and eta * Q = s + t / 2**16, 0 <= t < 2**16:

        eta * a / W = s + (t * W + server_rate_q16 * R) / (W * 2**16)

    Both products are below 2**16 * W <= 2**40, and eta * Q below 2**(16 + 32).
    """
    quotient = total // total_weight  # vectorized for one divisor, ten times as fast as divmod
    remainder = total - quotient * total_weight
    scaled = quotient * server_rate_q16
    fraction = (scaled & (_RATE_ONE - 1)) * total_weight + remainder * server_rate_q16
    divisor = total_weight << WEIGHT_SHIFT
    step: npt.NDArray[np.int64] = (scaled >> WEIGHT_SHIFT) + (2 * fraction + divisor) // (2 * divisor)
    return step


def _narrowest(bound: int, *, at_least: type[np.signedinteger[Any]] = np.int16) -> type[np.signedinteger[Any]]:
    """Smallest integer type that holds every magnitude up to ``bound``."""
    return next(kind for kind in _KINDS[_KINDS.index(at_least) :] if bound <= np.iinfo(kind).max)


def _zero_bits(value: int) -> int:
    """How often two divides a positive integer."""
    return (value & -value).bit_length() - 1


def _peak(values: npt.NDArray[Any]) -> int:
    """Largest magnitude, as a Python integer."""
    return max(int(values.max()), -int(values.min())) if values.size else 0
