"""What the supervisor sees of its processes from outside: memory from /proc, a device's progress from its own files."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edge_sdk.protocol.messages import Reason, ReceiptStatus, Verdict

KIB_PER_MIB: Final = 1024
TAIL_BYTES: Final = 4_096
_NUMPY: Final = "/numpy/"


@dataclass(frozen=True, slots=True)
class RssSample:
    """Resident memory of one process at one moment."""

    time_ns: int
    rss_mib: float
    peak_mib: float
    """VmHWM: the largest ever."""
    has_numpy: bool
    """Whether training has loaded its libraries."""


@dataclass(frozen=True, slots=True)
class DeviceView:
    """Progress of one device, as its state file tells it."""

    phase: str = "-"
    seq: int = 0
    version: int = 0
    last_receipt: str = "-"
    merged: int = 0
    refused: int = 0


class MemoryWatch:
    """Samples of every device process; which of them belong to training is decided after the run."""

    def __init__(self) -> None:
        self.samples: dict[str, list[RssSample]] = {}
        self._with_numpy: set[int] = set()

    def sample(self, name: str, pid: int) -> None:
        """Take one sample, unless the process has just ended."""
        try:
            status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
            # Libraries stay loaded, so the longer look is needed until they are seen once.
            if pid not in self._with_numpy and _NUMPY in Path(f"/proc/{pid}/maps").read_text(encoding="utf-8"):
                self._with_numpy.add(pid)
        except (FileNotFoundError, ProcessLookupError):
            return
        rss_kib, peak_kib = _field(status, "VmRSS"), _field(status, "VmHWM")
        if rss_kib and peak_kib:
            self.samples.setdefault(name, []).append(
                RssSample(time.monotonic_ns(), rss_kib / KIB_PER_MIB, peak_kib / KIB_PER_MIB, pid in self._with_numpy)
            )


def _field(status: str, name: str) -> int:
    """A size in KiB of /proc/PID/status; 0 in the moment between end and burial of a process."""
    for line in status.splitlines():
        if line.startswith(name):
            return int(line.split()[1])
    return 0


def look_at_device(folder: Path) -> DeviceView:
    """Read a device's state, read-only, while it runs. What is not there yet reads as nothing."""
    phase = _last_phase(folder / "run.jsonl")
    path = folder / "state.sqlite3"
    if not path.exists():
        return DeviceView(phase=phase)
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=0.1)) as database:
            return _read(database, phase)
    except sqlite3.Error:  # busy, or its tables are being made
        return DeviceView(phase=phase)


def _read(database: sqlite3.Connection, phase: str) -> DeviceView:
    (version,) = database.execute("SELECT coalesce(max(version), 0) FROM installs").fetchone()
    (seq,) = database.execute("SELECT coalesce(max(seq), 0) FROM updates").fetchone()
    verdicts = dict(database.execute("SELECT verdict, count(*) FROM updates GROUP BY verdict"))
    receipt = database.execute(
        "SELECT updates.seq, receipts.status, receipts.reason, count(*) FROM receipts JOIN updates USING (digest)"
        " WHERE seq = (SELECT max(seq) FROM receipts JOIN updates USING (digest)) GROUP BY status ORDER BY count(*)"
    ).fetchall()
    return DeviceView(
        phase=phase,
        seq=seq,
        version=version,
        last_receipt=_receipt_text(receipt),
        merged=verdicts.get(Verdict.MERGED, 0),
        refused=verdicts.get(Verdict.REFUSED, 0),
    )


def _receipt_text(rows: Iterable[tuple[int, int, int, int]]) -> str:
    parts = []
    for seq, status, reason, count in rows:
        word = "stored" if status == ReceiptStatus.STORED else f"refused ({Reason(reason).name.lower()})"
        parts.append(f"#{seq} {word} x{count}")
    return ", ".join(parts) or "-"


def _last_phase(path: Path) -> str:
    """Name of the last phase of a run record."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - TAIL_BYTES))
            lines = file.read().splitlines()
    except FileNotFoundError:
        return "-"
    for line in reversed(lines):
        try:
            return str(json.loads(line)["phase"])
        except (ValueError, KeyError, TypeError):
            continue  # the first line of the tail is cut, the last one may be half written
    return "-"
