"""Reading one number of a sensor file."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from edge_sdk.errors import StoreError

_FILE_BYTES_MAX: Final = 4_096


def read_text(path: Path) -> str:
    """Content of a sensor file, stripped.

    Raises:
        StoreError: it cannot be read; RAPL files for instance belong to root since Linux 5.10.
    """
    try:
        with path.open("rb") as file:
            return file.read(_FILE_BYTES_MAX).decode("ascii", "replace").strip()
    except OSError as error:
        raise StoreError(f"{path}: cannot be read: {error.strerror}") from error


def read_integer(path: Path) -> int:
    """The integer in a sensor file.

    Raises:
        StoreError: it cannot be read or holds something else.
    """
    text = read_text(path)
    try:
        return int(text)
    except ValueError as error:
        raise StoreError(f"{path}: {text[:40]!r}: expected an integer") from error
