"""Kinds of fields: each turns a value into what the codec encodes (``lower``) and back (``lift``), within its bounds.

A message is a record of such fields; ``schema.py`` holds the table. Both directions raise ``DecodeError``; the caller
knows whose fault it is.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

from edge_sdk.errors import DecodeError
from edge_sdk.protocol.ids import check_name
from edge_sdk.protocol.limits import ENVELOPE_BYTES_MAX, TEXT_BYTES_MAX
from edge_sdk.protocol.messages import Reason


class Field(Protocol):
    """One kind of field."""

    def lower(self, value: Any) -> object:
        """Return the plain value to encode."""
        ...

    def lift(self, plain: object) -> Any:
        """Return the value that decoded bytes stand for."""
        ...


class _Plain(ABC):
    """A field whose value is encoded as it is."""

    __slots__ = ()

    def lower(self, value: Any) -> object:
        """Check and keep."""
        return self.lift(value)

    @abstractmethod
    def lift(self, plain: object) -> Any:
        """Check and keep."""


@dataclass(frozen=True, slots=True)
class Int(_Plain):
    """An integer in ``minimum..maximum``."""

    minimum: int
    maximum: int
    reason: Reason = Reason.MALFORMED
    """Of a value out of range."""

    def lift(self, plain: object) -> int:
        """Check and keep."""
        if type(plain) is not int:
            raise _mismatch("an integer", plain)
        if not self.minimum <= plain <= self.maximum:
            raise DecodeError(f"{plain} is outside of {self.minimum}..{self.maximum}", reason=self.reason)
        return plain


@dataclass(frozen=True, slots=True)
class Bytes(_Plain):
    """A byte string of ``minimum..maximum`` bytes."""

    minimum: int
    maximum: int

    def lift(self, plain: object) -> bytes:
        """Check and keep."""
        if type(plain) is not bytes:
            raise _mismatch("a byte string", plain)
        _check_count(len(plain), self.minimum, self.maximum, "bytes")
        return plain


@dataclass(frozen=True, slots=True)
class Text(_Plain):
    """Text of ``minimum..maximum`` bytes in UTF-8."""

    minimum: int = 0
    maximum: int = TEXT_BYTES_MAX

    def lift(self, plain: object) -> str:
        """Check and keep."""
        if type(plain) is not str:
            raise _mismatch("text", plain)
        try:
            size_bytes = len(plain.encode())
        except UnicodeEncodeError as error:  # a lone surrogate: only a value of our own can hold one
            raise DecodeError("text that UTF-8 cannot carry", reason=Reason.MALFORMED) from error
        _check_count(size_bytes, self.minimum, self.maximum, "bytes of text")
        return plain


@dataclass(frozen=True, slots=True)
class Name(_Plain):
    """A name by the rule of ``ids.check_name``."""

    def lift(self, plain: object) -> str:
        """Check and keep."""
        if type(plain) is not str:
            raise _mismatch("text", plain)
        return check_name(plain)


@dataclass(frozen=True, slots=True)
class Bool(_Plain):
    """A truth value."""

    def lift(self, plain: object) -> bool:
        """Check and keep."""
        if type(plain) is not bool:
            raise _mismatch("a truth value", plain)
        return plain


@dataclass(frozen=True, slots=True)
class Choice:
    """A member of an integer enumeration."""

    members: type[Enum]

    def lower(self, value: Any) -> object:
        """Return the member's number."""
        if type(value) is not self.members:
            raise _mismatch(f"a member of {self.members.__name__}", value)
        return int(value.value)

    def lift(self, plain: object) -> Enum:
        """Return the member of that number."""
        if type(plain) is not int:
            raise _mismatch("an integer", plain)
        try:
            return self.members(plain)
        except ValueError as error:
            raise DecodeError(f"{plain} is not in {self.members.__name__}", reason=Reason.MALFORMED) from error


@dataclass(frozen=True, slots=True)
class Array:
    """An array of ``minimum..maximum`` items of one kind; a tuple as a value."""

    item: Field
    minimum: int
    maximum: int
    check: Callable[[tuple[Any, ...]], None] | None = None
    """Raises ``DecodeError`` if the items do not fit together."""

    def lower(self, value: Any) -> object:
        """Lower each item."""
        if not isinstance(value, tuple):
            raise _mismatch("a tuple", value)
        _check_count(len(value), self.minimum, self.maximum, "items")
        lowered = [self.item.lower(item) for item in value]
        if self.check is not None:
            self.check(value)
        return lowered

    def lift(self, plain: object) -> tuple[Any, ...]:
        """Lift each item, once their number is known to be right."""
        if not isinstance(plain, list):
            raise _mismatch("an array", plain)
        _check_count(len(plain), self.minimum, self.maximum, "items")
        value = tuple(self.item.lift(item) for item in plain)
        if self.check is not None:
            self.check(value)
        return value


@dataclass(frozen=True, slots=True)
class Nullable:
    """A field that may be None."""

    field: Field

    def lower(self, value: Any) -> object:
        """Lower what is there."""
        return None if value is None else self.field.lower(value)

    def lift(self, plain: object) -> Any:
        """Lift what is there."""
        return None if plain is None else self.field.lift(plain)


@dataclass(frozen=True, slots=True)
class Record:
    """A message: field i of the dataclass under key i, counted from 1; no other key.

    Every key is present, except ``appended`` ones at the end: those fields came later, and a message in which they and
    all after them are None is written without them, as it was before there were any. So it keeps its bytes and digest.
    """

    cls: type
    fields: Mapping[str, Field]
    check: Callable[[Any], None] | None
    """Raises ``DecodeError`` if the fields do not fit together."""
    bytes_max: int
    """Longest encoding that is accepted."""
    appended: int = 0
    """How many fields at the end may be absent; all of them nullable."""

    def lower(self, value: Any) -> object:
        """Return the map of a message."""
        if type(value) is not self.cls:
            raise _mismatch(f"a {self.cls.__name__}", value)
        lowered: dict[int, object] = {}
        for key, (name, field) in enumerate(self.fields.items(), start=1):
            try:
                lowered[key] = field.lower(getattr(value, name))
            except DecodeError as error:
                raise self._at(name, error) from error
        if self.check is not None:
            self.check(value)
        while len(lowered) > len(self.fields) - self.appended and lowered[len(lowered)] is None:
            del lowered[len(lowered)]
        return lowered

    def lift(self, plain: object) -> Any:
        """Return the message of a map."""
        if not isinstance(plain, dict):
            raise _mismatch("a map", plain)
        count, required = len(plain), len(self.fields) - self.appended
        # The codec has refused duplicates, so n keys that include 1..n are exactly those.
        if not required <= count <= len(self.fields) or not all(key in plain for key in range(1, count + 1)):
            expected = f"1..{required}" + (f" to 1..{len(self.fields)}" if self.appended else "")
            raise DecodeError(f"{self.cls.__name__}: keys are not {expected}", reason=Reason.MALFORMED)
        if count > required and plain[count] is None:
            raise DecodeError(f"{self.cls.__name__}: key {count} says nothing", reason=Reason.MALFORMED)
        values: dict[str, Any] = {}
        for key, (name, field) in enumerate(self.fields.items(), start=1):
            try:
                values[name] = field.lift(plain.get(key))
            except DecodeError as error:
                raise self._at(name, error) from error
        value = self.cls(**values)
        if self.check is not None:
            self.check(value)
        return value

    def _at(self, name: str, error: DecodeError) -> DecodeError:
        return DecodeError(f"{self.cls.__name__}.{name}: {error}", reason=error.reason or Reason.MALFORMED)


def record(
    cls: type,
    /,
    *,
    check: Callable[[Any], None] | None = None,
    bytes_max: int = ENVELOPE_BYTES_MAX,
    appended: int = 0,
    **fields: Field,
) -> Record:
    """Make the record of a dataclass, whose fields must all be named, in their order."""
    names = [field.name for field in dataclasses.fields(cls)]
    assert names == list(fields), f"{cls.__name__}: fields are {names}"
    assert all(isinstance(fields[name], Nullable) for name in names[len(names) - appended :]), cls.__name__
    return Record(cls, fields, check, bytes_max, appended)


def _mismatch(expected: str, found: object) -> DecodeError:
    return DecodeError(f"expected {expected}, found {type(found).__name__}", reason=Reason.MALFORMED)


def _check_count(count: int, minimum: int, maximum: int, unit: str) -> None:
    if not minimum <= count <= maximum:
        raise DecodeError(f"{count} {unit}, expected {minimum}..{maximum}", reason=Reason.MALFORMED)
