"""The deterministic application: what every miner computes alike from the ordered log.

Pure: transactions and the height's time come in, results, events and the next state go out. The host (an ABCI
connection, the simulator, the auditor) decides when; it does the I/O and holds the clock. The same four questions as
ABCI 2.0:

- ``check``     may this transaction wait for a place in the log?
- ``prepare``   which of these make a valid proposal?
- ``process``   is this proposal valid? Decided by bytes and state alone.
- ``finalize``  what does this decided height do? Changes nothing until ``commit``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from coordinator.admission import AdmissionView, advice
from coordinator.events import Event
from coordinator.execution import ACCEPTED, TxResult, execute
from coordinator.ledger.draft import Changes, Draft
from coordinator.ledger.miner_set import check_genesis
from coordinator.ledger.state import State
from coordinator.rounds import Chain, close_height
from coordinator.transactions import TransactionReader
from edge_sdk.errors import DecodeError, LocalProtocolError
from edge_sdk.protocol.ids import Digest
from edge_sdk.protocol.limits import HEIGHT_BYTES_MAX, HEIGHT_TXS_MAX
from edge_sdk.protocol.messages import Domain, Genesis, Reason, UpdateManifest

_ORDER: Final = {
    domain: place
    for place, domain in enumerate(
        (
            Domain.REVOKE,
            Domain.ENROL,
            Domain.CERTIFICATE,
            Domain.REVEAL,
            Domain.COMMIT,
            Domain.TICK,
            Domain.UPDATE,
            Domain.RECEIPT,
        )
    )
}
"""Order inside a proposal: the registry, then what lets the open block go on: no flood of updates can starve it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finalized:
    """What a decided height does; nothing of it counts before ``Application.commit``."""

    height: int
    time_s: int
    txs: tuple[bytes, ...]
    results: tuple[TxResult, ...]
    events: tuple[Event, ...]
    state: State
    state_root: Digest
    changes: Changes


class Application:
    """The state machine of one chain."""

    def __init__(
        self, genesis: Genesis, *, state: State | None = None, reader: TransactionReader | None = None
    ) -> None:
        """Start from genesis, or from a snapshot.

        Args:
            genesis: Of the chain.
            state: After the last height that was executed.
            reader: Remembers signatures of this chain that were verified before; its own when None.

        Raises:
            ConfigError: the genesis asks for a method that does not exist.
            LocalProtocolError: the reader is of another chain.
        """
        check_genesis(genesis)
        if reader is not None and reader.chain_id != genesis.chain_id:
            raise LocalProtocolError(f"a reader of {reader.chain_id} for {genesis.chain_id}")
        self.genesis = genesis
        self.state = State.initial(genesis) if state is None else state
        self._chain = Chain(genesis)
        self._reader = TransactionReader(genesis.chain_id) if reader is None else reader

    def admit(self, envelope: bytes) -> Reason:
        """Judge an update's envelope for a miner's intake, by committed state.

        ``NONE``: take the blob. ``DUPLICATE``: known, on the ledger already. ``EQUIVOCATION``: refuse, and submit the
        envelope as evidence.
        """
        result = self._execute_alone(envelope)
        if result.code is not Reason.NONE:
            return result.code
        manifest = self._reader.read(envelope).body
        if not isinstance(manifest, UpdateManifest):
            return Reason.MALFORMED
        return advice(AdmissionView.of(self.state), self.genesis, manifest)

    def check(self, tx: bytes) -> TxResult:
        """Judge a transaction against committed state; evidence passes, so that it reaches the ledger."""
        result = self._execute_alone(tx)
        return TxResult(Reason.NONE, result.info) if result.belongs else result

    def prepare(self, txs: Sequence[bytes], *, bytes_max: int = HEIGHT_BYTES_MAX) -> list[bytes]:
        """Choose, in canonical order, transactions that make a valid proposal of at most ``bytes_max``."""
        draft = self._draft(self.state.height + 1, self.state.core.time_s)
        chosen: list[bytes] = []
        size_bytes = 0
        for tx in sorted(dict.fromkeys(txs), key=self._place):
            if len(chosen) == HEIGHT_TXS_MAX:
                break
            if size_bytes + len(tx) <= min(bytes_max, HEIGHT_BYTES_MAX) and self._execute(draft, tx).belongs:
                chosen.append(tx)
                size_bytes += len(tx)
        return chosen

    def process(self, txs: Sequence[bytes]) -> TxResult:
        """Judge a proposal: within bounds, and every transaction belongs on the ledger when applied in this order."""
        if len(txs) > HEIGHT_TXS_MAX or sum(len(tx) for tx in txs) > HEIGHT_BYTES_MAX:
            return TxResult(Reason.OVERSIZE, f"a proposal of {len(txs)} transactions")
        draft = self._draft(self.state.height + 1, self.state.core.time_s)
        for tx in txs:
            result = self._execute(draft, tx)
            if not result.belongs:
                return result
        return ACCEPTED

    def finalize(self, height: int, time_s: int, txs: Sequence[bytes]) -> Finalized:
        """Execute a decided height.

        Args:
            height: The next one.
            time_s: Time of the height, seconds since 1970; the state's clock never goes back.
            txs: In the decided order; those that do not belong are skipped with their reason.

        Raises:
            LocalProtocolError: not the next height.
        """
        if height != self.state.height + 1:
            raise LocalProtocolError(f"height {height} after {self.state.height}")
        draft = self._draft(height, time_s)
        results = tuple(self._execute(draft, tx) for tx in txs)
        close_height(draft, self._chain)
        state, changes = draft.freeze()
        return Finalized(
            height=height,
            time_s=time_s,
            txs=tuple(txs),
            results=results,
            events=tuple(draft.events),
            state=state,
            state_root=state.root,
            changes=changes,
        )

    def commit(self, finalized: Finalized) -> None:
        """Make a finalized height the committed state.

        Raises:
            LocalProtocolError: it does not follow the committed state.
        """
        if finalized.height != self.state.height + 1:
            raise LocalProtocolError(f"commit of height {finalized.height} after {self.state.height}")
        self.state = finalized.state

    def _draft(self, height: int, time_s: int) -> Draft:
        return Draft(self.state, height=height, time_s=time_s)

    def _execute(self, draft: Draft, tx: bytes) -> TxResult:
        return execute(draft, self._chain, self._reader, tx)

    def _execute_alone(self, tx: bytes) -> TxResult:
        return self._execute(self._draft(self.state.height + 1, self.state.core.time_s), tx)

    def _place(self, tx: bytes) -> int:
        try:
            return _ORDER[self._reader.read(tx).envelope.domain]
        except DecodeError:
            return len(_ORDER)
