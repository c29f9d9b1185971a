"""The log of the ``local`` engine: every decided height, chained by hash, durable before any miner executes it.

SQLite, WAL, synchronous=FULL: one height is one transaction is one fsync. The row of a height holds the app hash that
the quorum agreed on *before* it, as in CometBFT's headers, so that agreement costs no write of its own.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from coordinator.ordering.frames import pack, unpack
from edge_sdk.errors import ConfigError, CorruptLedgerError, DecodeError, StoreError
from edge_sdk.protocol.limits import HEIGHT_TXS_MAX

_TAG: Final = b"flchain-log-v1"
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value BLOB NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS heights (
    height INTEGER PRIMARY KEY,
    time_s INTEGER NOT NULL,
    proposer TEXT NOT NULL,
    previous_app_hash BLOB NOT NULL,
    txs BLOB NOT NULL,
    block_hash BLOB NOT NULL
) STRICT;
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decided:
    """One height of the log."""

    height: int
    time_s: int
    proposer: str
    previous_app_hash: bytes
    """After the height before, as more than 2/3 of the power computed it."""
    txs: tuple[bytes, ...]
    block_hash: bytes

    @property
    def size_bytes(self) -> int:
        """Bytes of its transactions."""
        return sum(len(tx) for tx in self.txs)


def decide(
    *, previous_hash: bytes, height: int, time_s: int, proposer: str, previous_app_hash: bytes, txs: Sequence[bytes]
) -> Decided:
    """Make the height that follows the block ``previous_hash``."""
    parts = (
        _TAG,
        previous_hash,
        height.to_bytes(8, "big"),
        time_s.to_bytes(8, "big", signed=True),
        proposer.encode("utf-8"),
        previous_app_hash,
        hashlib.sha256(pack(txs)).digest(),
    )
    return Decided(
        height=height,
        time_s=time_s,
        proposer=proposer,
        previous_app_hash=previous_app_hash,
        txs=tuple(txs),
        block_hash=hashlib.sha256(pack(parts)).digest(),
    )


class OrderedLog:
    """The log file of one chain. One process writes it; any one thread at a time may use it."""

    def __init__(self, path: Path, database: sqlite3.Connection, lock: int, origin: bytes) -> None:
        """Use ``open``."""
        self._path = path
        self._database = database
        self._lock = lock
        self._origin = origin

    @classmethod
    def open(cls, path: Path, *, chain_id: str, genesis_digest: bytes) -> Self:
        """Open or create the log of a chain.

        Raises:
            ConfigError: another process has it open, or it belongs to another chain.
            StoreError: it cannot be read or written.
            CorruptLedgerError: it is not a log, or has a gap.
        """
        try:
            lock = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StoreError(f"{path}: {error.strerror}") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(lock)
            raise ConfigError(f"{path}: another sequencer has this log open: expected a log of its own") from error
        origin = hashlib.sha256(pack((_TAG, chain_id.encode("utf-8"), genesis_digest))).digest()
        try:
            # One thread at a time uses the connection: the executor of the chain.
            database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        except sqlite3.DatabaseError as error:
            os.close(lock)
            raise _store_error(path, error) from error
        log = cls(path, database, lock, origin)
        try:
            log._prepare(chain_id)
        except sqlite3.DatabaseError as error:
            log._release()
            raise _store_error(path, error) from error
        except BaseException:
            log._release()
            raise
        return log

    def _prepare(self, chain_id: str) -> None:
        self._path.chmod(0o600)
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = FULL")
        self._database.executescript(_SCHEMA)
        self._database.execute("INSERT OR IGNORE INTO meta VALUES ('origin', ?)", (self._origin,))
        (origin,) = self._database.execute("SELECT value FROM meta WHERE key = 'origin'").fetchone()
        if origin != self._origin:
            raise ConfigError(f"{self._path}: log of another chain or genesis: expected that of {chain_id!r}")
        count, head = self._database.execute("SELECT count(*), coalesce(max(height), 0) FROM heights").fetchone()
        if count != head:
            raise CorruptLedgerError(f"{self._path}: {count} heights up to {head}", place=f"{self._path}:heights")
        if head:
            self.read(head)

    def close(self) -> None:
        """Truncate the write-ahead log and let go of the file.

        Raises:
            StoreError: the truncation failed; nothing is lost by it.
        """
        try:
            self._database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except sqlite3.DatabaseError as error:
            raise _store_error(self._path, error) from error
        finally:
            self._release()

    def _release(self) -> None:
        self._database.close()
        os.close(self._lock)

    @property
    def origin(self) -> bytes:
        """Stands for the block before height 1: chain and genesis."""
        return self._origin

    def head(self) -> int:
        """Last decided height, 0 before the first."""
        (head,) = self._database.execute("SELECT coalesce(max(height), 0) FROM heights").fetchone()
        return int(head)

    def append(self, decided: Decided) -> None:
        """Write one height; durable on return.

        Raises:
            StoreError: it is not, for instance because the disk is full.
        """
        row = (
            decided.height,
            decided.time_s,
            decided.proposer,
            decided.previous_app_hash,
            pack(decided.txs),
            decided.block_hash,
        )
        try:
            self._database.execute("INSERT INTO heights VALUES (?, ?, ?, ?, ?, ?)", row)
        except sqlite3.DatabaseError as error:
            raise _store_error(self._path, error) from error

    def read(self, height: int) -> Decided:
        """Read one height and check it against its hash and its predecessor's.

        Raises:
            CorruptLedgerError: missing or changed.
        """
        try:
            row = self._database.execute(
                "SELECT time_s, proposer, previous_app_hash, txs, block_hash FROM heights WHERE height = ?", (height,)
            ).fetchone()
            before = self._database.execute("SELECT block_hash FROM heights WHERE height = ?", (height - 1,)).fetchone()
        except sqlite3.DatabaseError as error:
            raise _store_error(self._path, error) from error
        place = f"{self._path}:heights"
        if row is None or (before is None and height > 1):
            raise CorruptLedgerError(f"{place}: height {height} is missing", place=place, height=height)
        time_s, proposer, app_hash, packed, block_hash = row
        try:
            txs = unpack(packed, count_max=HEIGHT_TXS_MAX)
        except DecodeError as error:
            raise CorruptLedgerError(f"{place}: height {height}: {error}", place=place, height=height) from error
        decided = decide(
            previous_hash=before[0] if before else self._origin,
            height=height,
            time_s=time_s,
            proposer=proposer,
            previous_app_hash=app_hash,
            txs=txs,
        )
        if decided.block_hash != block_hash:
            raise CorruptLedgerError(f"{place}: height {height} was changed", place=place, height=height)
        return decided


def _store_error(path: Path, error: sqlite3.DatabaseError) -> StoreError | CorruptLedgerError:
    """A file that is no database is corrupt; a full disk or a lock is a matter for the operator."""
    if isinstance(error, sqlite3.OperationalError):
        return StoreError(f"{path}: {error}")
    return CorruptLedgerError(f"{path}: {error}", place=str(path))
