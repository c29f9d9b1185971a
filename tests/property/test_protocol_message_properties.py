"""Every message that the table allows goes over the wire and comes back; what else comes is refused, or does too."""

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_sdk.errors import DecodeError
from edge_sdk.protocol import fields as f
from edge_sdk.protocol import messages as m
from edge_sdk.protocol.schema import TABLE, _Range
from edge_sdk.protocol.wire import from_bytes, to_bytes

EXAMPLES = settings().max_examples // 5
"""Per class: there are many."""
SIZE_MAX = 40
"""Longest byte string or text that is drawn where the contract allows more."""


def values(field: f.Field) -> st.SearchStrategy[Any]:  # noqa: PLR0911 - one return for each kind of field
    """Values of one field, from the table itself."""
    match field:
        case f.Int(minimum, maximum):
            return st.one_of(st.integers(minimum, maximum), st.sampled_from([minimum, maximum]))
        case f.Bytes(minimum, maximum):
            return st.binary(min_size=minimum, max_size=max(minimum, min(maximum, SIZE_MAX)))
        case f.Text(minimum, _):
            return st.text(min_size=minimum, max_size=10)
        case f.Name():
            return st.from_regex(r"[a-z0-9]([a-z0-9-]{0,46}[a-z0-9])?", fullmatch=True)
        case f.Bool():
            return st.booleans()
        case f.Choice(members):
            return st.sampled_from(list(members))
        case f.Array(_Range()):
            edges = st.lists(st.integers(0, 1 << 24), min_size=2, max_size=8, unique=True).map(sorted)
            return edges.map(lambda found: tuple(zip(found[::2], found[1::2], strict=False)))
        case f.Array(f.Record(cls=m.MinerRecord) as item):
            return st.lists(
                values(item), min_size=1, max_size=4, unique_by=(lambda r: r.miner_id, lambda r: r.key)
            ).map(tuple)
        case f.Array(item, minimum, maximum):
            return st.lists(values(item), min_size=minimum, max_size=min(maximum, 4)).map(tuple)
        case f.Nullable(inner):
            return st.none() | values(inner)
        case f.Record():
            return message(field)
        case _:
            raise AssertionError(field)


def message(record: f.Record) -> st.SearchStrategy[Any]:
    """Messages of one class; those whose fields depend on each other are drawn together."""
    match record.cls:
        case m.PublicKey:
            ed25519 = st.binary(min_size=32, max_size=32).map(
                lambda data: m.PublicKey(algorithm=m.Algorithm.EDDSA, data=data)
            )
            p256 = st.binary(min_size=64, max_size=64).map(
                lambda data: m.PublicKey(algorithm=m.Algorithm.ES256, data=b"\x04" + data)
            )
            return ed25519 | p256
        case m.ModelTensor:
            return tensors()
        case _:
            drawn = st.fixed_dictionaries({name: values(field) for name, field in record.fields.items()})
            return drawn.map(_repair(record.cls)).map(lambda found: record.cls(**found))


def _repair(cls: type) -> Any:
    def repair(found: dict[str, Any]) -> dict[str, Any]:
        if cls is m.InclusionProof:
            found["index"] %= found["size"]
        if cls is m.TaskParams:
            found["carried"] = tuple(sorted(set(found["carried"]))) if found["carried"] else None
            found["top_share_q16"] = (found["top_share_q16"] or 1) if found["codec"] is m.Codec.INT8_TOPK else None
        if cls is m.Scores:
            found["classes"] = (b"\0",) * (len(found["updates"]) + 1) if found["classes"] else ()
        return found

    return repair


@st.composite
def tensors(draw: st.DrawFn) -> m.ModelTensor:
    """Tensors whose parts fit together."""
    shape = tuple(draw(st.lists(st.integers(1, 3), max_size=4)))
    count = 1
    for extent in shape:
        count *= extent
    axis = draw(st.integers(-1, len(shape) - 1))
    channels = 0 if axis < 0 else shape[axis]
    return m.ModelTensor(
        name=draw(st.text(min_size=1, max_size=10)),
        shape=shape,
        exponent=draw(st.integers(-60, 30)),
        channel_axis=axis,
        values=draw(st.binary(min_size=4 * count, max_size=4 * count)),
        scale_m=draw(st.binary(min_size=channels, max_size=channels)),
        scale_k=draw(st.binary(min_size=channels, max_size=channels)),
    )


@pytest.mark.parametrize("cls", TABLE, ids=lambda cls: cls.__name__)
@settings(max_examples=EXAMPLES, suppress_health_check=[HealthCheck.too_slow])
@given(draw=st.data())
def test_round_trip(cls: type, draw: st.DataObject) -> None:
    found: object = draw.draw(message(TABLE[cls]))
    data = to_bytes(found)
    assert from_bytes(cls, data) == found


@pytest.mark.parametrize("cls", TABLE, ids=lambda cls: cls.__name__)
@settings(max_examples=EXAMPLES, suppress_health_check=[HealthCheck.too_slow])
@given(draw=st.data())
def test_a_changed_byte_is_refused_or_another_message(cls: type, draw: st.DataObject) -> None:
    found: object = draw.draw(message(TABLE[cls]))
    data = bytearray(to_bytes(found))
    at = draw.draw(st.integers(0, len(data) - 1))
    data[at] ^= draw.draw(st.integers(1, 255))
    try:
        other: object = from_bytes(cls, bytes(data))
    except DecodeError as error:
        reason = error.reason
    else:
        assert other != found
        assert to_bytes(other) == data
        return
    assert reason is not None
