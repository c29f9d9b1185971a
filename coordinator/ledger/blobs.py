"""Blobs by digest: files named after the SHA-256 of their content, complete or absent.

A blob is written beside its place, flushed, renamed into place, and its folder flushed: after ``put`` returns, a
power cut cannot take it back, and before, nobody can see half of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

from edge_sdk.adapters.durable_files import TEMPORARY_SUFFIX, write_file
from edge_sdk.errors import StoreError
from edge_sdk.protocol.digest import sha256
from edge_sdk.protocol.ids import Digest

_FOLDER: Final = Path("sha256")


class BlobStore:
    """A folder ``blobs`` with ``sha256/<hex>`` below it."""

    def __init__(self, root: Path, *, read_only: bool = False) -> None:
        """Open the folder; create it and remove what a power cut left half-written, unless ``read_only``."""
        self.folder = root / _FOLDER
        if not read_only:
            self.folder.mkdir(parents=True, exist_ok=True)
            for part in self.folder.glob(f"*{TEMPORARY_SUFFIX}"):
                part.unlink()

    def put(self, data: bytes) -> Digest:
        """Store bytes durably and return their digest; storing them again costs one look.

        Raises:
            StoreError: the disk is full or refuses.
        """
        digest = sha256(data)
        if not self.has(digest):
            write_file(self.path(digest), data)
        return digest

    def get(self, digest: Digest) -> bytes:
        """Read a blob whole; the content is not hashed again.

        Raises:
            StoreError: it is not here or cannot be read.
        """
        try:
            return self.path(digest).read_bytes()
        except OSError as error:
            raise StoreError(f"{self.path(digest)}: {error.strerror}") from error

    def open(self, digest: Digest) -> BinaryIO:
        """Open a blob for reading at any offset.

        Raises:
            StoreError: it is not here or cannot be read.
        """
        try:
            return self.path(digest).open("rb")
        except OSError as error:
            raise StoreError(f"{self.path(digest)}: {error.strerror}") from error

    def has(self, digest: Digest) -> bool:
        """Whether a blob is here."""
        return self.path(digest).exists()

    def delete(self, digest: Digest) -> None:
        """Remove a blob if it is here."""
        self.path(digest).unlink(missing_ok=True)

    def path(self, digest: Digest) -> Path:
        """File of a blob, present or not."""
        return self.folder / digest.hex()

    def files(self) -> Iterator[Path]:
        """Yield all files of the folder, by name."""
        if self.folder.is_dir():
            yield from sorted(self.folder.iterdir())
