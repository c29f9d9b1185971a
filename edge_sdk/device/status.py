"""What is on a device's disk, read without disturbing a running process."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from edge_sdk.adapters.keys import fingerprint, load_signer
from edge_sdk.adapters.personal_file import PersonalFile
from edge_sdk.adapters.replay_buffer import ReplayBuffer
from edge_sdk.adapters.slots import Slots
from edge_sdk.device.config import DeviceConfig
from edge_sdk.device.first_boot import read_waiting
from edge_sdk.device.parts import load_genesis
from edge_sdk.errors import CorruptStoreError
from edge_sdk.protocol.messages import Reason, Verdict


def read_status(config: DeviceConfig) -> dict[str, Any]:
    """Installed model, outbox and outcomes, as a JSON document.

    Raises:
        CorruptStoreError: the state file cannot be read as one.
    """
    document: dict[str, Any] = {"device": config.device_id, "task": config.task, "model": None, "state": None}
    if config.key_file.exists():
        document["key"] = fingerprint(load_signer(config.key_file).public_key)
    waiting = read_waiting(config)
    if waiting is not None:
        document["enrolment"] = waiting
    if config.slots_dir.is_dir():
        model = Slots(config.slots_dir).current()
        if model is not None:
            document["model"] = {"version": model.version, "root": model.root.hex(), "slot": model.slot}
    if config.is_replay and config.data.exists():
        with ReplayBuffer.open_existing(config.data) as buffer:
            document["replay"] = {"rows": len(buffer), "capacity": buffer.capacity, "seen": buffer.seen}
    if config.is_personal and config.genesis_file.exists():
        personal = PersonalFile(config.personal_file, load_genesis(config)).read()
        document["personal"] = None if personal is None else personal.summary()
    if config.outbox_file.exists():
        try:
            with closing(open_state(config.outbox_file)) as db:
                document["state"] = _state(db)
        except sqlite3.Error as error:
            raise CorruptStoreError(f"{config.outbox_file}: {error}") from error
    return document


def open_state(path: Path) -> sqlite3.Connection:
    """Read-only; where a power cut has left a transaction half done, writable, so that SQLite takes it back."""
    db = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        db.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.OperationalError:
        db.close()
        return sqlite3.connect(f"file:{path}?mode=rw", uri=True)
    return db


def _state(db: sqlite3.Connection) -> dict[str, Any] | None:
    if not db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
        return None  # the first start was cut off between the file and its tables
    numbers = dict(db.execute("SELECT key, number FROM meta WHERE number IS NOT NULL").fetchall())
    outcomes = db.execute(
        "SELECT verdict, reason, count(*) FROM updates WHERE verdict IS NOT NULL GROUP BY verdict, reason"
    ).fetchall()
    waiting = db.execute(
        "SELECT hex(digest), seq, base_version, blob_bytes,"
        " (SELECT count(*) FROM receipts WHERE receipts.digest = updates.digest AND status = 1)"
        " FROM updates WHERE verdict IS NULL ORDER BY seq"
    ).fetchall()
    return {
        "next_seq": numbers.get("next_seq", 1),
        "version_floor": numbers.get("version_floor", -1),
        "merged": sum(count for verdict, _, count in outcomes if verdict == Verdict.MERGED),
        "refused": {
            Reason(reason).name.lower(): count for verdict, reason, count in outcomes if verdict == Verdict.REFUSED
        },
        "waiting": [
            {"update": digest.lower(), "seq": seq, "base_version": base, "bytes": size, "stored_by": stored}
            for digest, seq, base, size, stored in waiting
        ],
    }
