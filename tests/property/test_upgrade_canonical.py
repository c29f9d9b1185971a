"""Canonical JSON is that of securesystemslib, and reading is strict."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from securesystemslib.formats import encode_canonical

from edge_sdk.errors import DecodeError
from edge_sdk.upgrade.canonical import DEPTH_MAX, INTEGER_MAX, Json, encode, parse

TEXTS = st.text(st.characters(codec="utf-8"), max_size=20)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-INTEGER_MAX, INTEGER_MAX) | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=8,  # so no deeper than what is read
)


@given(st.dictionaries(TEXTS, VALUES, max_size=5))
def test_bytes_are_those_of_securesystemslib(document: dict[str, Json]) -> None:
    expected = encode_canonical(document)
    assert expected is not None
    assert encode(document).decode() == expected


@given(st.dictionaries(TEXTS, VALUES, max_size=5))
def test_what_is_read_is_what_was_written(document: dict[str, Json]) -> None:
    assert parse(json.dumps(document).encode(), bytes_max=2**20) == document


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"a": 1, "a": 2}', "twice"),
        ('{"a": {"b": 1, "b": 1}}', "twice"),
        ('{"a": 1.5}', "not an integer"),
        ('{"a": 1e400}', "not an integer"),
        ('{"a": NaN}', "not an integer"),
        ('{"a": -Infinity}', "not an integer"),
        ('{"a": 9007199254740993}', "beyond"),
        ('{"a": ' + "9" * 5000 + "}", "not JSON"),
        ("[1]", "not a JSON object"),
        ("", "not JSON"),
        ('{"a": ' + "[" * DEPTH_MAX + "]" * DEPTH_MAX + "}", "deeper"),
        ('{"a": ' + "[" * 100_000 + "}", "not JSON"),
        ('{"a": "' + "x" * 2**20 + '"}', "at most"),
        ("\ufeff{}", "not JSON"),
        ('{"a": "\udcff"}', "not JSON"),
    ],
)
def test_two_readers_could_see_two_documents(text: str, why: str) -> None:
    with pytest.raises(DecodeError, match=why):
        parse(text.encode(errors="surrogateescape"), bytes_max=2**20)


def test_lone_surrogate_has_no_canonical_bytes() -> None:
    with pytest.raises(DecodeError):
        encode(parse(b'{"a": "\\ud800"}', bytes_max=100))
