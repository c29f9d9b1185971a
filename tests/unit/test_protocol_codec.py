"""The codec's bounds, on both sides, and that no claim of a peer is paid for in memory."""

import tracemalloc
from typing import Any

import pytest

from edge_sdk.errors import DecodeError, LocalProtocolError
from edge_sdk.protocol.codec import decode, encode
from edge_sdk.protocol.limits import CBOR_DEPTH_MAX, CBOR_ITEMS_MAX
from edge_sdk.protocol.messages import Algorithm, Domain, Reason


def nested(levels: int) -> Any:
    value: Any = 0
    for _ in range(levels):
        value = [value]
    return value


def test_deepest_value_passes_and_one_level_more_does_not() -> None:
    data = encode(nested(CBOR_DEPTH_MAX))
    assert decode(data, bytes_max=len(data)) == nested(CBOR_DEPTH_MAX)
    with pytest.raises(LocalProtocolError):
        encode(nested(CBOR_DEPTH_MAX + 1))
    with pytest.raises(DecodeError):
        decode(b"\x81" + data, bytes_max=64)


def test_most_items_pass_and_one_more_does_not() -> None:
    data = encode([0] * (CBOR_ITEMS_MAX - 1))
    assert len(decode(data, bytes_max=len(data))) == CBOR_ITEMS_MAX - 1  # type: ignore[arg-type]
    with pytest.raises(DecodeError, match="too many items"):
        decode(encode([0] * CBOR_ITEMS_MAX), bytes_max=1 << 20)
    assert decode(encode([0] * CBOR_ITEMS_MAX), bytes_max=1 << 20, items_max=CBOR_ITEMS_MAX + 1)


def test_map_keys_count_as_items() -> None:
    assert decode(encode({0: 0, 1: 0}), bytes_max=8, items_max=5) == {0: 0, 1: 0}
    with pytest.raises(DecodeError, match="too many items"):
        decode(encode({0: 0, 1: 0}), bytes_max=8, items_max=4)


def test_input_longer_than_the_bound_is_refused_by_name() -> None:
    with pytest.raises(DecodeError) as caught:
        decode(encode(b"12345"), bytes_max=5)
    assert caught.value.reason is Reason.OVERSIZE


@pytest.mark.parametrize(
    "value",
    [
        1.0,
        float("nan"),
        1 << 64,
        -(1 << 64) - 1,
        {1.0},
        bytearray(b"x"),
        {"a": 1},
        {-1: 0},
        {256: 0},
        {True: 0},
        object(),
        "\ud800",
    ],
    ids=repr,
)
def test_values_without_a_place_in_the_contract_are_our_own_mistake(value: object) -> None:
    with pytest.raises(LocalProtocolError):
        encode([value])


def test_enumerations_are_encoded_as_their_values() -> None:
    assert encode([Algorithm.ES256, Domain.TICK, Reason.STALE]) == encode([-7, "fl/tick", 11])


def test_maps_are_sorted() -> None:
    assert encode({24: 0, 3: 1, 255: 2}) == encode({255: 2, 24: 0, 3: 1}) == bytes.fromhex("a303011818 0018ff02")


CLAIMS = [
    "5b00000000ffffffff",
    "7b00000000ffffffff",
    "9b00000000ffffffff",
    "bb00000000ffffffff",
    "81" * 8 + "9affffffff",
]


@pytest.mark.parametrize("claim", CLAIMS)
def test_a_claimed_length_costs_no_memory(claim: str) -> None:
    data = bytes.fromhex(claim)
    tracemalloc.start()
    try:
        with pytest.raises(DecodeError):
            decode(data, bytes_max=1 << 20)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 64 * 1024


def test_a_refused_megabyte_is_not_copied() -> None:
    data = encode(bytes(1 << 20)) + b"\0"
    tracemalloc.start()
    try:
        with pytest.raises(DecodeError, match="trailing"):
            decode(data, bytes_max=1 << 21)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 64 * 1024
