"""The update codec: vectors by hand, the clip, and payloads that must be refused."""

import math
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from edge_sdk.errors import DecodeError, NonFiniteError, QuantizationError
from edge_sdk.protocol import codec as cbor
from edge_sdk.protocol.limits import EXPONENT_SPAN_MAX
from edge_sdk.protocol.messages import Codec, ModelParams, ModelTensor, PayloadTensor, Reason, UpdatePayload
from edge_sdk.training.delta import decode_aligned, encode_delta, pack_residual, unpack_residual
from edge_sdk.training.network import Role, TensorSpec

SPECS = (TensorSpec(name="b", shape=(3,), role=Role.BIAS, channel_axis=-1, exponent=-24),)
MODEL = ModelParams(
    tensors=(
        ModelTensor(name="b", shape=(3,), exponent=-24, channel_axis=-1, values=bytes(12), scale_m=b"", scale_k=b""),
    )
)
PAYLOAD = UpdatePayload(
    codec=Codec.INT8_DENSE, tensors=(PayloadTensor(name="b", exponent=-20, values=b"\x01\xff\x00"),)
)


def floats(*values: float) -> dict[str, npt.NDArray[np.float32]]:
    return {"b": np.array(values, np.float32)}


def test_vector_of_the_int8_grid() -> None:
    # Largest 1.0: 127 * 2**-7 = 0.992 is too small for a grid of 2**-7 (128 does not fit), so 2**-6.
    encoded = encode_delta(floats(1.0, -0.3, 0.004), None, SPECS, clip_norm=9.0, codec=Codec.INT8_DENSE)
    (tensor,) = encoded.payload.tensors
    assert tensor.exponent == -6
    assert np.frombuffer(tensor.values, np.int8).tolist() == [64, -19, 0]
    np.testing.assert_array_equal(encoded.residual["b"], floats(0.0, -0.3, 0.004)["b"] + floats(0.0, 19 / 64, 0.0)["b"])
    aligned = decode_aligned(encoded.payload, MODEL)["b"]
    assert aligned.tolist() == [64 << 18, -19 << 18, 0]


def test_int16_is_256_times_finer() -> None:
    encoded = encode_delta(floats(1.0, 0.0, 0.0), None, SPECS, clip_norm=9.0, codec=Codec.INT16_DENSE)
    (tensor,) = encoded.payload.tensors
    assert tensor.exponent == -14
    assert len(tensor.values) == 6


def test_grid_is_never_finer_than_the_model() -> None:
    encoded = encode_delta(floats(2.0**-30, 0.0, 0.0), None, SPECS, clip_norm=9.0, codec=Codec.INT8_DENSE)
    assert encoded.payload.tensors[0].exponent == -24
    assert encoded.payload.tensors[0].values == bytes(3)
    assert encoded.residual["b"][0] == 2.0**-30


def test_small_deltas_add_up_through_the_residual() -> None:
    """An entry too small for the grid of its tensor is sent once enough of it has come together."""
    residual, sent = None, 0
    for _ in range(20):
        encoded = encode_delta(floats(1.0, 0.004, 0.0), residual, SPECS, clip_norm=9.0, codec=Codec.INT8_DENSE)
        residual = encoded.residual
        sent += int(decode_aligned(encoded.payload, MODEL)["b"][1])
    assert sent * 2.0**-24 == pytest.approx(20 * 0.004, abs=2.0**-7)


def test_clip_scales_the_whole_update_and_drops_the_rest() -> None:
    encoded = encode_delta(floats(3.0, 4.0, 0.0), None, SPECS, clip_norm=1.0, codec=Codec.INT8_DENSE)
    assert encoded.norm == pytest.approx(5.0)
    assert encoded.clip_factor == pytest.approx(0.2, rel=0.02)
    sent = decode_aligned(encoded.payload, MODEL)["b"] * 2.0**-24
    assert math.hypot(*sent) <= 1.0
    assert sent[0] / sent[1] == pytest.approx(0.75, abs=0.02)
    assert np.abs(encoded.residual["b"]).max() < 0.01


def test_what_cannot_be_sent_is_refused() -> None:
    with pytest.raises(NonFiniteError):
        encode_delta(floats(math.nan, 0.0, 0.0), None, SPECS, clip_norm=1.0, codec=Codec.INT8_DENSE)
    with pytest.raises(NonFiniteError):
        encode_delta(floats(math.inf, 0.0, 0.0), None, SPECS, clip_norm=1.0, codec=Codec.INT8_DENSE)
    with pytest.raises(QuantizationError, match="tensor b"):
        encode_delta(floats(1e9, 0.0, 0.0), None, SPECS, clip_norm=1e12, codec=Codec.INT8_DENSE)


TENSOR = PAYLOAD.tensors[0]
REFUSED = {
    "codec": (replace(PAYLOAD, codec=9), Reason.CODEC),  # type: ignore[arg-type]
    "name": (replace(PAYLOAD, tensors=(replace(TENSOR, name="c"),)), Reason.SHAPE),
    "missing": (replace(PAYLOAD, tensors=()), Reason.SHAPE),
    "twice": (replace(PAYLOAD, tensors=(TENSOR, TENSOR)), Reason.SHAPE),
    "length": (replace(PAYLOAD, tensors=(replace(TENSOR, values=b"\x00\x00"),)), Reason.SHAPE),
    "length of another codec": (replace(PAYLOAD, codec=Codec.INT16_DENSE), Reason.SHAPE),
    "finer than the model": (replace(PAYLOAD, tensors=(replace(TENSOR, exponent=-25),)), Reason.EXPONENT),
    "too coarse": (
        replace(PAYLOAD, tensors=(replace(TENSOR, exponent=-24 + EXPONENT_SPAN_MAX + 1),)),
        Reason.EXPONENT,
    ),
}


@pytest.mark.parametrize(("payload", "reason"), REFUSED.values(), ids=REFUSED)
def test_payload_that_does_not_fit_is_refused(payload: UpdatePayload, reason: Reason) -> None:
    assert decode_aligned(PAYLOAD, MODEL)["b"].tolist() == [16, -16, 0]
    with pytest.raises(DecodeError) as caught:
        decode_aligned(payload, MODEL)
    assert caught.value.reason is reason


@pytest.mark.parametrize(
    "data",
    [
        b"",
        cbor.encode([]),
        cbor.encode([bytes(8)]),
        cbor.encode({1: bytes(12)}),
        cbor.encode([bytes(12), bytes(12)]),
        pack_residual(floats(math.nan, 0.0, 0.0), SPECS),
    ],
)
def test_residual_that_does_not_fit_is_refused(data: bytes) -> None:
    with pytest.raises(DecodeError):
        unpack_residual(data, SPECS)
