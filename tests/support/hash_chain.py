"""A small deterministic application for the ordering engine: the app hash chains every executed transaction.

Run as a process: ``python -m tests.support.hash_chain SOCKET DATABASE [BEHAVIOUR]``. It executes everything that it is
given, twice if asked twice, so that its table shows what the engine did. Transactions: ``bad:`` fails the cheap check,
``late:`` passes it but is never proposed, ``fail:`` is executed without effect (code 7), everything else is fine.

Behaviours: ``lie:H`` another app hash from height H on, ``hang:H`` never answers the execution of H, ``mute`` never
proposes, ``greedy`` proposes more than a height may hold, ``refuse`` votes no, ``error`` answers CheckTx with an
exception.
"""

from __future__ import annotations

import asyncio
import hashlib
import sqlite3
import sys
import weakref
from collections.abc import Sequence
from pathlib import Path

from coordinator.ordering.abci_server import serve_abci
from coordinator.ordering.frames import pack
from edge_sdk.adapters.failpoints import hit
from edge_sdk.errors import DecodeError
from edge_sdk.protocol.limits import HEIGHT_BYTES_MAX, TX_BYTES_MAX

FAILED_CODE = 7


class HashChain:
    """An ``AbciHandler`` over SQLite, durable at commit like a miner's ledger."""

    def __init__(self, database: Path, behaviour: str = "") -> None:
        """Open or create."""
        self._behaviour, _, height = behaviour.partition(":")
        self._from_height = int(height) if height else 0
        self._database = sqlite3.connect(database, isolation_level=None)
        weakref.finalize(self, self._database.close)
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = FULL")
        self._database.execute("CREATE TABLE IF NOT EXISTS state (id INTEGER PRIMARY KEY, height, app_hash, chain_id)")
        self._database.execute("CREATE TABLE IF NOT EXISTS executed (height, time_s, proposer, tx)")
        self._finalized: tuple[int, int, bytes, Sequence[bytes], bytes] | None = None

    async def info(self) -> tuple[int, bytes]:
        row = self._database.execute("SELECT height, app_hash FROM state WHERE id = 1").fetchone()
        return row or (0, b"")

    async def init_chain(self, chain_id: str, genesis_bytes: bytes) -> None:
        app_hash = hashlib.sha256(genesis_bytes).digest()
        self._database.execute("INSERT OR REPLACE INTO state VALUES (1, 0, ?, ?)", (app_hash, chain_id))

    async def check_tx(self, tx: bytes) -> tuple[int, str]:
        if self._behaviour == "error":
            raise DecodeError("no")
        return (3, "bad tx") if tx.startswith(b"bad:") else (0, "")

    async def prepare_proposal(self, txs: Sequence[bytes], bytes_max: int, height: int) -> list[bytes]:
        if self._behaviour == "mute":
            await asyncio.Event().wait()
        if self._behaviour == "greedy":
            return [b"x" * TX_BYTES_MAX] * (HEIGHT_BYTES_MAX // TX_BYTES_MAX + 1)
        return [tx for tx in txs if not tx.startswith(b"late:")]

    async def process_proposal(self, txs: Sequence[bytes], height: int) -> bool:
        return self._behaviour != "refuse"

    async def finalize_block(
        self, height: int, time_s: int, txs: Sequence[bytes], proposer: bytes
    ) -> tuple[list[tuple[int, str]], bytes]:
        last, app_hash = await self.info()
        if height != last + 1:
            raise DecodeError(f"height {height} after {last}")
        if self._behaviour == "hang" and height >= self._from_height:
            await asyncio.Event().wait()
        lie = b"lie" if self._behaviour == "lie" and height >= self._from_height else b""
        parts = (app_hash, height.to_bytes(8, "big"), time_s.to_bytes(8, "big"), pack(txs), proposer, lie)
        self._finalized = (height, time_s, proposer, txs, hashlib.sha256(pack(parts)).digest())
        codes = [(FAILED_CODE, "failed") if tx.startswith(b"fail:") else (0, "") for tx in txs]
        return codes, self._finalized[-1]

    async def commit(self) -> int:
        assert self._finalized is not None
        hit("app.before_commit")
        height, time_s, proposer, txs, app_hash = self._finalized
        self._database.execute("BEGIN")
        self._database.executemany(
            "INSERT INTO executed VALUES (?, ?, ?, ?)", [(height, time_s, proposer.decode(), tx) for tx in txs]
        )
        self._database.execute("UPDATE state SET height = ?, app_hash = ? WHERE id = 1", (height, app_hash))
        self._database.execute("COMMIT")
        hit("app.after_commit")
        return 0


if __name__ == "__main__":
    asyncio.run(serve_abci(HashChain(Path(sys.argv[2]), *sys.argv[3:]), Path(sys.argv[1])))
