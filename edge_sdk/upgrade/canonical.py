"""JSON as The Update Framework signs it: strict in, canonical out.

Signatures of TUF cover the *OLPC canonical JSON* of the ``signed`` part: keys sorted, no space, only backslash and
quote escaped, integers only. Parsing is stricter than ``json.loads``: a name twice, a fraction or a NaN is refused,
because two readers could see two documents in them.

Source: TUF specification 1.0.33, section 4.2; wiki.laptop.org/go/Canonical_JSON.
"""

from __future__ import annotations

import json
from typing import Final, NoReturn, TypeAlias

from edge_sdk.errors import DecodeError

Json: TypeAlias = "bool | int | str | list[Json] | dict[str, Json] | None"

DEPTH_MAX: Final = 16
INTEGER_MAX: Final = 2**53
"""Larger ones are not the same number in every reader."""


def parse(data: bytes, *, bytes_max: int) -> dict[str, Json]:
    """Read one JSON object.

    Raises:
        DecodeError: too long, no object, a name twice, a number that is no integer, or nested too deep.
    """
    if len(data) > bytes_max:
        raise DecodeError(f"{len(data)} bytes of JSON, expected at most {bytes_max}")
    try:
        # Decoded here: given bytes, json would guess between UTF-8, 16 and 32.
        document = json.loads(
            data.decode("utf-8"), object_pairs_hook=_object, parse_float=_refuse, parse_constant=_refuse
        )
    except (ValueError, RecursionError) as error:
        raise DecodeError(f"not JSON: {error}") from error
    if not isinstance(document, dict):
        raise DecodeError("not a JSON object")
    _check_depth(document, DEPTH_MAX)
    return document


def encode(value: Json) -> bytes:
    """Canonical bytes of a document.

    Raises:
        DecodeError: a text is no Unicode (a lone surrogate).
    """
    try:
        return _text(value).encode()
    except UnicodeEncodeError as error:
        raise DecodeError("a text that is not Unicode") from error


def _text(value: Json) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case int():
            return str(value)
        case str():
            return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
        case list():
            return "[" + ",".join(map(_text, value)) + "]"
        case dict():
            return "{" + ",".join(f"{_text(name)}:{_text(value[name])}" for name in sorted(value)) + "}"


def _object(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise DecodeError("a name twice in one object")
    return found


def _refuse(text: str) -> NoReturn:
    raise DecodeError(f"{text[:40]} is not an integer")


def _check_depth(value: Json, left: int) -> None:
    if left == 0:
        raise DecodeError(f"nested deeper than {DEPTH_MAX}")
    match value:
        case int() if abs(value) > INTEGER_MAX:
            raise DecodeError("an integer beyond 2^53")
        case list():
            for item in value:
                _check_depth(item, left - 1)
        case dict():
            for item in value.values():
                _check_depth(item, left - 1)
        case _:
            pass
