"""Tables of ``ledger.sqlite3``, and how the file is opened."""

from __future__ import annotations

import sqlite3
from contextlib import suppress
from pathlib import Path
from typing import Final
from urllib.parse import quote

from edge_sdk.errors import StoreError

FORMAT: Final = 1
BUSY_TIMEOUT_S: Final = 5.0

# heights is the log; blocks and entries, the snapshot and the models derive from it; uploads and own_scores are this
# miner's promises that are not on the log yet.
_SCHEMA: Final = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value BLOB NOT NULL) STRICT;
CREATE TABLE heights (
    height INTEGER PRIMARY KEY,
    time_s INTEGER NOT NULL,
    proposer TEXT NOT NULL,
    txs BLOB NOT NULL,
    state_root BLOB NOT NULL,
    chain_hash BLOB NOT NULL
) STRICT;
CREATE TABLE blocks (
    block_index INTEGER PRIMARY KEY,
    header BLOB NOT NULL,
    entries BLOB NOT NULL,
    certificate BLOB
) STRICT;
CREATE TABLE entries (
    update_digest BLOB NOT NULL,
    block_index INTEGER NOT NULL,
    position INTEGER NOT NULL,
    PRIMARY KEY (update_digest, block_index)
) STRICT, WITHOUT ROWID;
CREATE TABLE models (
    version INTEGER PRIMARY KEY,
    model_root BLOB NOT NULL,
    blob_digest BLOB NOT NULL,
    blob_bytes INTEGER NOT NULL
) STRICT;
CREATE TABLE snapshot_core (one INTEGER PRIMARY KEY CHECK (one = 1), record BLOB NOT NULL) STRICT;
CREATE TABLE snapshot_devices (device_id TEXT PRIMARY KEY, record BLOB NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE snapshot_updates (update_digest BLOB PRIMARY KEY, place INTEGER NOT NULL, record BLOB NOT NULL) STRICT;
CREATE TABLE own_scores (block_index INTEGER PRIMARY KEY, scores BLOB NOT NULL, salt BLOB NOT NULL) STRICT;
CREATE TABLE uploads (
    update_digest BLOB PRIMARY KEY,
    device_id TEXT NOT NULL,
    seq INTEGER NOT NULL,
    envelope BLOB NOT NULL,
    blob_digest BLOB NOT NULL,
    blob_bytes INTEGER NOT NULL,
    received_s INTEGER NOT NULL
) STRICT;
"""


def connect(path: Path, *, read_only: bool) -> sqlite3.Connection:
    """Open the file; a writable one is created with its tables when it is new.

    Read-only, the file is not touched: without a write-ahead log it is opened as immutable, so that not even a lock
    file appears beside it.

    Raises:
        StoreError: the file is missing, or no database.
    """
    if read_only:
        wal = path.with_name(path.name + "-wal")
        mode = "mode=ro" if wal.exists() and wal.stat().st_size else "mode=ro&immutable=1"
    else:
        mode = "mode=rwc"
    database: sqlite3.Connection | None = None
    try:
        database = sqlite3.connect(
            f"file:{quote(str(path))}?{mode}",
            uri=True,
            timeout=BUSY_TIMEOUT_S,
            isolation_level=None,
            check_same_thread=False,
        )
        if read_only:
            database.execute("BEGIN")  # one view of the file, also while its miner goes on writing
        else:
            _prepare(database)
        found = database.execute("PRAGMA user_version").fetchone()[0]
    except sqlite3.Error as error:
        if database is not None:
            database.close()
        raise StoreError(f"{path}: {error}") from error
    if found != FORMAT:
        database.close()
        raise StoreError(f"{path}: format {found}, expected {FORMAT}")
    return database


def _prepare(database: sqlite3.Connection) -> None:
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = FULL")
    if database.execute("PRAGMA user_version").fetchone()[0] == 0:
        try:
            database.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {FORMAT}; COMMIT;")
        except sqlite3.Error:
            with suppress(sqlite3.Error):  # the first error is the one to report
                database.execute("ROLLBACK")
            raise
