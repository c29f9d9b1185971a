"""What a miner does after each height: tell devices and operators what the ledger has decided."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from coordinator.application import Finalized
from coordinator.chain_view import MinerView
from coordinator.courier import Courier
from coordinator.events import (
    BlockCertified,
    BlockCut,
    EvidenceFound,
    RoundExtended,
    RoundVoided,
    UpdateAccepted,
)
from coordinator.journal import Journal
from coordinator.ledger import block
from coordinator.ledger.state import State, UpdateStatus
from coordinator.library import Library
from coordinator.pruning import Pruner
from coordinator.reception import Reception
from coordinator.serving.metrics import MinerPhase, UpdateOutcome
from edge_sdk.protocol.ids import Digest
from edge_sdk.protocol.messages import Verdict

log = logging.getLogger(__name__)

MODEL_RETRY_S: Final = 2.0
"""Pause before peers are asked again for a certified model that nobody gave."""


class Follower:
    """Turns events of committed heights into messages, metrics and lines of the run record."""

    def __init__(
        self,
        *,
        state: Callable[[], State],
        view: MinerView,
        library: Library,
        courier: Courier,
        reception: Reception,
        journal: Journal,
        pruner: Pruner,
        is_silent: bool,
    ) -> None:
        """Join the parts."""
        self._state = state
        self._view = view
        self._library = library
        self._courier = courier
        self._reception = reception
        self._journal = journal
        self._pruner = pruner
        self._is_silent = is_silent
        self._cut_ns: dict[int, int] = {}
        self._version_changed = asyncio.Event()
        self._version_changed.set()  # the model of the ledger may be missing from the start

    def observe(self, finalized: Finalized) -> None:
        """Take in a durable height."""
        metrics = self._journal.metrics
        listed: list[Digest] = []
        for event in finalized.events:
            match event:
                case UpdateAccepted(update_digest=digest, blob_digest=blob_digest):
                    listed.append(digest)
                    self._pruner.listed(digest, blob_digest)
                case BlockCut(block_index=index, cause=cause):
                    self._cut_ns[index] = self._journal.now_ns()
                    metrics.count_block(cause)
                    self._journal.mark("cut", block_index=index, cause=cause.name.lower(), height=finalized.height)
                case BlockCertified():
                    self._certified(event)
                case RoundExtended(block_index=index, phase=phase):
                    log.warning("block %d: more time in %s", index, phase.name)
                case RoundVoided(block_index=index, phase=phase):
                    self._cut_ns.pop(index, None)
                    log.warning("block %d is void: no quorum in %s", index, phase.name)
                case EvidenceFound(evidence=evidence):
                    metrics.count_evidence()
                    log.warning("evidence: %s by %s: %s", evidence.kind, evidence.subject, evidence.detail)
                case _:
                    pass  # told by later events, or seen in the state
        self._reception.observe(listed)
        state = finalized.state
        pending = sum(update.status is UpdateStatus.PENDING for update in state.updates.values())
        metrics.set_state(height=state.height, version=state.version, pending=pending)
        for result in finalized.results:
            metrics.count_transaction(result.code)

    def announce(self) -> None:
        """Publish the newest certified model whose bytes are here, retained."""
        if not self._is_silent:
            self._courier.announce(self._view.announcement())

    async def run(self) -> None:
        """Keep the certified model here, and announced, until cancelled."""
        while True:
            await self._version_changed.wait()
            self._version_changed.clear()
            state = self._state()
            if await self._library.params(state.version, state.model_root) is None:
                log.warning("version %d can be had nowhere yet", state.version)
                self._version_changed.set()
                await asyncio.sleep(MODEL_RETRY_S)
                continue
            self.announce()

    def _certified(self, event: BlockCertified) -> None:
        """Tell every device of the block how its update ended."""
        header, metrics = event.header, self._journal.metrics
        self._view.certified(event.certificate)
        for position, entry in enumerate(event.entries):
            is_merged = entry.verdict is Verdict.MERGED
            metrics.count_update(UpdateOutcome.MERGED if is_merged else UpdateOutcome.REJECTED, entry.reason)
            if not self._is_silent:
                outcome = block.outcome(header, event.entries, event.certificate, position)
                self._courier.outcome(entry.device_id, outcome)
        start_ns = self._cut_ns.pop(header.index, None)
        if start_ns is not None:
            self._journal.since(
                MinerPhase.CERTIFY,
                start_ns,
                block_index=header.index,
                version=header.version,
                cause=header.cause.name.lower(),
                merged=sum(entry.verdict is Verdict.MERGED for entry in event.entries),
                refused=sum(entry.verdict is Verdict.REFUSED for entry in event.entries),
            )
        self._pruner.certified(header.index)
        self._version_changed.set()
