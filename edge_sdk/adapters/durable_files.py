"""Files that survive a power cut whole: temporary name in the same directory, fsync, rename, fsync of the directory."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from edge_sdk.errors import StoreError

PRIVATE_MODE: Final = 0o600
TEMPORARY_SUFFIX: Final = ".tmp"


def write_file(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Replace a file atomically; after the return it is on the disk.

    Raises:
        StoreError: the disk is full or the directory cannot be written; the old file is untouched.
    """
    temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
    try:
        # The mode is set when the file is made: a secret is never readable by others, not even for a moment.
        temporary.unlink(missing_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_directory(path.parent)
    except OSError as error:
        raise StoreError(f"{path}: cannot be written: {error.strerror}") from error


def sync_file(path: Path) -> None:
    """Make the content of an existing file durable.

    Raises:
        StoreError: the disk refuses.
    """
    _sync(path, os.O_RDONLY)


def sync_directory(path: Path) -> None:
    """Make the entries of a directory durable.

    Raises:
        StoreError: the disk refuses.
    """
    _sync(path, os.O_RDONLY | os.O_DIRECTORY)


def read_file(path: Path, *, bytes_max: int) -> bytes | None:
    """Content of a file, or None where there is none.

    Raises:
        StoreError: it is longer than ``bytes_max`` or cannot be read.
    """
    try:
        with path.open("rb") as file:
            data = file.read(bytes_max + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreError(f"{path}: cannot be read: {error.strerror}") from error
    if len(data) > bytes_max:
        raise StoreError(f"{path}: longer than {bytes_max} bytes")
    return data


def make_private_directory(path: Path) -> None:
    """Make a directory, and those above it, for this user only.

    Raises:
        StoreError: it cannot be made.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"{path}: cannot be made: {error.strerror}") from error


def _sync(path: Path, flags: int) -> None:
    try:
        descriptor = os.open(path, flags)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise StoreError(f"{path}: cannot be synced: {error.strerror}") from error
