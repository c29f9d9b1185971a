"""The registrar's SQLite file: its tables, their history, and transactions that write all or nothing."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Self

from edge_sdk.adapters.durable_files import PRIVATE_MODE
from edge_sdk.errors import CorruptStoreError, StoreError

_BUSY_MS: Final = 5_000
"""The command line and the miner may write at the same time."""

_FIRST: Final = """
CREATE TABLE claims (
    token_hash BLOB PRIMARY KEY,
    device_id TEXT NOT NULL,
    expiry_s INTEGER NOT NULL,
    used_s INTEGER,
    key BLOB
) WITHOUT ROWID;
CREATE TABLE members (
    device_id TEXT PRIMARY KEY,
    status TEXT NOT NULL,
    serial INTEGER NOT NULL,
    algorithm INTEGER NOT NULL,
    key BLOB NOT NULL,
    certificate_pem BLOB NOT NULL,
    certificate_number TEXT NOT NULL,
    expiry_s INTEGER NOT NULL,
    settled INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE certificates (
    number TEXT PRIMARY KEY,
    device_id TEXT NOT NULL,
    expiry_s INTEGER NOT NULL,
    revoked INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE alarms (
    id INTEGER PRIMARY KEY,
    time_s INTEGER NOT NULL,
    device_id TEXT NOT NULL,
    kind TEXT NOT NULL,
    note TEXT NOT NULL
);
"""
# An alarm repeats and ends; keys that two boards hold; requests that were refused; what a board went through before.
_SECOND: Final = """
ALTER TABLE alarms ADD COLUMN last_s INTEGER NOT NULL DEFAULT 0;
ALTER TABLE alarms ADD COLUMN count INTEGER NOT NULL DEFAULT 1;
ALTER TABLE alarms ADD COLUMN cleared_s INTEGER;
UPDATE alarms SET last_s = time_s;
CREATE TABLE barred_keys (
    key BLOB PRIMARY KEY,
    device_id TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE attempts (
    device_id TEXT NOT NULL,
    refusal TEXT NOT NULL,
    count INTEGER NOT NULL,
    last_s INTEGER NOT NULL,
    PRIMARY KEY (device_id, refusal)
) WITHOUT ROWID;
CREATE TABLE arrivals (
    device_id TEXT PRIMARY KEY,
    time_s INTEGER NOT NULL,
    waited TEXT NOT NULL
) WITHOUT ROWID;
"""
STEPS: Final = (_FIRST, _SECOND)
"""A file of version n takes the steps from n on: registrars of an older program keep their members."""


class StoreFile:
    """One open file. Every transaction is durable when it ends."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self._connection = connection
        self._path = path
        # The enrolment desk works in a thread, the registrar in the event loop: one connection, one user at a time.
        self._lock = threading.Lock()

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open or make the file, for this user only.

        Raises:
            StoreError: it cannot be opened.
            CorruptStoreError: it is not a file of this program.
        """
        try:
            path.touch(mode=PRIVATE_MODE, exist_ok=True)
            connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            try:
                connection.execute(f"PRAGMA busy_timeout = {_BUSY_MS}")
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("PRAGMA synchronous = FULL")
                _prepare(connection, path)
            except BaseException:
                connection.close()
                raise
        except OSError as error:
            raise StoreError(f"{path}: cannot be opened: {error.strerror}") from error
        except sqlite3.OperationalError as error:
            raise StoreError(f"{path}: cannot be opened: {error}") from error
        except sqlite3.DatabaseError as error:
            raise CorruptStoreError(f"{path}: not the registrar's store: {error}") from error
        return cls(connection, path)

    def close(self) -> None:
        """Fold the log into the file and close it."""
        self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self._connection.close()

    def _read(self, query: str, *values: str | int | bytes) -> list[Any]:
        """Rows of a query outside of a transaction."""
        with self._lock:
            try:
                return self._connection.execute(query, values).fetchall()
            except sqlite3.DatabaseError as error:
                raise StoreError(f"{self._path}: cannot be read: {error}") from error

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Write all or nothing; the lock is taken first, so that two processes cannot both read "unused"."""
        with self._lock:
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                try:
                    yield self._connection
                except BaseException:
                    self._connection.execute("ROLLBACK")
                    raise
                self._connection.execute("COMMIT")
            except sqlite3.OperationalError as error:
                raise StoreError(f"{self._path}: cannot be written: {error}") from error


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    """Bring the tables to this program's version; refuse a file with others."""
    connection.execute("BEGIN IMMEDIATE")
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if not 0 <= version <= len(STEPS):
        connection.execute("ROLLBACK")
        raise CorruptStoreError(f"{path}: schema version {version}, expected at most {len(STEPS)}")
    for step in STEPS[version:]:
        for statement in step.split(";"):
            connection.execute(statement)
    connection.execute(f"PRAGMA user_version = {len(STEPS)}")
    connection.execute("COMMIT")
