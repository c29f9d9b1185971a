"""What a miner owes the open block, done: score and commit, reveal, merge and vote.

``rounds.duties`` says what is owed in a state; this module makes it happen, and stops in the middle when it is owed no
longer. Every promise is durable before the message that makes it: scores and salt before the commitment, the model
before the vote. After a restart the same duties come up again and find what was kept.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, assert_never

from coordinator.behaviour import Behaviour
from coordinator.journal import Journal
from coordinator.ledger.rows import OwnScores
from coordinator.ledger.state import Candidate, MergePlan, State
from coordinator.ledger.store import LedgerStore
from coordinator.library import Library
from coordinator.rounds import Duty, MergeBlock, RevealScores, ScoreBlock, duties
from coordinator.serving.metrics import MinerPhase
from coordinator.submission import Submitter
from coordinator.worker import Scoring, Worker
from edge_sdk.adapters import failpoints
from edge_sdk.errors import EdgeFLError, LedgerError
from edge_sdk.protocol.digest import commitment
from edge_sdk.protocol.ids import Digest, MinerId
from edge_sdk.protocol.messages import Commit, Domain, Genesis, Reveal
from edge_sdk.training.codecs.reading import UpdateForm

log = logging.getLogger(__name__)

SALT_BYTES: Final = 32
RETRY_S: Final = 0.5
"""Pause after a duty that failed: a blob that nobody gives, a full disk."""
FETCH_SHARE: Final = 0.5
"""Part of a phase that may pass while missing blobs are fetched; what is not here then scores as unavailable."""
_MILLI_PER_UNIT: Final = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class DutyTools:
    """What a duty is done with."""

    genesis: Genesis
    miner_id: MinerId
    store: LedgerStore
    library: Library
    worker: Worker
    submitter: Submitter
    journal: Journal
    seal: Callable[[object, Domain], bytes]
    behaviour: Behaviour


class DutyRunner:
    """Does one duty at a time, for as long as it is owed."""

    def __init__(self, tools: DutyTools, state: Callable[[], State]) -> None:
        """Take the tools and a look at committed state."""
        self._tools = tools
        self._state = state
        self._wake = asyncio.Event()

    def wake(self) -> None:
        """Look at the state again: it has changed."""
        self._wake.set()

    async def run(self) -> None:
        """Work until cancelled."""
        while True:
            self._wake.clear()
            duty = next((duty for duty in self._owed() if _key(duty) not in self._tools.submitter), None)
            if duty is None:
                await self._wake.wait()
                continue
            try:
                await self._while_owed(duty)
            except EdgeFLError as error:
                log.error("%s failed: %s", _key(duty), error)  # noqa: TRY400 - the text is for an operator
                with suppress(TimeoutError):
                    async with asyncio.timeout(RETRY_S):
                        await self._wake.wait()

    def _owed(self) -> tuple[Duty, ...]:
        return duties(self._state(), self._tools.miner_id, self._tools.genesis)

    def _is_owed(self, key: Hashable, state: State) -> bool:
        return any(_key(duty) == key for duty in duties(state, self._tools.miner_id, self._tools.genesis))

    async def _while_owed(self, duty: Duty) -> None:
        """Do a duty; drop it as soon as the state says that it is too late."""
        work = asyncio.create_task(self._do(duty))
        try:
            while not work.done():
                self._wake.clear()
                waker = asyncio.create_task(self._wake.wait())
                await asyncio.wait({work, waker}, return_when=asyncio.FIRST_COMPLETED)
                waker.cancel()
                if not self._is_owed(_key(duty), self._state()):
                    break
            if work.done():
                work.result()
        finally:
            work.cancel()
            await asyncio.wait({work})  # not ``await work``: that cannot tell our own cancellation from the work's
            with suppress(EdgeFLError):  # of what is owed no longer
                if not work.cancelled():
                    work.result()

    async def _do(self, duty: Duty) -> None:
        match duty:
            case ScoreBlock():
                await self._commit(duty)
            case RevealScores():
                self._reveal(duty)
            case MergeBlock():
                await self._vote(duty)
            case _:
                assert_never(duty)

    async def _commit(self, duty: ScoreBlock) -> None:
        tools, index = self._tools, duty.block_index
        own = tools.store.own_scores(index)
        if own is None:
            with tools.journal.measure(MinerPhase.SCORE, block_index=index, updates=len(duty.candidates)):
                own = await self._score(duty)
        failpoints.hit("miner.before_commit_tx")
        hidden = commitment(tools.genesis.chain_id, index, duty.candidates_digest, tools.miner_id, own.scores, own.salt)
        message = Commit(miner_id=tools.miner_id, block_index=index, commitment=hidden)
        self._submit(duty, tools.seal(message, Domain.COMMIT))
        failpoints.hit("miner.after_commit_tx")

    async def _score(self, duty: ScoreBlock) -> OwnScores:
        """Measure a block and keep scores and salt before anybody hears of them."""
        tools, params = self._tools, self._tools.genesis.params
        base = await tools.library.params(duty.base_version, duty.base_root)
        if base is None:
            raise LedgerError(f"version {duty.base_version} can be had nowhere")
        blobs = await self._blobs(duty.candidates)
        order = Scoring(
            base=base,
            weights=tuple(candidate.weight for candidate in duty.candidates),
            blobs=tuple(blobs),
            total_weight=duty.total_weight,
            server_rate_q16=duty.server_rate_q16,
            clip_norm_q16=params.clip_norm_q16,
            form=UpdateForm.of_task(params),
        )
        scores = tools.behaviour.scores(await tools.worker.score(order))
        failpoints.hit("miner.after_score")
        return tools.store.put_own_scores(
            OwnScores(block_index=duty.block_index, scores=scores, salt=secrets.token_bytes(SALT_BYTES))
        )

    async def _blobs(self, candidates: Sequence[Candidate]) -> list[bytes | None]:
        """Blobs of all candidates, within a share of the phase."""
        library = self._tools.library
        if self._tools.behaviour.receipts_without_blob:
            return [library.held(candidate.blob_digest) for candidate in candidates]
        limit_s = self._tools.genesis.params.phase_ms / _MILLI_PER_UNIT * FETCH_SHARE

        async def blob_of(candidate: Candidate) -> bytes | None:
            try:
                async with asyncio.timeout(limit_s):
                    return await library.blob(candidate.blob_digest, candidate.blob_bytes, candidate.stored_by)
            except TimeoutError:
                log.warning("update %s: no blob in time", candidate.update_digest.hex())
                return None

        return list(await asyncio.gather(*map(blob_of, candidates)))

    def _reveal(self, duty: RevealScores) -> None:
        tools = self._tools
        own = tools.store.own_scores(duty.block_index)
        if own is None:
            raise LedgerError(f"scores of block {duty.block_index} are lost, although they were committed to")
        message = Reveal(miner_id=tools.miner_id, block_index=duty.block_index, scores=own.scores, salt=own.salt)
        failpoints.hit("miner.before_reveal_tx")
        self._submit(duty, tools.seal(message, Domain.REVEAL))

    async def _vote(self, duty: MergeBlock) -> None:
        tools = self._tools
        root = duty.base_root if duty.plan is None else await self._merge(duty.plan)
        failpoints.hit("miner.before_vote_tx")
        statement = duty.statement(tools.behaviour.root(root))
        self._submit(duty, tools.seal(statement, Domain.CERTIFICATE))

    async def _merge(self, plan: MergePlan) -> Digest:
        """Compute the next model and keep it; return its root."""
        tools = self._tools
        base = await tools.library.params(plan.base_version, plan.base_root)
        if base is None:
            raise LedgerError(f"version {plan.base_version} can be had nowhere")
        blobs: dict[Digest, bytes] = {}
        for entry in plan.entries:
            blob = await tools.library.blob(entry.blob_digest, entry.blob_bytes)
            if blob is None:
                raise LedgerError(f"update {entry.update_digest.hex()} is accepted, but its blob can be had nowhere")
            blobs[entry.blob_digest] = blob
        with tools.journal.measure(MinerPhase.MERGE, block_index=plan.block_index, version=plan.version) as span:
            merged = await tools.worker.merge(base, plan, blobs, tools.genesis.params.carried)
            failpoints.hit("miner.after_merge")
            await asyncio.to_thread(tools.library.add_merged, plan.version, merged)
            span.bytes_count = len(merged.blob)
        failpoints.hit("miner.after_model")
        return merged.root

    def _submit(self, duty: Duty, tx: bytes) -> None:
        key = _key(duty)
        self._tools.submitter.want(key, tx, lambda state: not self._is_owed(key, state))


def _key(duty: Duty) -> tuple[str, int]:
    return type(duty).__name__, duty.block_index
