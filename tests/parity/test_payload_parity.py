"""Decoding and merging of every codec equals the readable references, over blocks, channels and frozen tensors."""

from __future__ import annotations

import functools
import math
from typing import Final

import numpy as np
import numpy.typing as npt
import pytest

from coordinator.aggregation import fedbuff
from coordinator.aggregation.merge import check_update, merge
from edge_sdk.protocol.messages import Codec, ModelParams, ModelTensor, PayloadTensor, UpdatePayload
from edge_sdk.training.codecs.reading import UpdateForm
from edge_sdk.training.codecs.spsa import STEPS
from edge_sdk.training.codecs.values import BLOCK
from edge_sdk.training.delta import decode_aligned, encode_delta
from edge_sdk.training.network import Role, TensorSpec
from edge_sdk.training.quantize import channel_scales, integers
from tests.parity.reference.merge import merge_values
from tests.parity.reference.payloads import decode_values, replay, step

ONE: Final = 1 << 16
SHARE_Q16: Final = ONE // 8
SPECS: Final = (
    TensorSpec(name="conv", shape=(5, 3, 3, 3), role=Role.WEIGHT, channel_axis=0, exponent=-24),
    TensorSpec(name="frozen", shape=(7,), role=Role.BIAS, channel_axis=-1, exponent=-24),
    TensorSpec(name="dense", shape=(361, 183), role=Role.WEIGHT, channel_axis=1, exponent=-24),  # two blocks, odd
    TensorSpec(name="bias", shape=(183,), role=Role.BIAS, channel_axis=-1, exponent=-22),
)
CARRIED: Final = (0, 2, 3)
WEIGHTS: Final = [fedbuff.weight(staleness) for staleness in (0, 0, 4)]


@pytest.fixture(scope="module")
def params() -> ModelParams:
    rng = np.random.default_rng(1)
    tensors = []
    for spec in SPECS:
        values = rng.integers(-(1 << 22), 1 << 22, spec.shape).astype("<i4")
        m, k = b"", b""
        if spec.channel_axis >= 0:
            m, k = (part.tobytes() for part in channel_scales(values, spec.exponent, spec.channel_axis))
        tensors.append(
            ModelTensor(
                name=spec.name,
                shape=spec.shape,
                exponent=spec.exponent,
                channel_axis=spec.channel_axis,
                values=values.tobytes(),
                scale_m=m,
                scale_k=k,
            )
        )
    return ModelParams(tensors=tuple(tensors))


def make(codec: Codec, seed: int) -> UpdatePayload:
    rng = np.random.default_rng(seed)
    if codec is Codec.SPSA:
        values = rng.bytes(8) + rng.integers(-127, 128, 5, dtype=np.int8).tobytes()
        return UpdatePayload(codec=codec, tensors=(PayloadTensor(name="spsa", exponent=-22, values=values),))
    specs = tuple(SPECS[position] for position in CARRIED)
    delta: dict[str, npt.NDArray[np.float32]] = {
        s.name: (rng.standard_t(3, s.shape) * 0.01).astype(np.float32) for s in specs
    }
    return encode_delta(delta, None, specs, clip_norm=3.0, codec=codec, top_share=1 / 8).payload


@functools.cache
def reference(payload: UpdatePayload, position: int) -> list[int]:
    spec = SPECS[position]
    if payload.codec is Codec.SPSA:
        values = payload.tensors[0].values
        return replay(values[:8], values[8:], position, spec.size)
    sent = next(tensor for tensor in payload.tensors if tensor.name == spec.name)
    return decode_values(sent.values, payload.codec, spec.shape, spec.channel_axis)


def exponent_of(payload: UpdatePayload, position: int) -> int:
    return next(t.exponent for t in payload.tensors if t.name in {SPECS[position].name, "spsa"})


@pytest.mark.parametrize("codec", Codec, ids=lambda codec: codec.name)
def test_decoding_equals_the_reference(codec: Codec, params: ModelParams) -> None:
    payload = make(codec, 0)
    share = SHARE_Q16 if codec is Codec.INT8_TOPK else ONE
    check_update(params, payload, UpdateForm(codec=codec, carried=CARRIED, top_share_q16=share))
    aligned = decode_aligned(payload, params, CARRIED)
    assert list(aligned) == [SPECS[position].name for position in CARRIED]
    for position in CARRIED:
        spec = SPECS[position]
        shift = exponent_of(payload, position) - spec.exponent
        assert aligned[spec.name].ravel().tolist() == [value << shift for value in reference(payload, position)]


@pytest.mark.parametrize("rate", [ONE, ONE // 3])
@pytest.mark.parametrize("codec", Codec, ids=lambda codec: codec.name)
def test_merging_equals_the_equation(codec: Codec, rate: int, params: ModelParams) -> None:
    payloads = [make(codec, seed) for seed in range(len(WEIGHTS))]
    total = fedbuff.total_weight(len(payloads))
    merged = merge(params, list(zip(WEIGHTS, payloads, strict=True)), total, rate, CARRIED)
    assert merged.tensors[1] == params.tensors[1], "a tensor that updates do not carry stays as it is"
    for position in CARRIED:
        spec = SPECS[position]
        decoded = [reference(payload, position) for payload in payloads]
        places = np.unique([*range(min(spec.size, 200)), *range(max(0, spec.size - 600), spec.size)])
        plain = [
            (weight, exponent_of(payload, position) - spec.exponent, [values[place] for place in places])
            for weight, payload, values in zip(WEIGHTS, payloads, decoded, strict=True)
        ]
        base = integers(params.tensors[position]).ravel()[places].tolist()
        found = integers(merged.tensors[position]).ravel()[places].tolist()
        assert found == merge_values(base, plain, total, rate)


def test_the_largest_tensor_has_a_seam_between_two_blocks() -> None:
    size = SPECS[2].size
    assert BLOCK < size < 2 * BLOCK
    assert size - 600 < BLOCK, "the seam is among the places that are compared"


def test_steps_are_exact_roots() -> None:
    assert [step(code) for code in range(128)] == list(STEPS)
    assert all(math.isclose(STEPS[code], 2 ** (3 + code / 8), rel_tol=0.12) for code in range(1, 128))
    assert STEPS[8::8] == tuple(2 ** (3 + octave) for octave in range(1, 16))
