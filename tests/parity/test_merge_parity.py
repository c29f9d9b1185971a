"""The merge with its groups and narrow integers equals the equation in Python integers, value by value."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import pytest

from coordinator.aggregation import fedbuff
from coordinator.aggregation.merge import merge
from edge_sdk.protocol.messages import Codec, ModelParams, ModelTensor, PayloadTensor, UpdatePayload
from edge_sdk.training.codecs.values import BLOCK
from edge_sdk.training.quantize import integers
from tests.parity.reference.merge import merge_values

EXPONENT = -24
ONE = 1 << 16
KINDS: Final[dict[Codec, np.dtype[Any]]] = {Codec.INT8_DENSE: np.dtype("<i1"), Codec.INT16_DENSE: np.dtype("<i2")}
FRESH = [fedbuff.weight(0)] * 8
MIXED = [fedbuff.weight(staleness) for staleness in (0, 0, 1, 2, 0, 3, 8, 1)]


@pytest.mark.parametrize("codec", KINDS)
@pytest.mark.parametrize("rate", [ONE, ONE // 3])
@pytest.mark.parametrize(
    ("weights", "shifts", "total_weight"),
    [
        (FRESH, [0] * 8, 8 * ONE),  # one group, a sum of int16, a power of two below
        (FRESH, [3, 0, 1, 1, 5, 2, 0, 3], 8 * ONE),
        (MIXED, [4, 0, 9, 1, 0, 2, 7, 3], 8 * ONE),
        (MIXED[:7], [1] * 7, 7 * ONE),
        (MIXED, [12, 8, 10, 12, 9, 11, 12, 8], 8 * ONE),  # all far from the model's grid
        (FRESH, [14] * 8, 8 * ONE),  # 64 bits
        ([1, 3, 5], [0, 0, 0], 11),  # odd: nothing to cancel
        ([ONE] * 3, [13, 0, 13], 1 << 24),
    ],
)
def test_merge_equals_the_equation(
    codec: Codec, rate: int, weights: list[int], shifts: list[int], total_weight: int
) -> None:
    kind, rng = KINDS[codec], np.random.default_rng(sum(shifts))
    size = BLOCK + 37  # two blocks
    low, high = np.iinfo(kind).min, np.iinfo(kind).max
    base = rng.integers(-(1 << 27), 1 << 27, size).astype("<i4")
    values = [rng.integers(low, high, size, endpoint=True).astype(kind) for _ in weights]
    values[0][:4] = values[-1][-4:] = low
    params = ModelParams(
        tensors=(
            ModelTensor(
                name="b",
                shape=(size,),
                exponent=EXPONENT,
                channel_axis=-1,
                values=base.tobytes(),
                scale_m=b"",
                scale_k=b"",
            ),
        )
    )
    updates = [
        (weight, UpdatePayload(codec=codec, tensors=(PayloadTensor(name="b", exponent=EXPONENT + shift, values=sent),)))
        for weight, shift, sent in zip(weights, shifts, (array.tobytes() for array in values), strict=True)
    ]
    found = integers(merge(params, updates, total_weight, rate).tensors[0])
    # Both ends, the seam between the blocks, and some in between.
    places = np.unique([*range(50), *range(BLOCK - 50, size), *rng.integers(0, size, 2_000)])
    plain = [(w, s, v[places].tolist()) for w, s, v in zip(weights, shifts, values, strict=True)]
    assert found[places].tolist() == merge_values(base[places].tolist(), plain, total_weight, rate)
