"""The miner as an ABCI application: the pure state machine, made durable height by height."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

from coordinator.application import Application, Finalized
from coordinator.ledger.store import LedgerStore
from coordinator.serving.metrics import MinerMetrics, MinerPhase
from edge_sdk.adapters import failpoints
from edge_sdk.errors import RemoteProtocolError
from edge_sdk.protocol import wire
from edge_sdk.protocol.messages import Reason


class MinerHandler:
    """``AbciHandler`` over ``Application`` and ``LedgerStore``.

    One engine drives it, one call at a time. A height counts when ``commit`` has returned: state, blocks and the
    transactions themselves are then in one SQLite transaction on the disk.
    """

    def __init__(
        self,
        application: Application,
        store: LedgerStore,
        metrics: MinerMetrics,
        *,
        on_commit: Callable[[Finalized], None],
    ) -> None:
        """Join the parts; ``on_commit`` is called in the event loop after each durable height."""
        self._application = application
        self._store = store
        self._metrics = metrics
        self._on_commit = on_commit
        self._finalized: Finalized | None = None
        self._proposer = ""
        self.is_driven = False
        """Whether an ordering engine has called since the start."""

    async def info(self) -> tuple[int, bytes]:
        """Height and state root of the last durable height."""
        self.is_driven = True
        state = self._application.state
        return state.height, state.root

    async def init_chain(self, chain_id: str, genesis_bytes: bytes) -> None:
        """Check that the engine orders for our chain."""
        genesis = self._application.genesis
        if chain_id != genesis.chain_id or genesis_bytes != wire.to_bytes(genesis):
            raise RemoteProtocolError(f"engine is for chain {chain_id!r} with another genesis than ours")

    async def check_tx(self, tx: bytes) -> tuple[int, str]:
        """May this transaction wait for a height?"""
        result = self._application.check(tx)
        return int(result.code), result.info

    async def prepare_proposal(self, txs: Sequence[bytes], bytes_max: int, height: int) -> list[bytes]:
        """Choose what makes a valid proposal."""
        self._check_next(height)
        return self._application.prepare(txs, bytes_max=bytes_max)

    async def process_proposal(self, txs: Sequence[bytes], height: int) -> bool:
        """Judge a proposal."""
        self._check_next(height)
        return self._application.process(txs).code is Reason.NONE

    async def finalize_block(
        self, height: int, time_s: int, txs: Sequence[bytes], proposer: bytes
    ) -> tuple[list[tuple[int, str]], bytes]:
        """Execute a decided height; nothing is durable yet."""
        self._check_next(height)
        self._finalized = self._application.finalize(height, time_s, txs)
        self._proposer = _name(proposer)
        results = [(int(result.code), result.info) for result in self._finalized.results]
        return results, self._finalized.state_root

    async def commit(self) -> int:
        """Make the finalized height durable, then the committed state."""
        finalized = self._finalized
        if finalized is None:
            raise RemoteProtocolError("commit without a finalized height")
        started_s = time.monotonic()
        failpoints.hit("miner.before_height")
        await asyncio.to_thread(self._store.commit_height, finalized, proposer=self._proposer)
        failpoints.hit("miner.after_height")
        self._application.commit(finalized)
        self._finalized = None
        self._metrics.observe(MinerPhase.FINALIZE, time.monotonic() - started_s)
        self._on_commit(finalized)
        return 0

    def _check_next(self, height: int) -> None:
        if height != self._application.state.height + 1:
            raise RemoteProtocolError(f"height {height} after {self._application.state.height}")


def _name(proposer: bytes) -> str:
    """Text of the engine's address of a member: a miner id on ``local``, the hash of a key on CometBFT."""
    return proposer.decode("ascii") if proposer.isascii() else proposer.hex()
