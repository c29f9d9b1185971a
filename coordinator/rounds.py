"""The way of a block: COLLECT -> COMMIT -> REVEAL -> CERTIFY -> COLLECT, one block at a time.

Phases change only at the end of a log height, decided by what the ledger holds: all members have acted, or members
with more than 2/3 of the power have ticked. A phase that is ticked without a quorum of commits or reveals is
extended; after ``reveal_extensions_max`` extensions the round is void, its updates wait for another block, and the
block index rises, so that no commitment of the void round fits the next one.

``duties`` says what a miner owes in a state. It depends on the state alone: after a restart nothing is forgotten and
nothing done twice.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final, assert_never

from coordinator.admission import cut_reason
from coordinator.aggregation import fedbuff
from coordinator.events import (
    BlockCertified,
    BlockCut,
    BlockDecided,
    EvidenceFound,
    PhaseOpened,
    RoundExtended,
    RoundVoided,
    UpdateRefused,
)
from coordinator.ledger import block
from coordinator.ledger.draft import Draft
from coordinator.ledger.miner_set import MinerSet
from coordinator.ledger.registry import close_update
from coordinator.ledger.state import (
    Candidate,
    Core,
    Decision,
    Evidence,
    EvidenceKind,
    MergeEntry,
    MergePlan,
    Round,
    State,
    UpdateRecord,
    UpdateStatus,
)
from coordinator.validation.verdict import RevealedScores, base_score, judge
from edge_sdk.protocol import certificate
from edge_sdk.protocol.digest import block_hash
from edge_sdk.protocol.ids import Digest, MinerId
from edge_sdk.protocol.limits import BLOCK_UPDATES_MAX, SCORE_UNAVAILABLE
from edge_sdk.protocol.messages import (
    BlockEntry,
    BlockHeader,
    CertificateStatement,
    CutCause,
    Genesis,
    Phase,
    Reason,
    Verdict,
)

LAPSED_PER_BLOCK: Final = 16


class Chain:
    """Rules and members of a chain: genesis and what is derived from it once."""

    def __init__(self, genesis: Genesis) -> None:
        self.genesis = genesis
        self.miners = MinerSet(genesis)

    def statement(self, decision: Decision, model_root: Digest) -> CertificateStatement:
        """Return what miners sign for a decided block and this root."""
        return block.statement(self.genesis, self.miners, decision, model_root)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreBlock:
    """Score the base and every candidate on the own fold, store scores and salt, then commit."""

    block_index: int
    base_version: int
    base_root: Digest
    candidates: tuple[Candidate, ...]
    candidates_digest: Digest
    total_weight: int
    """W of the merge if all candidates were accepted: a candidate is scored with its share weight / W."""
    server_rate_q16: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RevealScores:
    """Reveal the stored scores and salt."""

    block_index: int
    candidates_digest: Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeBlock:
    """Merge by the plan, store the model, then sign the statement. Without a plan the root is the base's."""

    block_index: int
    base_root: Digest
    plan: MergePlan | None
    template: CertificateStatement
    """With the root of the base."""

    def statement(self, model_root: Digest) -> CertificateStatement:
        """Return the statement to sign for the merged model."""
        return replace(self.template, model_root=model_root)


Duty = ScoreBlock | RevealScores | MergeBlock


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenPhase:
    """What a miner's timer watches: a new triple (block index, phase, attempt) restarts it."""

    block_index: int
    phase: Phase
    attempt: int
    ticked: tuple[MinerId, ...]
    tick_is_due: bool
    """Whether something waits for a tick: in COLLECT an update that waits for the cut, in CERTIFY nothing."""
    certified_until_s: int | None
    """Expiry of the newest certificate while blocks are collected: shortly before it an empty block renews it."""


def duties(state: State, miner_id: MinerId, genesis: Genesis) -> tuple[Duty, ...]:
    """Return what this miner owes the open block."""
    round_ = state.round
    if round_ is None:
        return ()
    if round_.phase is Phase.COMMIT and miner_id not in _committed(round_):
        return (
            ScoreBlock(
                block_index=round_.block_index,
                base_version=round_.base_version,
                base_root=round_.base_root,
                candidates=round_.candidates,
                candidates_digest=block.candidates_digest(round_.candidates),
                total_weight=fedbuff.total_weight(len(round_.candidates)),
                server_rate_q16=genesis.params.server_rate_q16,
            ),
        )
    if round_.phase is Phase.REVEAL and miner_id in _committed(round_) and miner_id not in _revealed(round_):
        digest = block.candidates_digest(round_.candidates)
        return (RevealScores(block_index=round_.block_index, candidates_digest=digest),)
    decision = round_.decision
    if decision is not None and all(vote.miner_id != miner_id for vote in decision.votes):
        template = Chain(genesis).statement(decision, round_.base_root)
        return (
            MergeBlock(
                block_index=round_.block_index, base_root=round_.base_root, plan=decision.plan, template=template
            ),
        )
    return ()


def open_phase(state: State) -> OpenPhase:
    """Return the open phase and who has ticked it."""
    phase, attempt, ticked = open_attempt(state.core)
    return OpenPhase(
        block_index=state.block_index,
        phase=phase,
        attempt=attempt,
        ticked=ticked,
        tick_is_due=_tick_is_due(state.core, state.updates.values()),
        certified_until_s=_certified_until_s(state.core),
    )


def open_attempt(core: Core) -> tuple[Phase, int, tuple[MinerId, ...]]:
    """Return phase, attempt and ticks of the open block."""
    if core.round is None:
        return Phase.COLLECT, 0, core.collect_ticks
    return core.round.phase, core.round.attempt, core.round.ticks


def is_tick_valid(core: Core, updates: Iterable[UpdateRecord]) -> bool:
    """Whether a tick counts. While nothing waits it asks for an empty block, whose certificate has a new expiry.

    When that is due only a miner's clock knows: an idle log has no heights, so the state's time stands still.
    """
    return _tick_is_due(core, updates) or _certified_until_s(core) is not None


def _certified_until_s(core: Core) -> int | None:
    """Expiry of the newest certificate, if an empty block may renew it now."""
    return None if core.round is not None or core.last_statement is None else core.last_statement.expiry_s


def _tick_is_due(core: Core, updates: Iterable[UpdateRecord]) -> bool:
    if core.round is not None:
        return core.round.phase in (Phase.COMMIT, Phase.REVEAL)
    return any(update.status is UpdateStatus.PENDING or core.height > update.expiry_height for update in updates)


def close_height(draft: Draft, chain: Chain) -> None:
    """Advance the open block as far as the ledger allows."""
    while _advance(draft, chain):
        pass


def _advance(draft: Draft, chain: Chain) -> bool:
    """Take one step, if one is due."""
    round_ = draft.core.round
    if round_ is None:
        return _cut(draft, chain)
    match round_.phase:
        case Phase.COMMIT:
            return _close_commits(draft, chain, round_)
        case Phase.REVEAL:
            return _close_reveals(draft, chain, round_)
        case Phase.CERTIFY:
            return _certify(draft, chain, round_)
        case Phase.COLLECT:
            raise AssertionError("a round starts with COMMIT")
        case _:
            assert_never(round_.phase)


def _cut(draft: Draft, chain: Chain) -> bool:
    """Open a block when there are enough pending updates, or a quorum of ticks."""
    core, params = draft.core, chain.genesis.params
    pending = [update for update in draft.updates.values() if update.status is UpdateStatus.PENDING]
    if len(pending) >= params.block_size:
        cause = CutCause.SIZE
    elif chain.miners.is_quorum(core.collect_ticks) and is_tick_valid(core, draft.updates.values()):
        cause = CutCause.TAU
    else:
        return False
    lapsed = [u for u in draft.updates.values() if u.status is UpdateStatus.WAITING and core.height > u.expiry_height]
    # Blocks that are always full leave room for some: what never got its quorum must not stay for ever.
    room = BLOCK_UPDATES_MAX - min(len(lapsed), LAPSED_PER_BLOCK)
    taken = pending[: min(params.block_size, room)]
    taken += lapsed[: BLOCK_UPDATES_MAX - len(taken)]
    candidates, refused = _sort_out(draft, taken, staleness_max=params.staleness_max)
    for update in taken:
        draft.updates[update.update_digest] = replace(update, status=UpdateStatus.IN_BLOCK)
    round_ = Round(
        block_index=core.block_index,
        phase=Phase.COMMIT,
        cause=cause,
        cut_height=core.height,
        base_version=core.version,
        base_root=core.model_roots[-1],
        refused=tuple(refused),
        candidates=tuple(candidates),
    )
    draft.core = replace(core, round=round_, collect_ticks=())
    draft.events.append(
        BlockCut(block_index=core.block_index, cause=cause, candidate_count=len(candidates), refused_count=len(refused))
    )
    if candidates:
        draft.events.append(PhaseOpened(block_index=core.block_index, phase=Phase.COMMIT))
    else:
        _decide(draft, chain, round_)
    return True


def _sort_out(
    draft: Draft, taken: Iterable[UpdateRecord], *, staleness_max: int
) -> tuple[list[Candidate], list[BlockEntry]]:
    """Split updates into candidates for scoring and entries that the cut itself refuses."""
    candidates: list[Candidate] = []
    refused: list[BlockEntry] = []
    used = set()
    for update in taken:
        staleness = draft.core.version - update.base_version
        candidate = Candidate(
            update_digest=update.update_digest,
            device_id=update.device_id,
            seq=update.seq,
            base_version=update.base_version,
            weight=fedbuff.weight(staleness),
            blob_digest=update.blob_digest,
            blob_bytes=update.blob_bytes,
            stored_by=update.stored_by,
        )
        reason = cut_reason(
            draft.core,
            draft.devices.get(update.device_id),
            base_version=update.base_version,
            expiry_height=update.expiry_height,
            staleness_max=staleness_max,
        )
        if reason is Reason.NONE and (update.device_id, update.base_version) in used:
            reason = Reason.BASE_REUSED
        if reason is Reason.NONE:
            used.add((update.device_id, update.base_version))
            candidates.append(candidate)
        else:
            refused.append(block.refused_entry(candidate, reason))
    return candidates, refused


def _close_commits(draft: Draft, chain: Chain, round_: Round) -> bool:
    committed = _committed(round_)
    if len(committed) < len(chain.miners.ids):
        if not chain.miners.is_quorum(round_.ticks):
            return False
        if not chain.miners.is_quorum(committed):
            _extend_or_void(draft, chain, round_)
            return True
    for miner_id in chain.miners.ids:
        if miner_id not in committed:  # silence may be the network's: told, not recorded
            absent = Evidence(
                kind=EvidenceKind.ABSENT, height=draft.height, subject=miner_id, detail=f"block {round_.block_index}"
            )
            draft.events.append(EvidenceFound(evidence=absent))
    draft.core = replace(draft.core, round=replace(round_, phase=Phase.REVEAL, attempt=0, ticks=()))
    draft.events.append(PhaseOpened(block_index=round_.block_index, phase=Phase.REVEAL))
    return True


def _close_reveals(draft: Draft, chain: Chain, round_: Round) -> bool:
    revealed, committed = _revealed(round_), _committed(round_)
    if len(revealed) < len(committed):
        if not chain.miners.is_quorum(round_.ticks):
            return False
        if not chain.miners.is_quorum(revealed):
            _extend_or_void(draft, chain, round_)
            return True
    for miner_id in committed:
        if miner_id not in revealed:
            draft.add_evidence(EvidenceKind.WITHHELD, miner_id, f"block {round_.block_index}")
    _decide(draft, chain, round_)
    return True


def _extend_or_void(draft: Draft, chain: Chain, round_: Round) -> None:
    """Give a phase without a quorum more time, or give the round up."""
    if round_.attempt < chain.genesis.params.reveal_extensions_max:
        attempt = round_.attempt + 1
        draft.core = replace(draft.core, round=replace(round_, attempt=attempt, ticks=()))
        draft.events.append(RoundExtended(block_index=round_.block_index, phase=round_.phase, attempt=attempt))
        return
    for update in draft.updates.values():
        if update.status is UpdateStatus.IN_BLOCK:
            held = chain.miners.is_quorum(update.stored_by)
            status = UpdateStatus.PENDING if held else UpdateStatus.WAITING
            draft.updates[update.update_digest] = replace(update, status=status)
    draft.core = replace(draft.core, round=None, block_index=round_.block_index + 1)
    draft.events.append(RoundVoided(block_index=round_.block_index, phase=round_.phase))


def _decide(draft: Draft, chain: Chain, round_: Round) -> None:
    """Judge every candidate, fix the block and the merge plan."""
    entries, accepted = _judge(draft, chain, round_)
    core, params = draft.core, chain.genesis.params
    version = round_.base_version + (1 if accepted else 0)
    header = BlockHeader(
        chain_id=chain.genesis.chain_id,
        task=chain.genesis.task,
        index=round_.block_index,
        cut_height=round_.cut_height,
        decided_height=core.height,
        cause=round_.cause,
        base_version=round_.base_version,
        version=version,
        base_root=round_.base_root,
        base_score=base_score(_power_of_reveals(chain, round_)) if round_.reveals else SCORE_UNAVAILABLE,
        entry_count=len(entries),
        entries_root=block.entries_root(entries),
        previous_hash=core.previous_hash,
    )
    plan = None
    if accepted:
        plan = MergePlan(
            block_index=round_.block_index,
            base_version=round_.base_version,
            base_root=round_.base_root,
            entries=tuple(
                MergeEntry(
                    update_digest=c.update_digest, weight=c.weight, blob_digest=c.blob_digest, blob_bytes=c.blob_bytes
                )
                for c in accepted
            ),
            total_weight=fedbuff.total_weight(len(accepted)),
            server_rate_q16=params.server_rate_q16,
            version=version,
        )
    decision = Decision(header=header, entries=entries, plan=plan, expiry_s=core.time_s + params.certificate_ttl_s)
    for entry in entries:
        _close_entry(draft, entry, oldest_base=version - params.staleness_max)
    draft.core = replace(draft.core, round=replace(round_, phase=Phase.CERTIFY, attempt=0, ticks=(), decision=decision))
    draft.events.append(BlockDecided(header=header, entries=entries))
    draft.events.append(PhaseOpened(block_index=round_.block_index, phase=Phase.CERTIFY))


def _judge(draft: Draft, chain: Chain, round_: Round) -> tuple[tuple[BlockEntry, ...], list[Candidate]]:
    """Return the entries of the block and the accepted candidates; name miners that contradict the quorum."""
    revealed = _power_of_reveals(chain, round_)
    entries: list[BlockEntry] = []
    accepted: list[Candidate] = []
    named: set[tuple[EvidenceKind, MinerId]] = set()
    for position, candidate in enumerate(round_.candidates):
        verdict = judge(revealed, position, margin_permille=chain.genesis.params.margin_permille)
        if verdict.reason is Reason.NONE:
            accepted.append(candidate)
            entries.append(block.merged_entry(candidate, score=verdict.score))
        else:
            entries.append(block.refused_entry(candidate, verdict.reason, score=verdict.score))
        named.update((EvidenceKind.SCORE_OUTLIER, miner_id) for miner_id in verdict.outliers)
        if verdict.score >= 0:
            named.update(
                (EvidenceKind.RECEIPT_WITHOUT_BLOB, miner.miner_id)
                for miner in revealed
                if miner.scores.updates[position] == SCORE_UNAVAILABLE and miner.miner_id in candidate.stored_by
            )
    for kind, miner_id in sorted(named):
        draft.add_evidence(kind, miner_id, f"block {round_.block_index}")
    return (*entries, *round_.refused), accepted


def _close_entry(draft: Draft, entry: BlockEntry, *, oldest_base: int) -> None:
    draft.updates.remove(entry.update_digest)
    merged_base = entry.base_version if entry.verdict is Verdict.MERGED else None
    record = draft.devices[entry.device_id]
    draft.devices[entry.device_id] = close_update(record, merged_base=merged_base, oldest_base=oldest_base)
    if entry.verdict is Verdict.REFUSED:
        draft.events.append(
            UpdateRefused(
                update_digest=entry.update_digest, device_id=entry.device_id, seq=entry.seq, reason=entry.reason
            )
        )


def _certify(draft: Draft, chain: Chain, round_: Round) -> bool:
    """Put the certificate on the ledger once more than 2/3 of the power signed the same root."""
    decision = round_.decision
    assert decision is not None
    by_root: dict[Digest, dict[MinerId, bytes]] = {}
    for vote in decision.votes:
        by_root.setdefault(vote.model_root, {})[vote.miner_id] = vote.signature
    root = next((root for root, votes in by_root.items() if chain.miners.is_quorum(votes)), None)
    if root is None:
        return False
    for vote in decision.votes:
        if vote.model_root != root:
            draft.add_evidence(EvidenceKind.ROOT_DISSENT, vote.miner_id, f"block {round_.block_index}")
    statement = chain.statement(decision, root)
    core = draft.core
    roots = core.model_roots if decision.plan is None else (*core.model_roots, root)
    draft.core = replace(
        core,
        version=decision.header.version,
        model_roots=roots[-1 - chain.genesis.params.staleness_max :],
        block_index=round_.block_index + 1,
        previous_hash=block_hash(decision.header),
        round=None,
        last_statement=statement,
    )
    draft.events.append(
        BlockCertified(
            certificate=certificate.assemble(statement, by_root[root]),
            header=decision.header,
            entries=decision.entries,
        )
    )
    draft.events.append(PhaseOpened(block_index=round_.block_index + 1, phase=Phase.COLLECT))
    return True


def _power_of_reveals(chain: Chain, round_: Round) -> list[RevealedScores]:
    return [
        RevealedScores(miner_id=r.miner_id, power=chain.miners.power(r.miner_id), scores=r.scores)
        for r in round_.reveals
    ]


def _committed(round_: Round) -> tuple[MinerId, ...]:
    return tuple(commit.miner_id for commit in round_.commits)


def _revealed(round_: Round) -> tuple[MinerId, ...]:
    return tuple(reveal.miner_id for reveal in round_.reveals)
