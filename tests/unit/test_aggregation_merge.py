"""Exact merge: worked examples, the bounds, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from coordinator.aggregation import fedbuff
from coordinator.aggregation.merge import check_update, merge
from edge_sdk.errors import AggregationError, DecodeError
from edge_sdk.protocol.limits import BLOCK_UPDATES_MAX, EXPONENT_SPAN_MAX, MODEL_VALUE_MAX
from edge_sdk.protocol.messages import Codec, ModelParams, ModelTensor, PayloadTensor, Reason, UpdatePayload
from edge_sdk.protocol.model import check_params
from edge_sdk.training.codecs.reading import UpdateForm
from edge_sdk.training.quantize import channel_scales, integers
from tests.support.chain import toy_model, toy_payload

ONE = 1 << 16


def flat(values: list[int], *, exponent: int = 0) -> ModelParams:
    data = np.array(values, "<i4").tobytes()
    tensor = ModelTensor(
        name="b", shape=(len(values),), exponent=exponent, channel_axis=-1, values=data, scale_m=b"", scale_k=b""
    )
    return ModelParams(tensors=(tensor,))


def delta(values: list[int], *, exponent: int = 0, codec: Codec = Codec.INT8_DENSE) -> UpdatePayload:
    kind = "<i1" if codec is Codec.INT8_DENSE else "<i2"
    return UpdatePayload(
        codec=codec, tensors=(PayloadTensor(name="b", exponent=exponent, values=np.array(values, kind).tobytes()),)
    )


def merged(params: ModelParams, *updates: tuple[int, UpdatePayload], total: int, rate: int = ONE) -> list[int]:
    values: list[int] = integers(merge(params, updates, total, rate).tensors[0]).tolist()
    return values


def test_weights_of_fedbuff() -> None:
    assert [fedbuff.weight(tau) for tau in (0, 1, 3, 8, 15)] == [65_536, 46_340, 32_768, 21_845, 16_384]
    assert fedbuff.total_weight(8) == 8 << 16


def test_the_vector_of_the_paper() -> None:
    """K = 2, eta = 1, delta = (1, 0) at tau 0 and (0, 1) at tau 3 gives the step (0.5, 0.25), here times 2**10."""
    step = merged(
        flat([0, 0], exponent=-10),
        (fedbuff.weight(0), delta([1, 0])),
        (fedbuff.weight(3), delta([0, 1])),
        total=fedbuff.total_weight(2),
    )
    assert step == [512, 256]


@pytest.mark.parametrize(
    ("value", "total", "expected"),
    [(1, 2, 1), (-1, 2, 0), (3, 2, 2), (-3, 2, -1), (1, 3, 0), (2, 3, 1), (-1, 3, 0), (-2, 3, -1), (0, 5, 0)],
)
def test_halves_are_rounded_up_also_below_zero(value: int, total: int, expected: int) -> None:
    assert merged(flat([0]), (1, delta([value])), total=total) == [expected]


@pytest.mark.parametrize(("value", "expected"), [(2, 1), (1, 1), (-1, 0), (-3, -1), (3, 2)])
def test_the_server_rate_is_part_of_the_one_rounding(value: int, expected: int) -> None:
    assert merged(flat([0]), (1, delta([value])), total=1, rate=ONE // 2) == [expected]


def test_exponents_are_aligned_exactly() -> None:
    assert merged(flat([10], exponent=-4), (1, delta([3], exponent=-2)), total=1) == [22]
    wide = delta([1], exponent=EXPONENT_SPAN_MAX)
    assert merged(flat([0]), (ONE, wide), (ONE, delta([1])), total=2 * ONE) == [(1 << 23) + 1]


def test_int16_values_and_64_bit_sums() -> None:
    payload = delta([32_767, -32_768], exponent=8, codec=Codec.INT16_DENSE)
    assert merged(flat([0, 0]), *[(ONE, payload)] * 8, total=8 * ONE) == [32_767 << 8, -32_768 << 8]


def test_updates_that_add_nothing() -> None:
    assert merged(flat([5]), (0, delta([100])), (1, delta([0], exponent=24)), total=4) == [5]


def test_scales_are_chosen_anew() -> None:
    result = merge(toy_model(), [(ONE, toy_payload(1))], ONE, ONE)
    weight = result.tensors[0]
    m, k = channel_scales(integers(weight), weight.exponent, 0)
    assert (weight.scale_m, weight.scale_k) == (m.tobytes(), k.tobytes())
    assert (result.tensors[1].scale_m, result.tensors[1].scale_k) == (b"", b"")
    assert weight.values != toy_model().tensors[0].values
    check_params(result)


def test_a_tensor_longer_than_a_block_of_the_kernel() -> None:
    size = 100_003
    rng = np.random.default_rng(1)
    start = rng.integers(-1_000, 1_000, size).astype(np.int32)
    sent = rng.integers(-127, 128, size).astype(np.int8)
    params = flat(start.tolist())
    result = merge(params, [(ONE, delta(sent.tolist()))], ONE, ONE)
    assert np.array_equal(integers(result.tensors[0]), start + sent)


@pytest.mark.parametrize(
    ("updates", "total", "rate"),
    [
        ([], ONE, ONE),
        ([(0, delta([1]))], ONE, ONE),
        ([(-1, delta([1])), (2, delta([1]))], ONE, ONE),
        ([(2, delta([1]))], 1, ONE),
        ([(1, delta([1]))], (BLOCK_UPDATES_MAX << 16) + 1, ONE),
        ([(1, delta([1]))], 1, 0),
        ([(1, delta([1]))], 1, ONE + 1),
    ],
)
def test_plans_that_break_a_bound(updates: list[tuple[int, UpdatePayload]], total: int, rate: int) -> None:
    with pytest.raises(AggregationError):
        merge(flat([0]), updates, total, rate)


def test_a_model_that_would_leave_its_range() -> None:
    with pytest.raises(AggregationError, match="range"):
        merged(flat([MODEL_VALUE_MAX]), (1, delta([1])), total=1)
    assert merged(flat([MODEL_VALUE_MAX - 1]), (1, delta([1])), total=1) == [MODEL_VALUE_MAX]
    with pytest.raises(AggregationError, match="range"):
        merged(flat([-MODEL_VALUE_MAX]), (1, delta([-1])), total=1)


def test_a_sum_that_might_overflow_is_refused_before_it_is_computed() -> None:
    huge = delta([-32_768], exponent=EXPONENT_SPAN_MAX, codec=Codec.INT16_DENSE)
    with pytest.raises(AggregationError, match="overflow"):
        merged(flat([0]), *[(ONE, huge)] * BLOCK_UPDATES_MAX, total=BLOCK_UPDATES_MAX << 16)


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (delta([1, 2], codec=Codec.INT16_DENSE), Reason.CODEC),
        (delta([1]), Reason.SHAPE),
        (replace(delta([1, 2]), tensors=delta([1, 2]).tensors * 2), Reason.SHAPE),
        (replace(delta([1, 2]), tensors=()), Reason.SHAPE),
        (replace(delta([1, 2]), tensors=(replace(delta([1, 2]).tensors[0], name="c"),)), Reason.SHAPE),
        (delta([1, 2], exponent=-1), Reason.EXPONENT),
        (delta([1, 2], exponent=EXPONENT_SPAN_MAX + 1), Reason.EXPONENT),
        (delta([0, 127], exponent=EXPONENT_SPAN_MAX), Reason.OUT_OF_BOUNDS),
        (delta([0, -127], exponent=EXPONENT_SPAN_MAX), Reason.OUT_OF_BOUNDS),
    ],
)
def test_updates_that_cannot_be_merged(payload: UpdatePayload, reason: Reason) -> None:
    with pytest.raises(DecodeError) as caught:
        check_update(flat([0, 5]), payload, UpdateForm(codec=Codec.INT8_DENSE))
    assert caught.value.reason is reason


def test_the_range_is_judged_by_value_not_by_peak() -> None:
    params = flat([MODEL_VALUE_MAX, 0])
    check_update(params, delta([-1, 1]), UpdateForm(codec=Codec.INT8_DENSE))
    with pytest.raises(DecodeError):
        check_update(params, delta([1, 0]), UpdateForm(codec=Codec.INT8_DENSE))
