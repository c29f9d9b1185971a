"""What a row of a replay buffer looks like, and what it takes on the disk."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from edge_sdk.errors import TrainingError

if TYPE_CHECKING:
    import numpy.typing as npt

SUFFIX: Final = ".sqlite3"
PAGE_BYTES: Final = 4_096
_ROW_HEAD_BYTES: Final = 48
"""Numbers and lengths of a row; its entry in the index is counted apart."""
_INDEX_BYTES: Final = 48
"""Of one row: an entry has up to 20 bytes, and pages may be half full."""
_LOCAL_BYTES_MAX: Final = PAGE_BYTES - 35
_LOCAL_BYTES_MIN: Final = (PAGE_BYTES - 12) * 32 // 255 - 23
"""Of a row too large for one page; SQLite file format 2, section 1.6."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowForm:
    """What every row of a buffer looks like."""

    input_shape: tuple[int, ...]
    x_type: str = "float32"
    """``float32``, or ``uint8`` for value / 255."""
    target_count: int = 0
    """float32 targets of each row; 0 where a row has a label instead."""

    def __post_init__(self) -> None:
        """Refuse what no row can have."""
        if not self.input_shape or any(extent < 1 for extent in self.input_shape) or self.target_count < 0:
            raise TrainingError(f"rows of shape {self.input_shape} with {self.target_count} targets: expected some")
        if self.x_type not in {"float32", "uint8"}:
            raise TrainingError(f"rows of type {self.x_type}: expected float32 or uint8")

    @property
    def row_bytes(self) -> int:
        """Bytes of one row's numbers."""
        return math.prod(self.input_shape) * (1 if self.x_type == "uint8" else 4) + 4 * self.target_count

    @property
    def disk_bytes(self) -> int:
        """Bytes of the file that a row takes at most, with its share of the index."""
        payload = self.row_bytes + _ROW_HEAD_BYTES
        if payload <= _LOCAL_BYTES_MAX:
            per_page = (PAGE_BYTES - 16) // payload
            return -(-PAGE_BYTES // max(1, per_page)) + _INDEX_BYTES
        overflow_pages = -(-(payload - _LOCAL_BYTES_MIN) // (PAGE_BYTES - 4))
        return PAGE_BYTES + overflow_pages * PAGE_BYTES + _INDEX_BYTES

    @classmethod
    def of(cls, x: npt.NDArray[Any], y: npt.NDArray[Any]) -> RowForm:
        """The form of some rows: x (n, ...), y (n,) labels or (n, k) targets."""
        x_type = "uint8" if x.dtype == "uint8" else "float32"
        return cls(input_shape=tuple(x.shape[1:]), x_type=x_type, target_count=y.shape[1] if y.ndim == 2 else 0)
