"""An open target: whole writes at offsets, and reads that come from the medium itself, not from a cache.

A cached read proves nothing about a card. Reads use O_DIRECT where the file system or device offers it; elsewhere the
cache is dropped first (BLKFLSBUF for devices, POSIX_FADV_DONTNEED for files).
"""

from __future__ import annotations

import errno
import mmap
import os
from types import TracebackType
from typing import Final, Self

from firmware_profiles.errors import MediumError
from firmware_profiles.flash.host import Host

ALIGNMENT: Final = 4096
BUFFER_BYTES: Final = 4 * 2**20


class Medium:
    """A block device or file opened for writing (or reading only, for ``verify``); closed at the end of ``with``."""

    def __init__(self, host: Host, descriptor: int, *, name: str, is_block: bool) -> None:
        """Take over an open descriptor."""
        self.name = name
        self._host = host
        self._descriptor = descriptor
        self._is_block = is_block
        self._direct = _reopen_direct(descriptor)
        # Anonymous memory starts at a page, as O_DIRECT wants it.
        self._buffer = mmap.mmap(-1, BUFFER_BYTES)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the descriptors; what was not flushed is the kernel's to write."""
        os.close(self._descriptor)
        if self._direct is not None:
            os.close(self._direct)
        self._buffer.close()

    @property
    def size_bytes(self) -> int:
        """Size of the medium."""
        return self._host.size_bytes(self._descriptor) if self._is_block else os.fstat(self._descriptor).st_size

    def set_size(self, size_bytes: int) -> None:
        """Give a regular file its size; what is never written reads as zeros."""
        os.ftruncate(self._descriptor, size_bytes)

    def peek(self, offset: int, size: int) -> bytes:
        """Read through the cache, for labels and signatures; fewer bytes at the end."""
        return os.pread(self._descriptor, size, offset)

    def write_at(self, offset: int, data: bytes) -> None:
        """Write all of ``data``.

        Raises:
            MediumError: the medium refuses, or stops taking bytes.
        """
        view = memoryview(data)
        while view:
            try:
                count = os.pwrite(self._descriptor, view, offset)
            except OSError as error:
                raise MediumError(f"{self.name}: write at byte {offset}: {error.strerror}", offset=offset) from error
            if count == 0:
                raise MediumError(f"{self.name}: takes no more bytes at byte {offset}", offset=offset)
            view, offset = view[count:], offset + count

    def flush(self, *, offset: int) -> None:
        """Wait until everything written is on the medium, then forget what is cached of it.

        Raises:
            MediumError: the medium reports an error for something written earlier, up to ``offset``.
        """
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            raise MediumError(f"{self.name}: flush up to byte {offset}: {error.strerror}", offset=offset) from error
        self.forget()

    def forget(self) -> None:
        """Drop cached content, so that the next read comes from the medium."""
        if self._is_block:
            try:
                self._host.drop_buffers(self._descriptor)
            except PermissionError as error:  # only root may; direct reads do without
                if self._direct is None:
                    raise MediumError(
                        f"{self.name}: its cache cannot be dropped: {error.strerror}", offset=0
                    ) from error
        os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_DONTNEED)

    def read_at(self, offset: int, size: int) -> bytes:
        """Read from the medium; fewer bytes at its end.

        Raises:
            MediumError: it cannot be read there.
        """
        assert size <= BUFFER_BYTES
        if self._direct is None or offset % ALIGNMENT:
            return self._read(self._descriptor, offset, memoryview(self._buffer)[:size])
        whole = -(-size // ALIGNMENT) * ALIGNMENT
        return self._read(self._direct, offset, memoryview(self._buffer)[:whole])[:size]

    def _read(self, descriptor: int, offset: int, buffer: memoryview) -> bytes:
        done = 0
        with buffer:
            while done < len(buffer):
                try:
                    count = os.preadv(descriptor, [buffer[done:]], offset + done)
                except OSError as error:
                    at = offset + done
                    raise MediumError(f"{self.name}: read at byte {at}: {error.strerror}", offset=at) from error
                done += count
                if count == 0 or done % ALIGNMENT:  # the end
                    break
            return bytes(buffer[:done])


def _reopen_direct(descriptor: int) -> int | None:
    """Second descriptor of the same file that goes around the cache; None where that is not possible.

    Through /proc/self/fd it is the same inode, whatever happened to the path meanwhile.
    """
    try:
        return os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in {errno.EINVAL, errno.ENOENT, errno.EACCES, errno.EPERM}:
            return None
        raise
