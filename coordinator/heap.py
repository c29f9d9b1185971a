"""Keep freed memory for the next block: a miner uses the same megabytes again, block after block.

glibc hands large pieces back to the kernel as soon as they are free, and the kernel clears every page when it is
touched again: more than half of the time of a merge of 1 M parameters.
"""

from __future__ import annotations

import ctypes
from typing import Any, Final

KEPT_BYTES: Final = 64 * 1024 * 1024
"""Free memory that an arena keeps: the updates and both models of a block of ten at 1 M parameters."""
MAPPED_FROM_BYTES: Final = 32 * 1024 * 1024
"""Only larger pieces are mapped one by one; more is not accepted."""
# malloc.h
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3


def keep_freed_memory() -> bool:
    """Set both thresholds for this process; False where the C library has none (musl, macOS)."""
    mallopt: Any = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    is_mapped_later: bool = mallopt(_M_MMAP_THRESHOLD, MAPPED_FROM_BYTES) == 1
    is_trimmed_later: bool = mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES) == 1
    return is_mapped_later and is_trimmed_later
