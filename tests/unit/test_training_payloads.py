"""Reading of updates: the golden vectors, the bounds before memory, and the form that a task asks for."""

from __future__ import annotations

import json
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

from coordinator.aggregation.merge import check_update
from coordinator.upload_form import blob_bytes_max, upload_check
from edge_sdk.errors import DecodeError
from edge_sdk.protocol.limits import MODEL_VALUE_MAX, PARAMETERS_MAX, SPSA_CODES_MAX
from edge_sdk.protocol.messages import Codec, ModelParams, ModelTensor, PayloadTensor, Reason, UpdatePayload
from edge_sdk.protocol.wire import from_bytes, to_bytes
from edge_sdk.training.codecs.reading import UpdateForm, check_payload, read_update
from edge_sdk.training.codecs.spsa import STEPS
from edge_sdk.training.codecs.topk import kept_count, read_topk
from edge_sdk.training.codecs.values import BLOCK
from edge_sdk.training.delta import decode_aligned
from tools import vector_examples as ex

FOLDER: Final = Path(__file__).parent.parent / "vectors"
CASES: Final[list[dict[str, Any]]] = json.loads((FOLDER / "payloads.json").read_text(encoding="utf-8"))
MIB: Final = 1 << 20


def large_model(size: int = PARAMETERS_MAX) -> ModelParams:
    tensor = ModelTensor(
        name="w", shape=(size,), exponent=-24, channel_axis=-1, values=bytes(4 * size), scale_m=b"", scale_k=b""
    )
    return ModelParams(tensors=(tensor,))


def one(codec: Codec, values: bytes, *, name: str = "w", exponent: int = -24) -> UpdatePayload:
    return UpdatePayload(codec=codec, tensors=(PayloadTensor(name=name, exponent=exponent, values=values),))


@pytest.mark.parametrize("case", [case for case in CASES if "values" in case], ids=lambda case: case["name"])
def test_vectors(case: dict[str, Any]) -> None:
    payload = from_bytes(UpdatePayload, bytes.fromhex(case["bytes"]))
    carried = None if case["carried"] is None else tuple(case["carried"])
    aligned = decode_aligned(payload, ex.params(), carried)
    found = [aligned[t.name].tolist() if t.name in aligned else None for t in ex.params().tensors]
    assert found == case["values"]
    check_payload(payload, ex.params(), UpdateForm(codec=payload.codec, carried=carried))


@pytest.mark.parametrize("case", [case for case in CASES if "refused" in case], ids=lambda case: case["name"])
def test_vectors_that_must_be_refused(case: dict[str, Any]) -> None:
    payload = from_bytes(UpdatePayload, bytes.fromhex(case["bytes"]))
    with pytest.raises(DecodeError) as caught:
        read_update(payload, ex.params())
    assert caught.value.reason is Reason[case["refused"]]


def test_vector_of_the_steps() -> None:
    assert CASES[0]["steps"] == list(STEPS)
    assert STEPS[127] * SPSA_CODES_MAX < 1 << 24, "a sum of steps is exact in float32"


def test_an_update_of_another_codec_is_refused_by_the_form() -> None:
    with pytest.raises(DecodeError, match="the task takes SIGN_DENSE") as caught:
        check_payload(ex.payload(), ex.params(), UpdateForm(codec=Codec.SIGN_DENSE))
    assert caught.value.reason is Reason.CODEC


def test_frozen_tensors_are_not_accepted() -> None:
    form = UpdateForm(codec=Codec.INT8_DENSE, carried=(1,))
    with pytest.raises(DecodeError) as caught:
        check_payload(ex.payload(), ex.params(), form)
    assert caught.value.reason is Reason.SHAPE
    bias = replace(ex.payload(), tensors=ex.payload().tensors[1:])
    opened = check_payload(bias, ex.params(), form)
    assert [sent is None for sent in opened] == [True, False]


def test_more_values_than_the_share_are_refused() -> None:
    model, share_q16 = large_model(100), (1 << 16) // 10
    assert kept_count(100, share_q16 / 65_536) == 10
    form = UpdateForm(codec=Codec.INT8_TOPK, top_share_q16=share_q16)
    check_payload(one(Codec.INT8_TOPK, bytes([10]) + bytes(10) + b"\x01" * 10), model, form)
    with pytest.raises(DecodeError, match="share") as caught:
        check_payload(one(Codec.INT8_TOPK, bytes([11]) + bytes(11) + b"\x01" * 11), model, form)
    assert caught.value.reason is Reason.SHAPE


@pytest.mark.parametrize("codec", Codec, ids=lambda codec: codec.name)
def test_no_honest_blob_is_longer_than_the_form_allows(codec: Codec) -> None:
    """The bound is near what the widest update takes, so that it also bounds what a hostile device can send."""
    model = large_model(1_001)
    form = UpdateForm(codec=codec, top_share_q16=(1 << 16) // 8 if codec is Codec.INT8_TOPK else 1 << 16)
    gaps = b"".join(bytes([0]) for _ in range(125)) + b"\xeb\x06"  # 126 values, the last one at the very end
    widest = {
        Codec.INT8_DENSE: bytes(1_001),
        Codec.INT8_OUTPUT: bytes(1_001),
        Codec.INT16_DENSE: bytes(2_002),
        Codec.INT4_DENSE: bytes(501),
        Codec.SIGN_DENSE: bytes(1 + 126),
        Codec.INT8_TOPK: b"\x7e" + gaps + b"\x01" * 126,
        Codec.SPSA: bytes(8 + SPSA_CODES_MAX),
    }[codec]
    payload = one(codec, widest, name="spsa" if codec is Codec.SPSA else "w")
    blob = to_bytes(payload)
    assert upload_check(model, form)(replace(ex.manifest(), codec=codec), blob) is Reason.NONE
    assert len(blob) <= blob_bytes_max(model, form) <= len(widest) + 200
    if codec is Codec.SPSA:
        assert len(blob) <= 64


def test_a_few_bytes_do_not_become_megabytes_before_they_are_asked_for() -> None:
    """The largest model there may be, updates of every small kind, opened and checked."""
    model = large_model()
    payloads = [
        one(Codec.SPSA, bytes(8) + b"\x28" * SPSA_CODES_MAX, name="spsa"),
        one(Codec.INT8_TOPK, b"\x01\x00\x01"),
        one(Codec.SIGN_DENSE, b"\x01" + bytes(PARAMETERS_MAX // 8)),
        one(Codec.INT4_DENSE, bytes(PARAMETERS_MAX // 2)),
    ]
    blobs = [to_bytes(payload) for payload in payloads]
    for blob, payload in zip(blobs, payloads, strict=True):
        tracemalloc.start()
        check_update(model, payload, UpdateForm(codec=payload.codec))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2 * len(blob) + MIB


def test_a_claimed_count_allocates_nothing() -> None:
    data = b"\xff\xff\xff\x01" + bytes(64)  # 2**22 - 1 values in 64 bytes
    tracemalloc.start()
    with pytest.raises(DecodeError):
        read_topk(data, PARAMETERS_MAX)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < MIB // 8


def test_a_peak_that_might_leave_the_range_is_looked_at_value_by_value() -> None:
    """The bound of an SPSA message is loose: directions seldom agree. Only a value that leaves is refused."""
    base = np.full(BLOCK + 8, MODEL_VALUE_MAX - 1_000, "<i4")
    tensor = replace(large_model(base.size).tensors[0], values=base.tobytes())
    small = one(Codec.SPSA, bytes(8) + b"\x28\xd8" * 16, name="spsa")
    values = next(sent.values for sent in read_update(small, ModelParams(tensors=(tensor,))) if sent)
    assert values.peak() == 32 * STEPS[40] > 1_000
    highest = max(int(values[slice(0, BLOCK)].max()), int(values[slice(BLOCK, base.size)].max()))
    fitting = replace(tensor, values=np.full(base.size, MODEL_VALUE_MAX - highest, "<i4").tobytes())
    check_update(ModelParams(tensors=(fitting,)), small, UpdateForm(codec=Codec.SPSA))
    full = replace(tensor, values=np.full(base.size, MODEL_VALUE_MAX - highest + 1, "<i4").tobytes())
    with pytest.raises(DecodeError) as caught:
        check_update(ModelParams(tensors=(full,)), small, UpdateForm(codec=Codec.SPSA))
    assert caught.value.reason is Reason.OUT_OF_BOUNDS
