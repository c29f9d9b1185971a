"""Read the run records of devices and miners: one list of phases for reports and studies."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from edge_sdk.errors import CorruptStoreError

LINE_BYTES_MAX: Final = 64 * 1024
NS_PER_MS: Final = 1e6
RECORD_NAMES: Final = ("run.1.jsonl", "run.jsonl")
"""The older file first: a record that reaches its bound starts again."""


@dataclass(frozen=True, slots=True)
class RunPhase:
    """One line of a run record; times are on the monotonic clock that all processes of one machine share."""

    actor: str
    phase: str
    start_ns: int
    duration_ns: int
    bytes_count: int
    energy_mj: int | None
    energy_quality: str
    ids: dict[str, Any]

    @property
    def end_ns(self) -> int:
        """When the phase was over."""
        return self.start_ns + self.duration_ns


def read_run(folder: Path) -> Iterator[RunPhase]:
    """Yield the phases of one actor, in the order of writing.

    A last line without an end is what a killed process leaves behind and is passed over.

    Raises:
        CorruptStoreError: any other line is not a phase; the text names file and line.
    """
    for name in RECORD_NAMES:
        path = folder / name
        if not path.is_file():
            continue
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.endswith(b"\n"):
                    break
                yield _phase(line, folder.name, f"{path}:{number}")


def _phase(line: bytes, actor: str, place: str) -> RunPhase:
    if len(line) > LINE_BYTES_MAX:
        raise CorruptStoreError(f"{place}: a line of {len(line)} bytes: expected at most {LINE_BYTES_MAX}")
    try:
        fields = json.loads(line)
        phase = RunPhase(
            actor=actor,
            phase=str(fields.pop("phase")),
            start_ns=int(fields.pop("start_ns")),
            duration_ns=int(fields.pop("duration_ns")),
            bytes_count=int(fields.pop("bytes")),
            energy_mj=None if (energy := fields.pop("energy_mj")) is None else int(energy),
            energy_quality=str(fields.pop("energy_quality")),
            ids=fields,
        )
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CorruptStoreError(f"{place}: not a phase of a run record: {error}") from error
    return phase


def read_runs(parent: Path) -> list[RunPhase]:
    """All phases of all actors below ``parent``, by start."""
    folders = sorted(entry for entry in parent.iterdir() if entry.is_dir()) if parent.is_dir() else []
    return sorted((phase for folder in folders for phase in read_run(folder)), key=lambda phase: phase.start_ns)


def percentile(values: Iterable[float], share: float) -> float:
    """Nearest-rank percentile, 0 < share <= 1: always a value that was measured. 0.0 of nothing."""
    ordered: Sequence[float] = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else 0.0
