"""Golden vectors of the update codecs: ``tests/vectors/payloads.json``, written by ``python -m tools.make_vectors``.

Every case is an update of the model of ``messages.json``: a weight of shape (2, 3) at 2**-16 with one channel per row,
and a bias of 2 at 2**-20. ``values`` are the integers after alignment, tensor by tensor; null: the task does not carry
that tensor. A case without them must be refused.
"""

from __future__ import annotations

from typing import Any, Final

from edge_sdk.protocol.messages import Codec, PayloadTensor, UpdatePayload
from edge_sdk.protocol.wire import to_bytes
from edge_sdk.training.codecs.spsa import STEPS
from edge_sdk.training.delta import decode_aligned
from tools import vector_examples as ex

Case = dict[str, Any]
Tensors = tuple[PayloadTensor, ...]

SEED: Final = bytes(range(8))


def payload_cases() -> list[Case]:
    """Every codec, read and refused."""
    cases: list[Case] = [{"name": "steps of the SPSA codes", "steps": list(STEPS)}]
    cases += [_read(name, codec, tensors, carried) for name, codec, tensors, carried in _accepted()]
    cases += [_refused(*case) for case in _refusals()]
    return cases


def _accepted() -> list[tuple[str, Codec, Tensors, tuple[int, ...] | None]]:
    return [
        ("int8", Codec.INT8_DENSE, pair("01ff7f810002", "05fb"), None),
        ("int8, the weight is frozen", Codec.INT8_DENSE, pair("01ff7f810002", "05fb")[1:], (1,)),
        ("int16", Codec.INT16_DENSE, pair("0100ffffff7f008000000200", "05000080"), None),
        ("top-k: places 0, 1 and 5; nothing of the bias", Codec.INT8_TOPK, pair("030000037f81ff", "00"), None),
        ("top-k: nothing at all", Codec.INT8_TOPK, pair("00", "00"), None),
        ("int4: low half first", Codec.INT4_DENSE, pair("f17f28", "1f"), None),
        ("signs: 200 and 0 per row, 7 for the bias", Codec.SIGN_DENSE, pair("c80005", "0702"), None),
        ("output layer", Codec.INT8_OUTPUT, pair("01ff7f810002", "05fb")[:1], (0,)),
        ("SPSA: one direction", Codec.SPSA, probes("28"), None),
        ("SPSA: forwards, nothing, backwards", Codec.SPSA, probes("0100ff"), None),
        ("SPSA: the largest steps", Codec.SPSA, probes("7f81" * 16), None),
        ("SPSA: the weight is frozen", Codec.SPSA, probes("28"), (1,)),
    ]


def _refusals() -> list[tuple[str, Codec, Tensors, str]]:
    dense = pair("01ff7f810002", "05fb")
    return [
        ("int8: a byte too few", Codec.INT8_DENSE, pair("01ff7f8100", "05fb"), "SHAPE"),
        ("int8: a byte too many", Codec.INT8_DENSE, pair("01ff7f81000200", "05fb"), "SHAPE"),
        ("int8: tensors in another order", Codec.INT8_DENSE, dense[::-1], "SHAPE"),
        ("int8: a tensor is missing", Codec.INT8_DENSE, dense[:1], "SHAPE"),
        ("int8: a tensor twice", Codec.INT8_DENSE, (dense[0], *dense), "SHAPE"),
        ("int8: finer than the model", Codec.INT8_DENSE, pair("01ff7f810002", "05fb", exponent=-17), "EXPONENT"),
        ("int8: too coarse", Codec.INT8_DENSE, pair("01ff7f810002", "05fb", exponent=9), "EXPONENT"),
        ("top-k: empty", Codec.INT8_TOPK, pair("", "00"), "SHAPE"),
        ("top-k: more values than the tensor has", Codec.INT8_TOPK, pair("07" + "00" * 7 + "01" * 7, "00"), "SHAPE"),
        ("top-k: a place beyond the end", Codec.INT8_TOPK, pair("010601", "00"), "SHAPE"),
        ("top-k: the second place beyond the end", Codec.INT8_TOPK, pair("0202030101", "00"), "SHAPE"),
        ("top-k: announces three, holds two", Codec.INT8_TOPK, pair("0300000101", "00"), "SHAPE"),
        ("top-k: announces two, holds three", Codec.INT8_TOPK, pair("02000000010101", "00"), "SHAPE"),
        ("top-k: announces 2**28", Codec.INT8_TOPK, pair("ffffff7f0001", "00"), "SHAPE"),
        ("top-k: a count without end", Codec.INT8_TOPK, pair("ffffffffff7f", "00"), "MALFORMED"),
        ("top-k: a gap without end", Codec.INT8_TOPK, pair("018001", "00"), "MALFORMED"),
        ("top-k: a gap in two bytes", Codec.INT8_TOPK, pair("01800001", "00"), "MALFORMED"),
        ("top-k: a gap of 35 bits", Codec.INT8_TOPK, pair("01808080800101", "00"), "MALFORMED"),
        ("top-k: zero is sent", Codec.INT8_TOPK, pair("010000", "00"), "MALFORMED"),
        ("int4: a byte too many", Codec.INT4_DENSE, pair("f17f2800", "1f"), "SHAPE"),
        ("signs: no magnitudes", Codec.SIGN_DENSE, pair("05", "0702"), "SHAPE"),
        ("signs: a bit behind the last", Codec.SIGN_DENSE, pair("c80045", "0702"), "MALFORMED"),
        ("SPSA: no codes", Codec.SPSA, probes(""), "SHAPE"),
        ("SPSA: 33 codes", Codec.SPSA, probes("01" * 33), "SHAPE"),
        ("SPSA: -128", Codec.SPSA, probes("80"), "MALFORMED"),
        ("SPSA: two messages", Codec.SPSA, probes("01") * 2, "SHAPE"),
        ("SPSA: by the name of a tensor", Codec.SPSA, dense[:1], "SHAPE"),
        ("SPSA: finer than a tensor", Codec.SPSA, probes("01", exponent=-17), "EXPONENT"),
    ]


def pair(weight: str, bias: str, *, exponent: int = -12) -> Tensors:
    """Both tensors, from hex."""
    return (
        PayloadTensor(name="fc.weight", exponent=exponent, values=bytes.fromhex(weight)),
        PayloadTensor(name="fc.bias", exponent=-14, values=bytes.fromhex(bias)),
    )


def probes(codes: str, *, exponent: int = -16) -> Tensors:
    """An SPSA message, from hex."""
    return (PayloadTensor(name="spsa", exponent=exponent, values=SEED + bytes.fromhex(codes)),)


def _read(name: str, codec: Codec, tensors: Tensors, carried: tuple[int, ...] | None) -> Case:
    payload = UpdatePayload(codec=codec, tensors=tensors)
    aligned = decode_aligned(payload, ex.params(), carried)
    values = [aligned[t.name].tolist() if t.name in aligned else None for t in ex.params().tensors]
    return {"name": name, "bytes": to_bytes(payload), "carried": carried, "values": values}


def _refused(name: str, codec: Codec, tensors: Tensors, reason: str) -> Case:
    payload = UpdatePayload(codec=codec, tensors=tensors)
    return {"name": name, "bytes": to_bytes(payload), "carried": None, "refused": reason}
