"""One value, one encoding: whatever bytes come, they are refused or they are the only encoding of what they mean."""

import cbor2
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.errors import DecodeError
from edge_sdk.protocol.codec import decode, encode
from edge_sdk.protocol.limits import CBOR_KEY_MAX

INTEGERS = st.one_of(
    st.integers(-(1 << 64), (1 << 64) - 1),
    st.sampled_from([edge + step for edge in (24, 1 << 8, 1 << 16, 1 << 32) for step in (-1, 0, 1)]),
)
LEAVES = st.one_of(st.none(), st.booleans(), INTEGERS, st.binary(max_size=300), st.text(max_size=300))
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=30), st.dictionaries(st.integers(0, CBOR_KEY_MAX), inner, max_size=30)
    ),
    max_leaves=20,
).filter(lambda value: depth(value) <= 8)


def depth(value: object) -> int:
    if isinstance(value, list):
        return 1 + max(map(depth, value), default=-1)
    if isinstance(value, dict):
        return 1 + max(map(depth, value.values()), default=-1)
    return 0


@given(VALUES)
def test_round_trip(value: object) -> None:
    data = encode(value)
    assert decode(data, bytes_max=len(data)) == value
    assert cbor2.loads(data) == value


@given(VALUES, st.data())
def test_changed_bytes_are_refused_or_mean_exactly_themselves(value: object, draw: st.DataObject) -> None:
    data = bytearray(encode(value))
    for _ in range(draw.draw(st.integers(1, 3))):
        at = draw.draw(st.integers(0, len(data)))
        match draw.draw(st.sampled_from(["insert", "delete", "replace"])):
            case "insert":
                data.insert(at, draw.draw(st.integers(0, 255)))
            case "delete":
                del data[at : at + 1]
            case _:
                data[at : at + 1] = bytes([draw.draw(st.integers(0, 255))])
    check_any(bytes(data))


@given(st.binary(max_size=64))
def test_any_bytes_are_refused_or_mean_exactly_themselves(data: bytes) -> None:
    check_any(data)


def test_every_short_input() -> None:
    """All inputs of at most two bytes: the whole space of first heads."""
    accepted = 0
    for number in range(1 << 16):
        accepted += check_any(number.to_bytes(2))
    for number in range(1 << 8):
        accepted += check_any(bytes([number]))
    # One byte: 24 + 24 integers, b"", "", [], {}, false, true, null. Two bytes: 232 + 232 integers, 256 byte strings of
    # one byte, 128 texts of one character, and an array of any of the 55 values of one byte.
    assert accepted == 55 + 464 + 256 + 128 + 55


def check_any(data: bytes) -> bool:
    """Whether the bytes are accepted; if so, they are the encoding of their value."""
    try:
        value = decode(data, bytes_max=1 << 16)
    except DecodeError:
        return False
    assert encode(value) == data
    assert cbor2.loads(data) == value
    return True
