"""Tables of measurements: one CSV file with a header, plain or gzip, read within bounds."""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from edge_sdk.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy.typing as npt

FILE_BYTES_MAX: Final = 64 * 1024 * 1024
"""Unpacked; a compressed file cannot make us allocate more."""
ROWS_MAX: Final = 200_000
MISSING: Final = frozenset({"NA", ""})


def read_table(
    path: Path, columns: Sequence[str], *, delimiter: str, texts: frozenset[str] = frozenset()
) -> tuple[npt.NDArray[np.float64], dict[str, list[str]]]:
    """Read some columns; others are ignored.

    Args:
        path: The file.
        columns: Headers of the columns to read.
        delimiter: Between cells.
        texts: Those of the columns that hold no numbers.

    Returns:
        Numbers, (rows, columns without texts), NaN where a cell is missing; and the texts by column.

    Raises:
        ConfigError: unreadable, too large, no such column, or a cell that is no number (line and column are named).
    """
    reader = csv.reader(io.StringIO(_read_text(path), newline=""), delimiter=delimiter)
    header = next(reader, [])
    absent = [name for name in columns if name not in header]
    if absent:
        raise ConfigError(f"{path}: line 1: no column {absent[0]!r}: found {header[:20]}")
    numbers = [(name, header.index(name)) for name in columns if name not in texts]
    words = {name: header.index(name) for name in columns if name in texts}
    rows: list[list[float]] = []
    found: dict[str, list[str]] = {name: [] for name in words}
    try:
        for cells in reader:
            if len(cells) != len(header):
                raise ConfigError(f"{path}: line {reader.line_num}: {len(cells)} cells, expected {len(header)}")
            rows.append(_numbers(path, reader.line_num, cells, numbers))
            for name, place in words.items():
                found[name].append(cells[place])
            if len(rows) > ROWS_MAX:
                raise ConfigError(f"{path}: more than {ROWS_MAX} rows")
    except csv.Error as error:
        raise ConfigError(f"{path}: line {reader.line_num}: {error}") from error
    return np.array(rows, np.float64).reshape(len(rows), len(numbers)), found


def _numbers(path: Path, line: int, cells: Sequence[str], columns: Iterable[tuple[str, int]]) -> list[float]:
    values = []
    for name, place in columns:
        try:
            values.append(float("nan") if cells[place].strip() in MISSING else float(cells[place]))
        except ValueError as error:
            raise ConfigError(f"{path}: line {line}, column {name}: {cells[place][:40]!r} is no number") from error
    return values


def _read_text(path: Path) -> str:
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as source:
            data = source.read(FILE_BYTES_MAX + 1)
        if len(data) > FILE_BYTES_MAX:
            raise ConfigError(f"{path}: more than {FILE_BYTES_MAX} bytes")
        return data.decode("utf-8")
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file") from error
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error


def find_tables(folder: Path, pattern: str, *, count_max: int) -> list[Path]:
    """Files ``pattern.csv`` and ``pattern.csv.gz`` of a folder, sorted by name; one of each pair.

    Raises:
        ConfigError: more than ``count_max`` of them.
    """
    found = {path.name.removesuffix(".gz"): path for path in sorted(folder.glob(f"{pattern}.csv*"), reverse=True)}
    if len(found) > count_max:
        raise ConfigError(f"{folder}: {len(found)} files {pattern}.csv, at most {count_max}")
    return [found[name] for name in sorted(found)]
