"""The device's durable state in one SQLite file: outbox, residual, sequence number, floors, and the ledger of outcomes.

Everything that must agree changes in one transaction. WAL with ``synchronous=FULL``: a commit is on the disk when it
returns, and a power cut at any moment leaves the state before or after it. Storing an update moves residual, ``seq``
and row together; settling one moves its outcome and, where the delta returns, the residual together. So a delta is
always in exactly one place: the residual, an outbox row, or a certified outcome.

One thread uses an ``Outbox``. A clean ``close`` empties the WAL.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edge_sdk.adapters import failpoints
from edge_sdk.errors import CorruptStoreError, LocalProtocolError, NewerStateError, StoreError
from edge_sdk.protocol.ids import ChainId, DeviceId, Digest
from edge_sdk.protocol.limits import BLOB_BYTES_MAX, SEQ_MAX
from edge_sdk.protocol.messages import Reason, Receipt, ReceiptStatus, Verdict

SCHEMA_VERSION: Final = 1
SETTLED_ROWS_MAX: Final = 10_000
"""Outcomes kept; older ones are dropped with their receipts."""
BUSY_TIMEOUT_S: Final = 5.0

_TABLES: Final = (
    # Values of this device that are not lists; one row each.
    "CREATE TABLE meta (key TEXT PRIMARY KEY, number INTEGER, text TEXT) WITHOUT ROWID",
    # Residual of error feedback: pack_residual of edge_sdk.training.delta; at most one row.
    "CREATE TABLE residual (id INTEGER PRIMARY KEY CHECK (id = 1), data BLOB NOT NULL)",
    # verdict and reason are NULL while the update is on its way; blob is NULL once it is settled.
    """CREATE TABLE updates (
        digest BLOB PRIMARY KEY,
        seq INTEGER NOT NULL UNIQUE,
        base_version INTEGER NOT NULL,
        expiry_height INTEGER NOT NULL,
        envelope BLOB NOT NULL,
        blob BLOB,
        blob_bytes INTEGER NOT NULL,
        created_s INTEGER NOT NULL,
        verdict INTEGER,
        reason INTEGER,
        outcome BLOB,
        settled_s INTEGER
    ) WITHOUT ROWID""",
    """CREATE TABLE receipts (
        digest BLOB NOT NULL REFERENCES updates (digest) ON DELETE CASCADE,
        miner_id TEXT NOT NULL,
        status INTEGER NOT NULL,
        reason INTEGER NOT NULL,
        height INTEGER NOT NULL,
        envelope BLOB NOT NULL,
        PRIMARY KEY (digest, miner_id)
    ) WITHOUT ROWID""",
    # Certificates under which models were installed.
    """CREATE TABLE installs (
        version INTEGER PRIMARY KEY,
        model_root BLOB NOT NULL,
        certificate BLOB,
        installed_s INTEGER NOT NULL
    )""",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxRow:
    """One update that is on its way, without its blob."""

    digest: Digest
    seq: int
    base_version: int
    expiry_height: int
    envelope: bytes
    blob_bytes: int
    created_s: int
    stored_by: frozenset[str]
    refused_by: tuple[tuple[str, Reason], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class NewUpdate:
    """An update to be stored, with what changes with it."""

    digest: Digest
    seq: int
    base_version: int
    expiry_height: int
    envelope: bytes
    blob: bytes
    created_s: int
    residual: bytes


class Outbox:
    """See the module. Methods raise ``StoreError`` when the disk refuses, ``CorruptStoreError`` when the file lies."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        """Use ``open``."""
        self._path = path
        self._db = connection

    @classmethod
    def open(cls, path: Path, *, device_id: DeviceId, chain_id: ChainId, task: str) -> Outbox:
        """Open the file, or make it.

        Raises:
            NewerStateError: a newer version of this program wrote it.
            CorruptStoreError: SQLite finds it damaged, or it is of another device, chain or task.
            StoreError: it cannot be opened.
        """
        is_new = not path.exists()
        try:
            connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None)
        except sqlite3.Error as error:
            raise StoreError(f"{path}: {error}") from error
        outbox = cls(path, connection)
        try:
            with outbox._guard():
                if is_new:
                    path.chmod(0o600)
                connection.execute("PRAGMA journal_mode=WAL")
                connection.execute("PRAGMA synchronous=FULL")
                connection.execute("PRAGMA foreign_keys=ON")
                connection.execute("PRAGMA cache_size=-512")
                outbox._check_or_create({"device_id": device_id, "chain_id": chain_id, "task": task})
        except StoreError:
            connection.close()
            raise
        return outbox

    # --- numbers ---

    @property
    def next_seq(self) -> int:
        """Sequence number of the next update; never goes back."""
        return self._number("next_seq", 1)

    @property
    def last_trained(self) -> int:
        """Base version of the newest update, -1 before the first."""
        return self._number("last_trained", -1)

    @property
    def version_floor(self) -> int:
        """Highest version ever installed, -1 before the first."""
        return self._number("version_floor", -1)

    def begin_run(self) -> int:
        """Count the starts of this process, durably, so that session numbers rise over restarts."""
        with self._transaction():
            runs = self._number("runs", 0) + 1
            self._set_number("runs", runs)
        return runs

    def record_install(self, version: int, root: Digest, certificate: bytes | None, *, now_s: int) -> None:
        """Raise the version floor and keep the certificate."""
        with self._transaction():
            self._set_number("version_floor", max(version, self._number("version_floor", -1)))
            self._db.execute("INSERT OR REPLACE INTO installs VALUES (?, ?, ?, ?)", (version, root, certificate, now_s))
            self._db.execute("DELETE FROM installs WHERE version <= ?", (version - SETTLED_ROWS_MAX,))

    # --- updates ---

    def store(self, update: NewUpdate) -> None:
        """Store an update: row, residual, ``seq`` and base in one transaction.

        Raises:
            LocalProtocolError: its ``seq`` is not the next one, or its blob is too long.
        """
        if len(update.blob) > BLOB_BYTES_MAX or update.seq > SEQ_MAX:
            raise LocalProtocolError(f"update of {len(update.blob)} bytes, seq {update.seq}: out of bounds")
        with self._transaction():
            if update.seq != self._number("next_seq", 1):
                raise LocalProtocolError(f"seq {update.seq}, expected {self._number('next_seq', 1)}")
            self._db.execute(
                "INSERT INTO updates (digest, seq, base_version, expiry_height, envelope, blob, blob_bytes, created_s)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    update.digest,
                    update.seq,
                    update.base_version,
                    update.expiry_height,
                    update.envelope,
                    update.blob,
                    len(update.blob),
                    update.created_s,
                ),
            )
            self._set_number("next_seq", update.seq + 1)
            self._set_number("last_trained", max(update.base_version, self._number("last_trained", -1)))
            self._set_residual(update.residual)
            failpoints.hit("device.before_outbox_commit")
        failpoints.hit("device.after_outbox_commit")

    def rows(self) -> tuple[OutboxRow, ...]:
        """Updates on their way, oldest first, with the receipts held for each."""
        with self._guard():
            found = self._db.execute(
                "SELECT digest, seq, base_version, expiry_height, envelope, blob_bytes, created_s"
                " FROM updates WHERE verdict IS NULL ORDER BY seq"
            ).fetchall()
            return tuple(self._row(*columns) for columns in found)

    def envelope(self, digest: Digest) -> bytes:
        """Signed manifest of an update."""
        with self._guard():
            found = self._db.execute("SELECT envelope FROM updates WHERE digest = ?", (digest,)).fetchone()
        if found is None:
            raise LocalProtocolError(f"no update {digest.hex()} in the outbox")
        envelope: bytes = found[0]
        return envelope

    def blob(self, digest: Digest, *, offset: int = 0, size: int | None = None) -> bytes:
        """Bytes of an update's blob, without reading the rest of it."""
        with self._guard():
            found = self._db.execute(
                "SELECT substr(blob, ?, ?) FROM updates WHERE digest = ?",
                (offset + 1, BLOB_BYTES_MAX if size is None else size, digest),
            ).fetchone()
        if found is None or found[0] is None:
            raise LocalProtocolError(f"no blob of update {digest.hex()} in the outbox")
        data: bytes = found[0]
        return data

    def save_receipt(self, receipt: Receipt, envelope: bytes) -> None:
        """Keep a miner's newest word on an update; a ``stored`` is not taken back."""
        with self._transaction():
            self._db.execute(
                "INSERT INTO receipts VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (digest, miner_id) DO UPDATE SET"
                " status = excluded.status, reason = excluded.reason, height = excluded.height,"
                " envelope = excluded.envelope WHERE status != ?",
                (
                    receipt.update_digest,
                    receipt.miner_id,
                    receipt.status,
                    receipt.reason,
                    receipt.height,
                    envelope,
                    ReceiptStatus.STORED,
                ),
            )

    def residual(self) -> bytes | None:
        """What earlier updates could not carry; None before the first."""
        with self._guard():
            found = self._db.execute("SELECT data FROM residual").fetchone()
        return None if found is None else found[0]

    def settle(
        self,
        digest: Digest,
        verdict: Verdict,
        reason: Reason,
        *,
        outcome: bytes | None,
        residual: bytes | None,
        now_s: int,
    ) -> None:
        """End an update in one transaction.

        Args:
            digest: The update.
            verdict: What became of it.
            reason: Why, where it was refused.
            outcome: The certified outcome's bytes, where there is one.
            residual: The new residual where the delta returned to it, None to leave it as it is.
            now_s: Calendar time.
        """
        with self._transaction():
            changed = self._db.execute(
                "UPDATE updates SET verdict = ?, reason = ?, outcome = ?, settled_s = ?, blob = NULL"
                " WHERE digest = ? AND verdict IS NULL",
                (verdict, reason, outcome, now_s, digest),
            ).rowcount
            if changed and residual is not None:
                self._set_residual(residual)
            self._db.execute(
                "DELETE FROM updates WHERE verdict IS NOT NULL AND seq <= ?",
                (self._number("next_seq", 1) - SETTLED_ROWS_MAX,),
            )
            failpoints.hit("device.before_settle_commit")
        failpoints.hit("device.after_settle_commit")

    def summary(self) -> dict[str, int]:
        """Counts for ``status``: open, merged and refused updates."""
        with self._guard():
            found = dict(self._db.execute("SELECT verdict, count(*) FROM updates GROUP BY verdict").fetchall())
        return {
            "open": found.get(None, 0),
            "merged": found.get(int(Verdict.MERGED), 0),
            "refused": found.get(int(Verdict.REFUSED), 0),
        }

    def close(self) -> None:
        """Empty the WAL and close."""
        with self._guard():
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            self._db.close()

    # --- inside ---

    def _check_or_create(self, identity: dict[str, str]) -> None:
        if self._db.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
            raise self._corrupt("SQLite finds it damaged")
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        if version == 0:
            with self._transaction():
                for statement in _TABLES:
                    self._db.execute(statement)
                self._db.executemany("INSERT INTO meta (key, text) VALUES (?, ?)", identity.items())
                self._db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            return
        if version > SCHEMA_VERSION:
            raise NewerStateError(
                f"{self._path}: schema {version}, this program knows {SCHEMA_VERSION}: a newer version of it wrote the"
                " file. Nothing was changed; run that version again"
            )
        if version != SCHEMA_VERSION:
            raise self._corrupt(f"schema {version}, this program knows {SCHEMA_VERSION}")
        found = dict(self._db.execute("SELECT key, text FROM meta WHERE text IS NOT NULL").fetchall())
        if found != identity:
            raise self._corrupt(f"it belongs to {found}, this is {identity}")
        highest = self._db.execute("SELECT max(seq) FROM updates").fetchone()[0]
        if highest is not None and highest >= self._number("next_seq", 1):
            raise self._corrupt(f"it holds seq {highest} but would use {self._number('next_seq', 1)} next")

    def _row(
        self, digest: Digest, seq: int, base: int, expiry: int, envelope: bytes, size: int, created_s: int
    ) -> OutboxRow:
        receipts = self._db.execute(
            "SELECT miner_id, status, reason FROM receipts WHERE digest = ? ORDER BY miner_id", (digest,)
        ).fetchall()
        return OutboxRow(
            digest=digest,
            seq=seq,
            base_version=base,
            expiry_height=expiry,
            envelope=envelope,
            blob_bytes=size,
            created_s=created_s,
            stored_by=frozenset(miner for miner, status, _ in receipts if status == ReceiptStatus.STORED),
            refused_by=tuple(
                (miner, Reason(reason)) for miner, status, reason in receipts if status == ReceiptStatus.REFUSED
            ),
        )

    def _number(self, key: str, default: int) -> int:
        with self._guard():
            found = self._db.execute("SELECT number FROM meta WHERE key = ?", (key,)).fetchone()
        return default if found is None else int(found[0])

    def _set_number(self, key: str, number: int) -> None:
        self._db.execute("INSERT OR REPLACE INTO meta (key, number) VALUES (?, ?)", (key, number))

    def _set_residual(self, data: bytes) -> None:
        self._db.execute("INSERT OR REPLACE INTO residual VALUES (1, ?)", (data,))

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """All or nothing; takes the write lock at the start, so that it cannot fail half-way for want of it."""
        with self._guard():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    @contextmanager
    def _guard(self) -> Iterator[None]:
        """Turn SQLite's errors into ours."""
        try:
            yield
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise StoreError(f"{self._path}: {error}") from error
            raise self._corrupt(str(error)) from error
        except UnicodeDecodeError as error:  # SQLite's message quotes a ruined schema, and Python cannot read it
            raise self._corrupt(f"the schema is ruined: {error}") from error

    def _corrupt(self, what: str) -> CorruptStoreError:
        return CorruptStoreError(
            f"{self._path}: {what}. Nothing was changed. Keep the file for analysis; to go on, move it away and enrol"
            " this device anew (its sequence numbers must not start again under the same key)"
        )
