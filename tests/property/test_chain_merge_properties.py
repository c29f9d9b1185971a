"""The merge equals the rational equation, whatever the order; checked updates never leave the model's range."""

from __future__ import annotations

from fractions import Fraction
from math import floor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.aggregation.merge import check_update, merge
from edge_sdk.errors import DecodeError
from edge_sdk.protocol.limits import MODEL_VALUE_MAX
from edge_sdk.protocol.messages import Codec, ModelParams, ModelTensor, PayloadTensor, UpdatePayload
from edge_sdk.protocol.model import model_root
from edge_sdk.training.codecs.reading import UpdateForm
from edge_sdk.training.quantize import integers

SIZE = 5
Drawn = tuple[int, int, list[int]]
"""Weight, shift, values."""


def params_of(values: list[int]) -> ModelParams:
    data = np.array(values, "<i4").tobytes()
    tensor = ModelTensor(name="b", shape=(SIZE,), exponent=-20, channel_axis=-1, values=data, scale_m=b"", scale_k=b"")
    return ModelParams(tensors=(tensor,))


def payload_of(drawn: Drawn, codec: Codec) -> UpdatePayload:
    kind = "<i1" if codec is Codec.INT8_DENSE else "<i2"
    values = np.array(drawn[2], kind).tobytes()
    return UpdatePayload(codec=codec, tensors=(PayloadTensor(name="b", exponent=-20 + drawn[1], values=values),))


def updates_of(limit: int, shift_max: int) -> st.SearchStrategy[list[Drawn]]:
    values = st.lists(st.integers(-limit, limit - 1), min_size=SIZE, max_size=SIZE)
    return st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, shift_max), values), min_size=1, max_size=6)


bases = st.lists(st.integers(-(1 << 27), 1 << 27), min_size=SIZE, max_size=SIZE)
rates = st.one_of(st.just(1 << 16), st.integers(1, 1 << 16))


@pytest.mark.parametrize(
    ("codec", "limit", "shift_max"), [(Codec.INT8_DENSE, 128, 20), (Codec.INT16_DENSE, 1 << 15, 12)]
)
def test_the_merge_is_the_rational_equation(codec: Codec, limit: int, shift_max: int) -> None:
    @given(
        base=bases,
        drawn=updates_of(limit, shift_max),
        rate=rates,
        extra=st.integers(0, 1 << 16),
        seed=st.integers(0, 99),
    )
    def check(base: list[int], drawn: list[Drawn], rate: int, extra: int, seed: int) -> None:
        total = sum(weight for weight, _, _ in drawn) + extra
        if sum(weight for weight, _, _ in drawn) == 0:
            return
        updates = [(item[0], payload_of(item, codec)) for item in drawn]
        result = merge(params_of(base), updates, total, rate)
        for place, start in enumerate(base):
            a = sum(weight * (values[place] << shift) for weight, shift, values in drawn)
            exact = Fraction(a * rate, total << 16)
            assert int(integers(result.tensors[0])[place]) == start + floor(exact + Fraction(1, 2))
        shuffled = [updates[i] for i in np.random.default_rng(seed).permutation(len(updates))]
        assert model_root(merge(params_of(base), shuffled, total, rate)) == model_root(result)

    check()


@given(
    base=st.lists(st.integers(-MODEL_VALUE_MAX, MODEL_VALUE_MAX), min_size=SIZE, max_size=SIZE),
    drawn=updates_of(128, 24),
    rate=rates,
)
def test_checked_updates_never_leave_the_range(base: list[int], drawn: list[Drawn], rate: int) -> None:
    params = params_of(base)
    fitting = []
    for item in drawn:
        payload = payload_of(item, Codec.INT8_DENSE)
        moved = [start + (value << item[1]) for start, value in zip(base, item[2], strict=True)]
        if max(map(abs, moved)) <= MODEL_VALUE_MAX:
            check_update(params, payload, UpdateForm(codec=Codec.INT8_DENSE))
            fitting.append((item[0], payload))
        else:
            with pytest.raises(DecodeError):
                check_update(params, payload, UpdateForm(codec=Codec.INT8_DENSE))
    if sum(weight for weight, _ in fitting):
        merge(params, fitting, len(fitting) << 16, rate)
