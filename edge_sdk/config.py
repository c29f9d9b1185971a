"""Configuration files: a schema as data, one loader, one line per mistake.

A schema lists sections and keys with type, unit, default and bounds; ``load`` reads a TOML file against it and refuses
what the schema does not know, so that a typing mistake cannot silently mean the default. Relative paths are relative to
the file. Devices, miners and the sequencer describe their files with the same classes; ``example`` renders a schema as
a commented file.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final, TypeAlias
from urllib.parse import urlsplit

from edge_sdk.errors import ConfigError

CONFIG_BYTES_MAX: Final = 1024 * 1024
TABLES_MAX: Final = 64
"""Tables of a repeated section, entries of a free section, items of a list."""


class Kind(Enum):
    """Type of a key; the value is what an error message calls it."""

    TEXT = "text"
    INTEGER = "an integer"
    NUMBER = "a number"
    FLAG = "true or false"
    PATH = "a path"
    TEXTS = "a list of texts"


class Required(Enum):
    """Marks a key without a default."""

    REQUIRED = "required"


REQUIRED: Final = Required.REQUIRED

Value: TypeAlias = str | int | float | bool | Path | tuple[str, ...] | None


@dataclass(frozen=True, slots=True)
class Key:
    """One key of a section.

    ``default`` None makes the key optional: absent, or an empty text, reads as None. ``minimum`` and ``maximum`` bound
    numbers and, for texts and lists, the length.
    """

    name: str
    kind: Kind
    help: str
    default: str | int | float | bool | tuple[str, ...] | Required | None = REQUIRED
    unit: str = ""
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()

    @property
    def expected(self) -> str:
        """What an error message says of the key."""
        if self.choices:
            return "one of " + ", ".join(repr(choice) for choice in self.choices)
        text = self.kind.value + (f" in {self.unit}" if self.unit else "")
        low, high = _bound(self.minimum), _bound(self.maximum)
        return text + (f" ({low}..{high})" if low or high else "")


@dataclass(frozen=True, slots=True)
class Section:
    """A table of the file.

    ``repeated``: an array of tables. ``free``: its keys are the user's own, all checked by one key.
    """

    name: str
    help: str
    keys: tuple[Key, ...] = ()
    repeated: bool = False
    optional: bool = False
    """An absent repeated or free section is empty; an absent plain section takes its defaults either way."""
    free: Key | None = None


Schema: TypeAlias = Sequence[Section]


class Table:
    """Checked values of one section, read by type."""

    def __init__(self, values: Mapping[str, Value]) -> None:
        """Keep values that ``load`` has checked."""
        self._values = values

    def keys(self) -> tuple[str, ...]:
        """Names in the order of the schema; of a free section in the order of the file."""
        return tuple(self._values)

    def text(self, key: str) -> str:
        """Value of a text that is present or has a default."""
        value = self._values[key]
        assert isinstance(value, str), key
        return value

    def text_or_none(self, key: str) -> str | None:
        """Value of an optional text."""
        return None if self._values[key] is None else self.text(key)

    def integer(self, key: str) -> int:
        """Value of an integer."""
        value = self._values[key]
        assert isinstance(value, int), key
        return value

    def integer_or_none(self, key: str) -> int | None:
        """Value of an optional integer."""
        return None if self._values[key] is None else self.integer(key)

    def number(self, key: str) -> float:
        """Value of a number, finite."""
        value = self._values[key]
        assert isinstance(value, int | float), key
        return float(value)

    def number_or_none(self, key: str) -> float | None:
        """Value of an optional number."""
        return None if self._values[key] is None else self.number(key)

    def flag(self, key: str) -> bool:
        """Value of a flag."""
        value = self._values[key]
        assert isinstance(value, bool), key
        return value

    def path(self, key: str) -> Path:
        """Value of a path, relative ones resolved against the file's directory."""
        value = self._values[key]
        assert isinstance(value, Path), key
        return value

    def path_or_none(self, key: str) -> Path | None:
        """Value of an optional path."""
        return None if self._values[key] is None else self.path(key)

    def texts(self, key: str) -> tuple[str, ...]:
        """Value of a list of texts."""
        value = self._values[key]
        assert isinstance(value, tuple), key
        return value


class Values:
    """Checked values of a file."""

    def __init__(self, path: Path, tables: Mapping[str, Sequence[Table]]) -> None:
        """Keep the tables of each section; a plain section has exactly one."""
        self.path = path
        self._tables = tables

    def table(self, section: str) -> Table:
        """The table of a plain or free section."""
        (table,) = self._tables[section]
        return table

    def tables(self, section: str) -> tuple[Table, ...]:
        """The tables of a repeated section, in the order of the file."""
        return tuple(self._tables[section])


def load(path: Path, schema: Schema) -> Values:
    """Read a TOML file against a schema.

    Raises:
        ConfigError: one line, ``FILE: [section] key = found: expected ...``.
    """
    try:
        with path.open("rb") as file:
            data = file.read(CONFIG_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}: expected a TOML file") from error
    return parse(data, schema, path=path)


def parse(data: bytes, schema: Schema, *, path: Path) -> Values:
    """Check the bytes of a file; ``path`` names it in errors and resolves relative paths.

    Raises:
        ConfigError: as ``load``.
    """
    if len(data) > CONFIG_BYTES_MAX:
        raise ConfigError(f"{path}: longer than {CONFIG_BYTES_MAX} bytes: expected at most that")
    try:
        document = tomllib.loads(data.decode("utf-8"))
    except RecursionError as error:
        raise ConfigError(f"{path}: tables or lists are nested too deep: expected valid TOML") from error
    except ValueError as error:  # not TOML, not UTF-8, or an integer beyond Python's own limit
        raise ConfigError(f"{path}: {error}: expected valid TOML") from error
    known = [section.name for section in schema]
    for name, found in document.items():
        if name not in known:
            raise ConfigError(f"{path}: [{name}] = {_shown(found)}: expected one of the sections {', '.join(known)}")
    return Values(path, {section.name: _tables(document.get(section.name), section, path) for section in schema})


def example(schema: Schema) -> str:
    """A commented file with every key: required ones open, the others commented out with their default."""
    lines: list[str] = []
    for section in schema:
        lines += ["", f"# {section.help}", f"[[{section.name}]]" if section.repeated else f"[{section.name}]"]
        keys = section.keys if section.free is None else (*section.keys, section.free)
        for key in keys:
            lines.append(f"# {key.help}" if key.expected in key.help else f"# {key.help} ({key.expected})")
            if key is section.free:
                lines.append(f"# {key.name} =")
            elif key.default is None:
                lines.append(f'# {key.name} = ""')
            elif isinstance(key.default, Required):
                lines.append(f"{key.name} =")
            else:
                lines.append(f"# {key.name} = {_toml(key.default)}")
    return "\n".join(lines[1:]) + "\n"


def is_url(text: str, *, schemes: tuple[str, ...]) -> bool:
    """Whether a text is a base URL: scheme, host, optional port and path; no user, query or fragment."""
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        return False
    is_plain = text.isascii() and text.isprintable() and " " not in text and not parts.query and not parts.fragment
    return is_plain and parts.scheme in schemes and bool(parts.hostname) and parts.username is None and port != 0


class _MismatchError(ValueError):
    """A value is not what its key expects; ``_table`` turns it into the one line."""


def _tables(found: object, section: Section, path: Path) -> list[Table]:
    if not section.repeated:
        if found is None:
            found = {}
        if not isinstance(found, dict):
            raise ConfigError(f"{path}: {section.name} = {_shown(found)}: expected a table [{section.name}]")
        return [_table(found, section, path, f"[{section.name}]")]
    if found is None and section.optional:
        return []
    is_tables = isinstance(found, list) and all(isinstance(item, dict) for item in found)
    if not is_tables or not isinstance(found, list) or not 1 <= len(found) <= TABLES_MAX:
        shown = "nothing" if found is None else _shown(found)
        raise ConfigError(f"{path}: [[{section.name}]] = {shown}: expected 1..{TABLES_MAX} tables [[{section.name}]]")
    return [_table(item, section, path, f"[[{section.name}]] #{index}") for index, item in enumerate(found, start=1)]


def _table(found: Mapping[str, object], section: Section, path: Path, place: str) -> Table:
    keys = {key.name: key for key in section.keys}
    values: dict[str, Value] = {}
    if section.free is not None:
        if len(found) > TABLES_MAX:
            raise ConfigError(f"{path}: {place} = {len(found)} keys: expected at most {TABLES_MAX}")
        keys |= {name: section.free for name in found if name not in keys}
    for name, value in found.items():
        if name not in keys:
            raise ConfigError(f"{path}: {place} {name} = {_shown(value)}: expected one of the keys {', '.join(keys)}")
    for name, key in keys.items():
        try:
            values[name] = _value(found[name], key, path.parent) if name in found else _default(key, path.parent)
        except _MismatchError:
            shown = _shown(found[name]) if name in found else "nothing"
            raise ConfigError(f"{path}: {place} {name} = {shown}: expected {key.expected}") from None
    return Table(values)


def _default(key: Key, directory: Path) -> Value:
    if isinstance(key.default, Required):
        raise _MismatchError
    return None if key.default is None else _value(key.default, key, directory)


def _value(found: object, key: Key, directory: Path) -> Value:
    """Checked value; ``_MismatchError`` where it is not what the key expects."""
    if found == "" and key.default is None:
        return None
    match key.kind:
        case Kind.TEXT | Kind.PATH:
            if not isinstance(found, str) or (key.choices and found not in key.choices):
                raise _MismatchError
            _check_range(len(found), key)
            return found if key.kind is Kind.TEXT else _path(found, directory)
        case Kind.INTEGER:
            if not isinstance(found, int) or isinstance(found, bool):
                raise _MismatchError
            _check_range(found, key)
            return found
        case Kind.NUMBER:
            if not isinstance(found, int | float) or isinstance(found, bool) or not math.isfinite(found):
                raise _MismatchError
            _check_range(found, key)
            return float(found)
        case Kind.FLAG:
            if not isinstance(found, bool):
                raise _MismatchError
            return found
        case Kind.TEXTS:
            if not isinstance(found, list | tuple) or len(found) > TABLES_MAX:
                raise _MismatchError
            _check_range(len(found), key)
            return tuple(_text(item) for item in found)


def _text(item: object) -> str:
    if not isinstance(item, str):
        raise _MismatchError
    return item


def _path(text: str, directory: Path) -> Path:
    if not text or "\0" in text:
        raise _MismatchError
    return directory / Path(text).expanduser()


def _check_range(number: float, key: Key) -> None:
    if (key.minimum is not None and number < key.minimum) or (key.maximum is not None and number > key.maximum):
        raise _MismatchError


def _bound(number: float | None) -> str:
    if number is None:
        return ""
    return str(int(number)) if number == int(number) else f"{number:g}"


_SHOWN_CHARS_MAX: Final = 60
_SHOWN_ITEMS_MAX: Final = 8


def _shown(value: object) -> str:
    """A found value for one line of an error: bounded, printable."""
    if isinstance(value, dict | list):
        brackets = "{}" if isinstance(value, dict) else "[]"
        whole = brackets if not value else f"{brackets[0]}{len(value)} items{brackets[1]}"
        is_flat = all(
            not isinstance(item, dict | list) for item in (value.values() if isinstance(value, dict) else value)
        )
        if not is_flat or len(value) > _SHOWN_ITEMS_MAX:
            return whole  # its own text may be of any length, or nested beyond what repr can write
    text = "".join(character if character.isprintable() else "?" for character in repr(value))
    return text if len(text) <= _SHOWN_CHARS_MAX else text[:_SHOWN_CHARS_MAX] + "..."


def _toml(value: str | float | bool | tuple[str, ...]) -> str:  # noqa: FBT001 - a value, not a switch
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return str(value)
