"""One miner as the engine sees it: a lane of its own, so that a slow, hung or dead one holds up nobody else."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from coordinator.ordering.chain import Chain, DissentError
from coordinator.ordering.connection import AbciLink
from coordinator.ordering.log import Decided
from edge_sdk.adapters.failpoints import hit
from edge_sdk.errors import RemoteProtocolError, TransportError

_log = logging.getLogger(__name__)

RECONNECT_S_MIN: Final = 0.05
RECONNECT_S_MAX: Final = 2.0
DISSENT_RETRY_S: Final = 5.0
"""A miner that left the quorum's state can only come back repaired, after a restart."""


class MemberState(StrEnum):
    """What a miner is to the engine now."""

    DOWN = "down"
    REPLAYING = "replaying"
    LIVE = "live"
    DISSENTING = "dissenting"


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberConfig:
    """Where a miner's application listens, and what its vote weighs."""

    miner_id: str
    abci: Path
    power: int = 1


class Member:
    """Drives one application: handshake, replay of what it missed, then every new height.

    The application's commit is reported to the chain; which of its answers count is the chain's matter.
    """

    def __init__(
        self,
        config: MemberConfig,
        chain: Chain,
        *,
        chain_id: str,
        genesis_bytes: bytes,
        call_timeout_s: float,
        execute_timeout_s: float,
    ) -> None:
        """Nothing connects before ``run``."""
        self.miner_id = config.miner_id
        self.power = config.power
        self.state = MemberState.DOWN
        self.height = 0
        self.app_hash = b""
        self.problem = ""
        """Why it is not live, in words."""
        self._abci = config.abci
        self._chain = chain
        self._chain_id = chain_id
        self._genesis_bytes = genesis_bytes
        self._call_timeout_s = call_timeout_s
        self._execute_timeout_s = execute_timeout_s
        self._link: AbciLink | None = None
        self._has_progressed = False
        """Since the last handshake; an application that fails at once is left alone for longer and longer."""

    @property
    def is_at_head(self) -> bool:
        """Whether it has committed the last height with the quorum's app hash."""
        return (
            self.state is MemberState.LIVE and self.height == self._chain.height and self.app_hash == self._chain.agreed
        )

    async def run(self) -> None:
        """Keep the miner connected and fed until cancelled.

        Raises:
            StoreError, CorruptLedgerError: the log itself fails.
        """
        pause_s = RECONNECT_S_MIN
        while True:
            try:
                await self._session()
            except* DissentError as errors:
                pause_s = DISSENT_RETRY_S
                self._leave(MemberState.DISSENTING, str(errors.exceptions[0]), level=logging.ERROR)
            except* (TransportError, RemoteProtocolError) as errors:
                pause_s = RECONNECT_S_MIN if self._has_progressed else min(2 * pause_s, RECONNECT_S_MAX)
                self._leave(MemberState.DOWN, str(errors.exceptions[0]), level=logging.WARNING)
            await asyncio.sleep(pause_s)

    async def check_tx(self, tx: bytes) -> tuple[int, str]:
        """Ask for the cheap check of a transaction.

        Raises:
            TransportError: the miner cannot answer.
        """
        return await self._connected().check_tx(tx)

    async def prepare(self, txs: list[bytes], *, time_s: int) -> tuple[bytes, ...]:
        """Ask for a proposal.

        Raises:
            TransportError: no answer.
            RemoteProtocolError: not a proposal.
        """
        link = self._connected()
        return await link.prepare(txs, height=self._chain.height + 1, time_s=time_s, proposer=self.miner_id)

    async def process(self, proposal: Decided) -> bool:
        """Ask for a vote, once the miner has committed the height before; False when none can be had."""
        while self.state is MemberState.LIVE and not self.is_at_head:
            await self._chain.changed.wait()
        try:
            return await self._connected().process(proposal)
        except (TransportError, RemoteProtocolError):
            return False  # the lane sees the same error and names it

    def _connected(self) -> AbciLink:
        if self._link is None or self.state is not MemberState.LIVE:
            raise TransportError(f"{self.miner_id} is {self.state}")
        return self._link

    async def _session(self) -> None:
        """One connection, from handshake to its end, which is always an error (in a group)."""
        async with asyncio.TaskGroup() as tasks:
            link = await AbciLink.open(self._abci, timeout_s=self._call_timeout_s, execute_s=self._execute_timeout_s)
            try:
                reading = tasks.create_task(link.read())
                await self._follow(link)
            finally:
                reading.cancel()
                link.close()

    async def _follow(self, link: AbciLink) -> None:
        height, app_hash = await link.info()
        if height > self._chain.height:
            raise RemoteProtocolError(f"{self.miner_id} is at height {height}, the log ends at {self._chain.height}")
        if height == 0:
            app_hash = await link.init_chain(self._chain_id, self._genesis_bytes)
        self._link, self.height, self.app_hash = link, height, app_hash
        self.state, self._has_progressed = MemberState.REPLAYING, False
        if height < self._chain.height:
            _log.info("%s replays heights %d to %d", self.miner_id, height + 1, self._chain.height)
        self._arrived(())
        while True:
            decided = await self._chain.next_of(self.miner_id, self.height, self.app_hash)
            codes, app_hash = await link.finalize(decided)
            hit("sequencer.after_finalize")
            await link.commit()
            hit("sequencer.after_commit")
            self.height, self.app_hash, self._has_progressed = decided.height, app_hash, True
            self._arrived(codes)

    def _arrived(self, codes: tuple[int, ...]) -> None:
        """The miner has committed a height; at the head it counts and may take part."""
        if self.height == self._chain.height:
            if self.state is not MemberState.LIVE:
                _log.info("%s is live at height %d", self.miner_id, self.height)
            self.state, self.problem = MemberState.LIVE, ""
        self._chain.report(self.miner_id, self.height, self.app_hash, codes)

    def _leave(self, state: MemberState, problem: str, *, level: int) -> None:
        if problem != self.problem:
            _log.log(level, "%s: %s", self.miner_id, problem)
        self._link, self.state, self.problem = None, state, problem
        self._chain.changed.notify()
