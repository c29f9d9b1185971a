"""A miner's durable ledger in one SQLite file (WAL, synchronous=FULL): one transaction per height.

The log of heights is the truth. Blocks, entries and the snapshot of the state are written with it, in the same
transaction, so that no restart finds one without the other; ``replay`` derives them again and compares. A row of
``uploads`` and the own scores of a block are promises: each is durable before the message that makes it.

One thread at a time: the methods lock, since a worker may store a model while the event loop reads.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Any, Final

from coordinator.events import BlockCertified, BlockDecided, RoundVoided
from coordinator.ledger import block as blocks
from coordinator.ledger import records, rows
from coordinator.ledger.rows import BlockRow, HeightRow, ModelRow, OwnScores, UploadRow
from coordinator.ledger.schema import connect
from coordinator.ledger.state import CORE_BYTES_MAX, Core, State
from edge_sdk.errors import CorruptLedgerError, CorruptStoreError, DecodeError, StoreError
from edge_sdk.protocol import wire
from edge_sdk.protocol.ids import DeviceId, Digest, MinerId, check_digest, check_name
from edge_sdk.protocol.messages import BlockHeader, Certificate, Genesis, Outcome, Scores, Verdict

if TYPE_CHECKING:
    from coordinator.application import Finalized

_GENESIS: Final = "genesis"
_MINER: Final = "miner"


class LedgerStore:
    """The ledger of one miner."""

    def __init__(self, path: Path, database: sqlite3.Connection, *, read_only: bool) -> None:
        """Wrap an open database; use ``open``."""
        self.path = path
        self.read_only = read_only
        self._database = database
        self._lock = RLock()
        try:
            self.genesis = self._read_genesis()
            self.miner_id = MinerId(check_name(self._meta(_MINER).decode("ascii", "replace"), what="miner"))
        except (DecodeError, CorruptStoreError) as error:
            raise CorruptLedgerError(f"{path}: {error}", place=f"{path.name}: meta") from error
        self._first_link = rows.first_link(self.genesis, self.miner_id)

    @classmethod
    def open(
        cls, path: Path, *, genesis: Genesis | None = None, miner_id: MinerId | None = None, read_only: bool = False
    ) -> LedgerStore:
        """Open a ledger, or create it for this chain and miner.

        Args:
            path: ``ledger.sqlite3`` of the miner.
            genesis: Required to create; an existing ledger must be of the same chain.
            miner_id: Likewise.
            read_only: Never write, not even a lock file where there is no write-ahead log.

        Raises:
            StoreError: the file cannot be opened, or belongs to another chain or miner.
            CorruptLedgerError: what it says about itself cannot be read.
        """
        if read_only and not path.is_file():
            raise StoreError(f"{path}: no such ledger")
        database = connect(path, read_only=read_only)
        try:
            if not read_only and genesis is not None and miner_id is not None:
                rows_of_meta = ((_GENESIS, wire.to_bytes(genesis)), (_MINER, miner_id.encode()))
                database.executemany("INSERT OR IGNORE INTO meta VALUES (?, ?)", rows_of_meta)
            store = cls(path, database, read_only=read_only)
            store.check_owner(genesis, miner_id)
        except sqlite3.Error as error:
            database.close()
            raise StoreError(f"{path}: {error}") from error
        except BaseException:
            database.close()
            raise
        return store

    def check_owner(self, genesis: Genesis | None, miner_id: MinerId | None) -> None:
        """Check that this is the ledger of that chain and that miner; None is not compared.

        Raises:
            StoreError: it is another's.
        """
        if genesis is not None and genesis != self.genesis:
            raise StoreError(f"{self.path}: the ledger of another chain ({self.genesis.chain_id})")
        if miner_id is not None and miner_id != self.miner_id:
            raise StoreError(f"{self.path}: the ledger of another miner ({self.miner_id})")

    def close(self) -> None:
        """Close cleanly: the write-ahead log is emptied into the file.

        Raises:
            StoreError: the disk refuses; the ledger is closed all the same, and nothing is lost by it.
        """
        with self._lock:
            try:
                if not self.read_only:
                    self._database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            except sqlite3.Error as error:
                raise _store_error(self.path, error) from error
            finally:
                self._database.close()

    # --- the log ---

    def commit_height(self, finalized: Finalized, *, proposer: str) -> HeightRow:
        """Make a finalized height durable: log, blocks, entries and snapshot in one transaction.

        Raises:
            StoreError: the disk refuses, or it is not the next height; nothing was written.
        """
        txs = rows.pack_txs(finalized.txs)
        with self._transaction() as database:
            last = self._last_link()
            if finalized.height != last[0] + 1:
                raise StoreError(f"{self.path}: height {finalized.height} after {last[0]}")
            link = rows.chain_hash(
                last[1],
                height=finalized.height,
                time_s=finalized.time_s,
                proposer=proposer,
                txs=txs,
                state_root=finalized.state_root,
            )
            database.execute(
                "INSERT INTO heights VALUES (?, ?, ?, ?, ?, ?)",
                (finalized.height, finalized.time_s, proposer, txs, finalized.state_root, link),
            )
            self._write_snapshot(finalized)
            for event in finalized.events:
                match event:
                    case BlockDecided():
                        self._write_block(event)
                    case BlockCertified():
                        self._certify_block(event)
                    case RoundVoided(block_index=index):
                        database.execute("DELETE FROM own_scores WHERE block_index <= ?", (index,))
                    case _:
                        pass
        return HeightRow(
            height=finalized.height,
            time_s=finalized.time_s,
            proposer=proposer,
            txs=finalized.txs,
            state_root=finalized.state_root,
            chain_hash=link,
        )

    def height(self) -> int:
        """Last durable height; 0 when there is none."""
        return self._last_link()[0]

    def heights(self, first: int = 1) -> Iterator[HeightRow]:
        """Yield the log from a height on.

        Raises:
            CorruptLedgerError: a row cannot be read.
        """
        height = first
        while (row := self.height_row(height)) is not None:
            yield row
            height += 1

    def height_row(self, height: int) -> HeightRow | None:
        """Return one height."""
        row = self._one("SELECT time_s, proposer, txs, state_root, chain_hash FROM heights WHERE height = ?", (height,))
        if row is None:
            return None
        with self._reading("heights", height=height):
            return HeightRow(
                height=height,
                time_s=row[0],
                proposer=row[1],
                txs=rows.unpack_txs(row[2]),
                state_root=Digest(row[3]),
                chain_hash=Digest(row[4]),
            )

    def load_state(self) -> State | None:
        """Return the state after the last height, or None before the first.

        Raises:
            CorruptLedgerError: the snapshot cannot be read, or is not the one whose root the log holds.
        """
        height = self.height()
        core = self._one("SELECT record FROM snapshot_core")
        if core is None or height == 0:
            if core is not None or height != 0:
                raise CorruptLedgerError(
                    f"{self.path}: log and snapshot do not belong together",
                    place=f"{self.path.name}: snapshot_core",
                    height=height,
                )
            return None
        devices = self._all("SELECT record, device_id FROM snapshot_devices ORDER BY device_id")
        updates = self._all("SELECT record, update_digest, place FROM snapshot_updates ORDER BY place")
        with self._reading("snapshot", height=height):
            state = State.assemble(
                records.from_bytes(Core, core[0], bytes_max=CORE_BYTES_MAX),
                [row[0] for row in devices],
                [row[0] for row in updates],
            )
        keys_hold = [row[1] for row in devices] == list(state.registry) and [row[1:] for row in updates] == [
            (update.update_digest, update.order) for update in state.updates.values()
        ]
        found = self._one("SELECT state_root FROM heights WHERE height = ?", (height,))
        if not keys_hold or state.height != height or found is None or state.root != found[0]:
            raise CorruptLedgerError(
                f"{self.path}: the snapshot is not the state of height {height}",
                place=f"{self.path.name}: snapshot",
                height=height,
            )
        return state

    # --- what derives from the log ---

    def block(self, index: int) -> BlockRow | None:
        """Return one decided block."""
        row = self._one("SELECT header, entries, certificate FROM blocks WHERE block_index = ?", (index,))
        return None if row is None else self._block_row(index, row)

    def blocks(self, first: int = 1, limit: int = 100) -> tuple[BlockRow, ...]:
        """Return up to ``limit`` decided blocks in rising order, from an index on; void rounds have none."""
        found = self._all(
            "SELECT header, entries, certificate, block_index FROM blocks WHERE block_index >= ? "
            "ORDER BY block_index LIMIT ?",
            (first, limit),
        )
        return tuple(self._block_row(row[3], row) for row in found)

    def block_indices(self) -> tuple[int, ...]:
        """Return the indices of all decided blocks, rising."""
        return tuple(row[0] for row in self._all("SELECT block_index FROM blocks ORDER BY block_index"))

    def entry_places(self) -> tuple[tuple[Digest, int, int], ...]:
        """Return (update digest, block index, position) of every decided update, sorted."""
        found = self._all(
            "SELECT update_digest, block_index, position FROM entries ORDER BY block_index, position, update_digest"
        )
        return tuple((Digest(row[0]), row[1], row[2]) for row in found)

    def outcome(self, update_digest: Digest) -> Outcome | None:
        """Return the certified outcome of an update: the merged one if there is one, else the last."""
        found = self._all(
            "SELECT block_index, position FROM entries WHERE update_digest = ? ORDER BY block_index DESC",
            (update_digest,),
        )
        last: Outcome | None = None
        for index, position in found:
            row = self.block(index)
            if row is None or row.certificate is None or position >= len(row.entries):
                continue
            outcome = blocks.outcome(row.header, row.entries, row.certificate, position)
            if outcome.entry.verdict is Verdict.MERGED:
                return outcome
            last = last or outcome
        return last

    # --- models ---

    def put_model(self, model: ModelRow) -> None:
        """Record a certified or freshly merged version whose blob is durable; a version is written once."""
        with self._transaction() as database:
            database.execute(
                "INSERT OR IGNORE INTO models VALUES (?, ?, ?, ?)",
                (model.version, model.model_root, model.blob_digest, model.blob_bytes),
            )

    def drop_model(self, version: int) -> None:
        """Forget a version: this miner merged another root than the quorum, or prunes."""
        with self._transaction() as database:
            database.execute("DELETE FROM models WHERE version = ?", (version,))

    def model(self, version: int) -> ModelRow | None:
        """Return one version of the model that this miner holds."""
        row = self._one("SELECT version, model_root, blob_digest, blob_bytes FROM models WHERE version = ?", (version,))
        with self._reading(f"models, version {version}"):
            return None if row is None else _model_row(row)

    def models(self) -> tuple[ModelRow, ...]:
        """Return all versions that this miner holds, in rising order."""
        found = self._all("SELECT version, model_root, blob_digest, blob_bytes FROM models ORDER BY version")
        with self._reading("models"):
            return tuple(_model_row(row) for row in found)

    # --- promises ---

    def put_upload(self, upload: UploadRow) -> None:
        """Record an update whose blob is durable, before its receipt is signed; again is no change."""
        with self._transaction() as database:
            database.execute(
                "INSERT OR IGNORE INTO uploads VALUES (?, ?, ?, ?, ?, ?, ?)",
                (
                    upload.update_digest,
                    upload.device_id,
                    upload.seq,
                    upload.envelope,
                    upload.blob_digest,
                    upload.blob_bytes,
                    upload.received_s,
                ),
            )

    def upload(self, update_digest: Digest) -> UploadRow | None:
        """Return one held update."""
        row = self._one(f"{_SELECT_UPLOADS} WHERE update_digest = ?", (update_digest,))
        with self._reading("uploads"):
            return None if row is None else _upload_row(row)

    def uploads(self) -> tuple[UploadRow, ...]:
        """Return all held updates, oldest first."""
        found = self._all(f"{_SELECT_UPLOADS} ORDER BY received_s, update_digest")
        with self._reading("uploads"):
            return tuple(_upload_row(row) for row in found)

    def drop_upload(self, update_digest: Digest) -> None:
        """Forget an update that can never enter the ledger."""
        with self._transaction() as database:
            database.execute("DELETE FROM uploads WHERE update_digest = ?", (update_digest,))

    def put_own_scores(self, own: OwnScores) -> OwnScores:
        """Record scores and salt of a block, before the commitment leaves; the first ones of a block stay.

        Returns:
            What is recorded now: after a restart the old ones, so that no second commitment is ever signed.
        """
        with self._transaction() as database:
            database.execute(
                "INSERT OR IGNORE INTO own_scores VALUES (?, ?, ?)",
                (own.block_index, wire.to_bytes(own.scores), own.salt),
            )
        return self.own_scores(own.block_index) or own

    def own_scores(self, block_index: int) -> OwnScores | None:
        """Return the recorded scores of a block."""
        row = self._one("SELECT scores, salt FROM own_scores WHERE block_index = ?", (block_index,))
        if row is None:
            return None
        with self._reading("own_scores"):
            return OwnScores(block_index=block_index, scores=wire.from_bytes(Scores, row[0]), salt=row[1])

    def own_score_blocks(self) -> tuple[int, ...]:
        """Return the blocks for which scores are recorded."""
        return tuple(row[0] for row in self._all("SELECT block_index FROM own_scores ORDER BY block_index"))

    def check_integrity(self) -> None:
        """Let SQLite check its pages, indices and types.

        Raises:
            CorruptLedgerError: something does not hold.
        """
        found = self._all("PRAGMA integrity_check(1)")
        if [row[0] for row in found] != ["ok"]:
            said = " ".join(str(found[0][0]).split())  # SQLite breaks it into lines
            raise CorruptLedgerError(f"{self.path}: {said}", place=self.path.name)

    # --- inside ---

    def _write_snapshot(self, finalized: Finalized) -> None:
        changes, database = finalized.changes, self._database
        database.execute(
            "INSERT OR REPLACE INTO snapshot_core VALUES (1, ?)", (records.to_bytes(finalized.state.core),)
        )
        database.executemany(
            "INSERT OR REPLACE INTO snapshot_devices VALUES (?, ?)", [(d.device_id, d.encoded) for d in changes.devices]
        )
        database.executemany(
            "INSERT OR REPLACE INTO snapshot_updates VALUES (?, ?, ?)",
            [(u.update_digest, u.order, u.encoded) for u in changes.updates],
        )
        database.executemany(
            "DELETE FROM snapshot_updates WHERE update_digest = ?", [(digest,) for digest in changes.removed]
        )

    def _write_block(self, event: BlockDecided) -> None:
        index = event.header.index
        self._database.execute(
            "INSERT INTO blocks VALUES (?, ?, ?, NULL)",
            (index, wire.to_bytes(event.header), rows.pack_entries(event.entries)),
        )
        self._database.executemany(
            "INSERT INTO entries VALUES (?, ?, ?)",
            [(entry.update_digest, index, position) for position, entry in enumerate(event.entries)],
        )

    def _certify_block(self, event: BlockCertified) -> None:
        index = event.header.index
        self._database.execute(
            "UPDATE blocks SET certificate = ? WHERE block_index = ?", (wire.to_bytes(event.certificate), index)
        )
        self._database.execute("DELETE FROM own_scores WHERE block_index <= ?", (index,))
        self._database.executemany(
            "DELETE FROM uploads WHERE update_digest = ?", [(entry.update_digest,) for entry in event.entries]
        )

    def _block_row(self, index: int, row: tuple[Any, ...]) -> BlockRow:
        with self._reading(f"blocks, index {index}"):
            return BlockRow(
                header=wire.from_bytes(BlockHeader, row[0]),
                entries=rows.unpack_entries(row[1]),
                certificate=None if row[2] is None else wire.from_bytes(Certificate, row[2]),
            )

    def _last_link(self) -> tuple[int, Digest]:
        row = self._one("SELECT height, chain_hash FROM heights ORDER BY height DESC LIMIT 1")
        return (0, self._first_link) if row is None else (row[0], Digest(row[1]))

    def _read_genesis(self) -> Genesis:
        return wire.from_bytes(Genesis, self._meta(_GENESIS))

    def _meta(self, key: str) -> bytes:
        row = self._one("SELECT value FROM meta WHERE key = ?", (key,))
        if row is None:
            raise DecodeError(f"no {key} in the ledger")
        value: bytes = row[0]
        return value

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                self._database.execute("BEGIN IMMEDIATE")
                try:
                    yield self._database
                    self._database.execute("COMMIT")
                except BaseException:
                    if self._database.in_transaction:
                        self._database.execute("ROLLBACK")
                    raise
            except sqlite3.Error as error:
                raise _store_error(self.path, error) from error

    def _one(self, query: str, arguments: tuple[object, ...] = ()) -> tuple[Any, ...] | None:
        found = self._all(query, arguments)
        return found[0] if found else None

    def _all(self, query: str, arguments: tuple[object, ...] = ()) -> list[tuple[Any, ...]]:
        with self._lock:
            try:
                return self._database.execute(query, arguments).fetchall()
            except sqlite3.Error as error:
                raise _store_error(self.path, error) from error
            except UnicodeDecodeError as error:  # SQLite's message quotes a ruined schema, and Python cannot read it
                raise CorruptStoreError(f"{self.path}: the schema is ruined: {error}") from error

    @contextmanager
    def _reading(self, table: str, *, height: int | None = None) -> Iterator[None]:
        """Turn unreadable content into an error that names its place."""
        try:
            yield
        except DecodeError as error:
            place = f"{self.path.name}: {table}"
            raise CorruptLedgerError(f"{self.path}: {table}: {error}", place=place, height=height) from error


_SELECT_UPLOADS: Final = (
    "SELECT update_digest, device_id, seq, envelope, blob_digest, blob_bytes, received_s FROM uploads"
)


def _upload_row(row: tuple[Any, ...]) -> UploadRow:
    return UploadRow(
        update_digest=check_digest(row[0]),
        device_id=DeviceId(row[1]),
        seq=row[2],
        envelope=row[3],
        blob_digest=check_digest(row[4]),
        blob_bytes=row[5],
        received_s=row[6],
    )


def _model_row(row: tuple[Any, ...]) -> ModelRow:
    return ModelRow(
        version=row[0], model_root=check_digest(row[1]), blob_digest=check_digest(row[2]), blob_bytes=row[3]
    )


def _store_error(path: Path, error: sqlite3.Error) -> StoreError:
    """Disk full, locked or read-only is the surroundings' fault; anything else of the database is corruption."""
    if isinstance(error, sqlite3.OperationalError | sqlite3.IntegrityError):
        return StoreError(f"{path}: {error}")
    return CorruptStoreError(f"{path}: {error}")
