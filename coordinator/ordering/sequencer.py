"""The ``local`` engine: orders transactions for miners of one machine, through the same sockets as CometBFT would.

For each height a rotating proposer arranges waiting transactions (PrepareProposal), miners with more than 2/3 of the
power accept them (ProcessProposal), the log makes the height durable, and every miner executes it in its own lane
(FinalizeBlock, Commit). The next height follows when more than 2/3 of the power committed the same app hash. There
are no empty heights.

It is one process and openly not Byzantine fault tolerant: its death stops progress, and a log is only as honest as it
is. What it cannot do is forge: transactions are signed, miners check every proposal, devices check certificates.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from coordinator.ordering.chain import Chain
from coordinator.ordering.log import Decided, OrderedLog
from coordinator.ordering.member import Member, MemberState
from coordinator.ordering.mempool import Admission, Mempool, digest_of
from coordinator.ordering.rpc_server import Status, Submitted, serve_rpc
from coordinator.ordering.sequencer_config import SequencerConfig
from edge_sdk.adapters.failpoints import hit
from edge_sdk.adapters.system_clock import SystemClock
from edge_sdk.errors import EdgeFLError, RemoteProtocolError, TransportError
from edge_sdk.ports import Clock
from edge_sdk.protocol.limits import HEIGHT_BYTES_MAX, HEIGHT_TXS_MAX

_log = logging.getLogger(__name__)

RETRY_S: Final = 0.2
"""Pause after a round in which no proposer could bring a height about."""
HEIGHTS_REMEMBERED: Final = 256
"""At the start the transactions of that many last heights count as known."""
BENCH_DOUBLINGS_MAX: Final = 8


@dataclass(slots=True)
class _Bench:
    """A proposer that failed to propose sits out longer each time, so that its timeouts do not slow the others."""

    failures: int = 0
    until_height: int = 0


class Sequencer:
    """Ordering engine over a chain and its members."""

    def __init__(self, config: SequencerConfig, *, clock: Clock) -> None:
        """Open the log; nothing connects before ``run``.

        Raises:
            ConfigError, StoreError, CorruptLedgerError: as ``OrderedLog.open`` and ``SequencerConfig.read_genesis``.
        """
        genesis_bytes = config.read_genesis()
        powers = {member.miner_id: member.power for member in config.members}
        genesis_digest = hashlib.sha256(genesis_bytes).digest()
        self._config = config
        self._clock = clock
        self._log = OrderedLog.open(config.log, chain_id=config.chain_id, genesis_digest=genesis_digest)
        self._chain = Chain(self._log, powers)
        self._mempool = Mempool(powers)
        for height in range(max(1, self._chain.height - HEIGHTS_REMEMBERED + 1), self._chain.height + 1):
            self._mempool.included(self._log.read(height).txs)
        self._last: Decided | None = None
        self._benches = {miner_id: _Bench() for miner_id in powers}
        self._members = {
            member.miner_id: Member(
                member,
                self._chain,
                chain_id=config.chain_id,
                genesis_bytes=genesis_bytes,
                call_timeout_s=config.call_timeout_s,
                execute_timeout_s=config.execute_timeout_s,
            )
            for member in config.members
        }

    async def run(self, stop: asyncio.Event) -> None:
        """Order until ``stop`` is set, then close the log cleanly.

        Raises:
            EdgeFLError: the log or the RPC socket fails.
        """
        try:
            async with asyncio.TaskGroup() as tasks:
                lanes = [tasks.create_task(member.run()) for member in self._members.values()]
                lanes.append(tasks.create_task(self._order()))
                serving = tasks.create_task(serve_rpc(self, self._config.rpc, stop))
                await serving
                for lane in lanes:
                    lane.cancel()
        except BaseExceptionGroup as group:
            raise _first_own(group) from group
        finally:
            self._chain.close()

    async def submit(self, tx: bytes, miner_id: str | None = None) -> Submitted:
        """Let a transaction wait for a height, if a miner's cheap check says yes.

        Args:
            tx: The transaction.
            miner_id: Who checks it; else the first that is live. It pays for the room, so a miner names itself.

        Raises:
            LookupError: no such miner.
            TransportError: the miner, or all of them, cannot check now.
        """
        checker = self._members[miner_id] if miner_id is not None else self._first_live()
        digest = digest_of(tx)
        admission = self._mempool.admits(tx, checker.miner_id)
        if admission is not Admission.ADDED:
            return Submitted(digest=digest, admission=admission)
        code, text = await checker.check_tx(tx)
        if code != 0:
            return Submitted(digest=digest, admission=admission, code=code, log=text)
        admission = self._mempool.add(tx, checker.miner_id)
        self._chain.changed.notify()
        return Submitted(digest=digest, admission=admission)

    def status(self) -> Status:
        """What an operator or a test wants to know."""
        chain = self._chain
        return Status(
            chain_id=self._config.chain_id,
            height=chain.height,
            head_hash=chain.head_hash,
            app_hash=chain.agreed or b"",
            time_s=chain.time_s,
            stalemate=chain.stalemate,
            waiting_txs=len(self._mempool),
            waiting_bytes=self._mempool.size_bytes,
            dropped_txs=self._mempool.dropped,
            members=tuple(self._member_status(member) for member in self._members.values()),
        )

    def _member_status(self, member: Member) -> dict[str, str | int]:
        shown: dict[str, str | int] = {
            "id": member.miner_id,
            "power": member.power,
            "state": member.state.value,
            "height": member.height,
            "problem": member.problem,
        }
        if (dissent := self._chain.dissents.get(member.miner_id)) is not None:
            shown["dissent_height"] = dissent.height
        return shown

    def _first_live(self) -> Member:
        for member in self._members.values():
            if member.state is MemberState.LIVE:
                return member
        raise TransportError("no miner is live")

    async def _order(self) -> None:
        """Height after height, for as long as there is something to order and a quorum to order it for."""
        while True:
            while self._chain.agreed is None:
                await self._chain.changed.wait()
            if self._last is not None:
                failed = [tx for tx, code in zip(self._last.txs, self._chain.codes, strict=False) if code != 0]
                self._mempool.failed(failed)
                self._last = None
            while not len(self._mempool):
                await self._chain.changed.wait()
            if not await self._decide():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(RETRY_S):
                        await self._chain.changed.wait()

    async def _decide(self) -> bool:
        """Try one proposer after the other; whether one of them brought the next height about."""
        for proposer in self._proposers():
            offered = self._mempool.offer(bytes_max=HEIGHT_BYTES_MAX, count_max=HEIGHT_TXS_MAX)
            if not offered:
                return False
            proposal = await self._propose(proposer, offered)
            if proposal is None:
                continue
            if await self._is_accepted(proposal):
                self._benches[proposer.miner_id].failures = 0
                hit("sequencer.before_log")
                await self._chain.append(proposal)
                hit("sequencer.after_log")
                self._mempool.included(proposal.txs)
                self._last = proposal
                return True
            self._bench(proposer, "found no quorum")
        return False

    def _proposers(self) -> list[Member]:
        """Members at the head, from the one whose turn it is; those that failed lately come last."""
        members = list(self._members.values())
        first = self._chain.height % len(members)
        rotation = [member for member in members[first:] + members[:first] if member.is_at_head]
        return sorted(rotation, key=lambda member: self._benches[member.miner_id].until_height > self._chain.height)

    async def _propose(self, proposer: Member, offered: list[bytes]) -> Decided | None:
        """A proposer's choice among the waiting transactions; None when it has none."""
        time_s = max(self._chain.time_s, self._clock.time_s())
        try:
            txs = await proposer.prepare(offered, time_s=time_s)
        except (TransportError, RemoteProtocolError) as error:
            self._bench(proposer, str(error))
            return None
        chosen = set(txs)
        self._mempool.left_out([tx for tx in offered if tx not in chosen], proposer.miner_id)
        if not txs:
            return None
        return self._chain.propose(proposer=proposer.miner_id, time_s=time_s, txs=txs)

    async def _is_accepted(self, proposal: Decided) -> bool:
        """Whether miners with more than 2/3 of the power accept; asks all at once, waits for no more than needed."""
        votes = {
            asyncio.ensure_future(member.process(proposal)): member
            for member in self._members.values()
            if member.state is MemberState.LIVE
        }
        accepted = 0
        waiting = set(votes)
        try:
            while not self._chain.is_quorum(accepted):
                if not self._chain.is_quorum(accepted + sum(votes[vote].power for vote in waiting)):
                    return False
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                accepted += sum(votes[vote].power for vote in done if vote.result())
        finally:
            for vote in waiting:
                vote.cancel()
        return True

    def _bench(self, proposer: Member, problem: str) -> None:
        bench = self._benches[proposer.miner_id]
        bench.failures = min(bench.failures + 1, BENCH_DOUBLINGS_MAX)
        bench.until_height = self._chain.height + len(self._members) * 2**bench.failures
        _log.warning("%s failed to propose height %d: %s", proposer.miner_id, self._chain.height + 1, problem)


async def run(config: SequencerConfig, *, clock: Clock | None = None) -> None:
    """Run the sequencer until SIGTERM or SIGINT.

    Raises:
        EdgeFLError: as ``Sequencer``.
    """
    stop = asyncio.Event()
    with _signals(stop):
        await Sequencer(config, clock=clock or SystemClock()).run(stop)


@contextlib.contextmanager
def _signals(stop: asyncio.Event) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


def _first_own(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error to show: one of ours, if there is one; a bug as it is."""
    own = group.subgroup(EdgeFLError)
    found: BaseException = own if own is not None else group
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found
