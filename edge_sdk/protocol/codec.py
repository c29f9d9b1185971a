"""Deterministic CBOR (RFC 8949 section 4.2), the small part that the contract needs.

Values are integers of 64 bits, byte strings, text, booleans, null, arrays, and maps with small non-negative integer
keys: every value has exactly one encoding, so that a digest or a signature over it means one thing. Floats, tags,
undefined and indefinite lengths do not exist here.

``cbor2`` alone accepts non-minimal integers, unsorted and duplicate keys and trailing bytes, and its ``canonical``
order is that of RFC 7049, which agrees with RFC 8949 for integer keys only. So the raw bytes are walked first: nothing
is built, and nothing allocated for a claimed length, before the whole input has proved to be well-formed.
"""

from __future__ import annotations

from typing import Final

import cbor2

from edge_sdk.errors import DecodeError, LocalProtocolError
from edge_sdk.protocol.limits import CBOR_DEPTH_MAX, CBOR_ITEMS_MAX, CBOR_KEY_MAX
from edge_sdk.protocol.messages import Reason

# Major types, RFC 8949 section 3.1.
_UNSIGNED: Final = 0
_NEGATIVE: Final = 1
_BYTES: Final = 2
_TEXT: Final = 3
_ARRAY: Final = 4
_MAP: Final = 5
_SIMPLE: Final = 7

_SIMPLE_VALUES: Final = frozenset({20, 21, 22})
"""false, true, null."""
_SHORTEST: Final = (24, 1 << 8, 1 << 16, 1 << 32)
"""Smallest argument that needs 1, 2, 4, 8 bytes."""


def encode(value: object) -> bytes:
    """Encode a value in its only form.

    Raises:
        LocalProtocolError: the value has no encoding here (a float, a big integer, another type, a key that is not a
        small non-negative integer) or is nested
            too deeply.
    """
    _check_value(value, depth=0)
    try:
        return cbor2.dumps(value, canonical=True)
    except UnicodeEncodeError as error:
        raise LocalProtocolError("text that UTF-8 cannot carry") from error


def decode(data: bytes, *, bytes_max: int, items_max: int = CBOR_ITEMS_MAX) -> object:
    """Decode bytes that are exactly one value in its only form; arrays come as lists.

    Args:
        data: Untrusted bytes.
        bytes_max: Longest input that the caller accepts.
        items_max: Most data items and map keys, at all levels together.

    Raises:
        DecodeError: they are not. ``reason`` is ``OVERSIZE`` for too many bytes, else ``MALFORMED``.

    Cost: O(items) in Python; the content of byte strings is copied once and not looked at.
    """
    if len(data) > bytes_max:
        raise DecodeError(f"{len(data)} bytes, at most {bytes_max} are accepted", reason=Reason.OVERSIZE)
    _Walker(data, items_max).walk()
    try:
        return cbor2.loads(data)
    except cbor2.CBORDecodeError as error:  # all that is left is text that is not UTF-8
        raise DecodeError(f"not CBOR: {error}", reason=Reason.MALFORMED) from error


def _check_value(value: object, *, depth: int) -> None:
    if depth > CBOR_DEPTH_MAX:
        raise LocalProtocolError(f"a value is nested more than {CBOR_DEPTH_MAX} levels deep")
    match value:
        case bool() | None | bytes() | str():
            return
        case int():
            if not -(1 << 64) <= value < 1 << 64:
                raise LocalProtocolError("an integer does not fit into 64 bits")
        case list() | tuple():
            for item in value:
                _check_value(item, depth=depth + 1)
        case dict():
            for key, item in value.items():
                if type(key) is not int or not 0 <= key <= CBOR_KEY_MAX:
                    raise LocalProtocolError(f"map key {key!r} is not an integer in 0..{CBOR_KEY_MAX}")
                _check_value(item, depth=depth + 1)
        case _:
            raise LocalProtocolError(f"{type(value).__name__} has no encoding in the contract")


class _Walker:
    """Reads the heads of all items, in order, and never more than there is."""

    def __init__(self, data: bytes, items_max: int) -> None:
        self._data = data
        self._position = 0
        self._items_left = items_max

    def walk(self) -> None:
        self._item(depth=0)
        if self._position != len(self._data):
            raise _malformed(f"{len(self._data) - self._position} trailing bytes")

    def _item(self, *, depth: int) -> None:
        if depth > CBOR_DEPTH_MAX:
            raise _malformed(f"nested more than {CBOR_DEPTH_MAX} levels deep")
        major, argument = self._head()
        if major in (_BYTES, _TEXT):
            self._check_left(argument)
            self._position += argument
        elif major == _ARRAY:
            self._check_left(argument)  # an item takes at least one byte, so a huge count ends here
            for _ in range(argument):
                self._item(depth=depth + 1)
        elif major == _MAP:
            self._check_left(2 * argument)
            self._map(argument, depth=depth)

    def _map(self, count: int, *, depth: int) -> None:
        previous = -1
        for _ in range(count):
            major, key = self._head()
            if major != _UNSIGNED or key > CBOR_KEY_MAX:
                raise _malformed(f"a map key is not an integer in 0..{CBOR_KEY_MAX}")
            if key <= previous:
                raise _malformed("map keys are not in ascending order, each once")
            previous = key
            self._item(depth=depth + 1)

    def _head(self) -> tuple[int, int]:
        """Read the head of an item or key: its major type and its argument."""
        self._items_left -= 1
        if self._items_left < 0:
            raise _malformed("too many items")
        self._check_left(1)
        major, info = divmod(self._data[self._position], 32)
        self._position += 1
        if major == _SIMPLE:
            if info not in _SIMPLE_VALUES:
                raise _malformed("a float or a simple value other than false, true, null")
            return major, info
        if major not in (_UNSIGNED, _NEGATIVE, _BYTES, _TEXT, _ARRAY, _MAP):
            raise _malformed("a tag")
        if info < 24:
            return major, info
        if info > 27:
            raise _malformed("an indefinite or reserved length")
        size = 1 << (info - 24)
        self._check_left(size)
        argument = int.from_bytes(self._data[self._position : self._position + size])
        self._position += size
        if argument < _SHORTEST[info - 24]:
            raise _malformed("an integer or length is not in its shortest form")
        return major, argument

    def _check_left(self, count: int) -> None:
        if count > len(self._data) - self._position:
            raise _malformed(f"{count} bytes or items claimed, {len(self._data) - self._position} bytes left")


def _malformed(text: str) -> DecodeError:
    return DecodeError(f"not deterministic CBOR: {text}", reason=Reason.MALFORMED)
