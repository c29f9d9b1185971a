"""What a device has done so far, read from outside: its own files, while it writes them."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edge_sdk.protocol.messages import Reason, ReceiptStatus, Verdict

TAIL_BYTES: Final = 4_096


@dataclass(frozen=True, slots=True)
class DeviceView:
    """Progress of one device, as its state file tells it."""

    phase: str = "-"
    seq: int = 0
    version: int = 0
    last_receipt: str = "-"
    merged: int = 0
    refused: int = 0


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
