"""What holds for every update in every codec: nothing is lost, nothing grows, and bytes have one meaning."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edge_sdk.errors import DecodeError
from edge_sdk.protocol.messages import Codec, ModelParams, ModelTensor, PayloadTensor, Reason, UpdatePayload
from edge_sdk.protocol.wire import from_bytes, to_bytes
from edge_sdk.training.codecs.reading import UpdateForm, check_payload, read_update
from edge_sdk.training.codecs.spsa import STEPS, nearest_code
from edge_sdk.training.delta import decode_floats, encode_delta, l2_norm
from edge_sdk.training.network import Role, TensorSpec

SPECS = (
    TensorSpec(name="w", shape=(3, 5, 2), role=Role.WEIGHT, channel_axis=1, exponent=-22),
    TensorSpec(name="b", shape=(7,), role=Role.BIAS, channel_axis=-1, exponent=-20),
)
MODEL = ModelParams(
    tensors=tuple(
        ModelTensor(
            name=s.name,
            shape=s.shape,
            exponent=s.exponent,
            channel_axis=s.channel_axis,
            values=bytes(4 * s.size),
            scale_m=b"",
            scale_k=b"",
        )
        for s in SPECS
    )
)
Arrays = dict[str, npt.NDArray[np.float32]]
CARRYING = [codec for codec in Codec if codec is not Codec.SPSA]


def arrays(magnitude: float) -> st.SearchStrategy[Arrays]:
    elements = st.floats(-magnitude, magnitude, width=32) | st.sampled_from([0.0, magnitude, -magnitude / 128])
    return st.fixed_dictionaries({s.name: hnp.arrays(np.float32, s.shape, elements=elements) for s in SPECS})


@given(
    delta=arrays(8.0),
    residual=arrays(1.0),
    codec=st.sampled_from(CARRYING),
    share_q16=st.integers(1, 1 << 16),
    clip_norm=st.floats(0.01, 100.0),
)
def test_what_is_not_sent_is_kept(
    delta: Arrays, residual: Arrays, codec: Codec, share_q16: int, clip_norm: float
) -> None:
    share = share_q16 / 65_536
    encoded = encode_delta(delta, residual, SPECS, clip_norm=clip_norm, codec=codec, top_share=share)
    payload = from_bytes(UpdatePayload, to_bytes(encoded.payload))
    form = UpdateForm(codec=codec, top_share_q16=share_q16 if codec is Codec.INT8_TOPK else 1 << 16)
    check_payload(payload, MODEL, form)
    sent = decode_floats(payload, MODEL)
    assert l2_norm(sent) <= clip_norm * (1 + 1e-12)
    for spec in SPECS:
        total = delta[spec.name] + residual[spec.name]
        clipped = total * np.float32(encoded.clip_factor) if encoded.clip_factor < 1 else total
        found = sent[spec.name].astype(np.float64) + encoded.residual[spec.name]
        # One rounding of float32: of the difference, which is never longer than what was sent and what is left.
        slack = 2.0**-24 * np.abs(encoded.residual[spec.name])
        assert (np.abs(found - clipped.astype(np.float64)) <= slack).all()
    assert l2_norm(encoded.residual) <= min(clip_norm, encoded.norm) * (1 + 1e-6) + 2.0**-19


@given(data=st.binary(max_size=60), size=st.integers(1, 40), codec=st.sampled_from(CARRYING))
def test_bytes_are_refused_or_are_values_within_their_bound(data: bytes, size: int, codec: Codec) -> None:
    tensor = ModelTensor(
        name="w", shape=(size,), exponent=0, channel_axis=-1, values=bytes(4 * size), scale_m=b"", scale_k=b""
    )
    payload = UpdatePayload(codec=codec, tensors=(PayloadTensor(name="w", exponent=3, values=data),))
    reason, sent = Reason.NONE, None
    try:
        (sent,) = read_update(payload, ModelParams(tensors=(tensor,)))
    except DecodeError as error:
        reason = error.reason or Reason.BAD_REVEAL
    assert reason in {Reason.NONE, Reason.SHAPE, Reason.MALFORMED}
    if sent is None:
        return
    values = sent.values[slice(0, size)]
    assert values.shape == (size,)
    assert int(np.abs(values.astype(np.int64)).max()) <= sent.values.peak()


@given(steps=st.floats(-1e9, 1e9))
def test_a_code_has_the_sign_and_nearly_the_size_of_its_step(steps: float) -> None:
    code = nearest_code(steps)
    if code == 0:
        assert abs(steps) < STEPS[1] / 2
        return
    assert (code > 0) == (steps > 0)
    if STEPS[8] <= abs(steps) <= STEPS[127]:
        assert STEPS[abs(code)] == pytest.approx(abs(steps), rel=0.11)
