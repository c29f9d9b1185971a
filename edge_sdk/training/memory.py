"""Giving memory back after a job: freed heap pages, and the resident code of the runtime.

A device trains for seconds and waits for hours. Two things stay resident after the sessions are gone: heap pages that
malloc keeps, and about 16 MiB of the runtime's machine code. Code pages are clean copies of a file, so dropping them
is safe at any time; they are read again when needed. Where the C library or the kernel offers no such call, nothing
happens.
"""

from __future__ import annotations

import ctypes
import gc
from typing import Any, Final

_LIBRARY_MARK: Final = b"onnxruntime"
_PT_LOAD, _PF_EXECUTABLE, _PF_WRITABLE = 1, 1, 2
_MADV_DONTNEED: Final = 4
_ELF64_POINTER_BYTES: Final = 8


class _ProgramHeader(ctypes.Structure):
    """Elf64_Phdr."""

    _fields_ = (
        ("type", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("offset", ctypes.c_uint64),
        ("vaddr", ctypes.c_uint64),
        ("paddr", ctypes.c_uint64),
        ("file_bytes", ctypes.c_uint64),
        ("memory_bytes", ctypes.c_uint64),
        ("align", ctypes.c_uint64),
    )


class _LibraryInfo(ctypes.Structure):
    """The leading fields of struct dl_phdr_info."""

    _fields_ = (
        ("address", ctypes.c_uint64),
        ("name", ctypes.c_char_p),
        ("headers", ctypes.POINTER(_ProgramHeader)),
        ("header_count", ctypes.c_uint16),
    )


_Visitor = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(_LibraryInfo), ctypes.c_size_t, ctypes.c_void_p)


def return_memory() -> None:
    """Collect garbage, hand freed heap pages to the kernel, drop the runtime's code pages from this process."""
    gc.collect()
    library: Any = ctypes.CDLL(None)
    trim = getattr(library, "malloc_trim", None)  # glibc; musl has none and returns pages by itself
    if trim is not None:
        trim(0)
    for start, length in _code_ranges(library):
        library.madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), ctypes.c_int(_MADV_DONTNEED))


def _code_ranges(library: Any) -> list[tuple[int, int]]:
    """Page-aligned (start, length) of every executable, read-only segment of the runtime's shared libraries."""
    visit_all = getattr(library, "dl_iterate_phdr", None)
    if visit_all is None or ctypes.sizeof(ctypes.c_void_p) != _ELF64_POINTER_BYTES:
        return []
    page = int(library.getpagesize())
    ranges: list[tuple[int, int]] = []

    def visit(info: Any, _size: int, _data: object) -> int:
        found = info.contents
        if found.name and _LIBRARY_MARK in found.name.rsplit(b"/", 1)[-1]:
            for header in found.headers[: found.header_count]:
                # Written segments hold relocations that the file does not have; only pure code may be dropped.
                if header.type == _PT_LOAD and header.flags & _PF_EXECUTABLE and not header.flags & _PF_WRITABLE:
                    start = -(-(found.address + header.vaddr) // page) * page
                    end = (found.address + header.vaddr + header.memory_bytes) // page * page
                    ranges.append((start, max(0, end - start)))
        return 0

    visit_all(_Visitor(visit), None)
    return ranges
