"""Frozen records of the state <-> plain CBOR values: fields in order as an array, nothing else.

The snapshot of a miner is its own file, but it is read back with the same distrust as a message: a wrong type, a
wrong count or an unknown enum value is a ``DecodeError``.
"""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cache
from types import NoneType, UnionType
from typing import TypeVar, Union, cast, get_args, get_origin, get_type_hints

from edge_sdk.errors import DecodeError
from edge_sdk.protocol import codec

T = TypeVar("T")


def pack(value: object) -> object:
    """Turn a record, or a tuple of records or scalars, into values that the codec encodes."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, tuple):
        return [pack(item) for item in value]
    if is_dataclass(value) and not isinstance(value, type):
        return [pack(getattr(value, name)) for name, _ in _columns(type(value))]
    return value


def unpack(cls: type[T], plain: object) -> T:
    """Build a record from what ``pack`` made.

    Raises:
        DecodeError: it is not a record of this class.
    """
    return cast("T", _value(cls, plain))


def to_bytes(value: object) -> bytes:
    """Encode a record."""
    return codec.encode(pack(value))


def from_bytes(cls: type[T], data: bytes, *, bytes_max: int) -> T:
    """Decode a record.

    Raises:
        DecodeError: the bytes are not a record of this class.
    """
    return unpack(cls, codec.decode(data, bytes_max=bytes_max))


@cache
def _columns(cls: type) -> tuple[tuple[str, object], ...]:
    hints = get_type_hints(cls)
    return tuple((field.name, hints[field.name]) for field in fields(cls))


def _value(hint: object, plain: object) -> object:
    origin = get_origin(hint)
    if origin is tuple:
        return _tuple(get_args(hint), plain)
    if origin in (Union, UnionType):
        options = [option for option in get_args(hint) if option is not NoneType]
        return None if plain is None else _value(options[0], plain)
    supertype = getattr(hint, "__supertype__", None)  # NewType of a name or a digest
    if supertype is not None:
        return _value(supertype, plain)
    if not isinstance(hint, type):
        raise TypeError(f"a record cannot hold {hint}")
    if is_dataclass(hint):
        columns = _columns(hint)
        items = _list(plain)
        if len(items) != len(columns):
            raise DecodeError(f"{hint.__name__} has {len(items)} fields, expected {len(columns)}")
        return hint(**{name: _value(inner, item) for (name, inner), item in zip(columns, items, strict=True)})
    if issubclass(hint, Enum):
        try:
            return hint(plain)
        except ValueError as error:
            raise DecodeError(str(error)) from error
    if type(plain) is not hint:
        raise DecodeError(f"found {type(plain).__name__}, expected {hint.__name__}")
    return plain


def _tuple(arguments: tuple[object, ...], plain: object) -> tuple[object, ...]:
    items = _list(plain)
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        return tuple(_value(arguments[0], item) for item in items)
    if len(items) != len(arguments):
        raise DecodeError(f"a tuple has {len(items)} items, expected {len(arguments)}")
    return tuple(_value(argument, item) for argument, item in zip(arguments, items, strict=True))


def _list(plain: object) -> list[object]:
    if not isinstance(plain, list):
        raise DecodeError(f"found {type(plain).__name__}, expected an array")
    return plain
