"""The way of a block: cut, commit, reveal, verdict, certificate, and everything that can go wrong on it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from coordinator.application import Finalized
from coordinator.events import (
    BlockCertified,
    BlockCut,
    BlockDecided,
    Event,
    EvidenceFound,
    RoundExtended,
    RoundVoided,
    UpdateRefused,
)
from coordinator.ledger.state import EvidenceKind, UpdateStatus
from coordinator.rounds import MergeBlock, RevealScores, ScoreBlock, duties, open_phase
from edge_sdk.protocol.certificate import verify_certificate
from edge_sdk.protocol.digest import block_hash, sha256, update_digest
from edge_sdk.protocol.ids import Digest
from edge_sdk.protocol.limits import BLOCK_UPDATES_MAX, SCORE_OUT_OF_BOUNDS, SCORE_UNAVAILABLE
from edge_sdk.protocol.messages import Commit, CutCause, Domain, Phase, Reason, Scores, Verdict
from tests.support.chain import CREATED_S, PARAMS, Names, Runner, scores

NEW_ROOT = sha256(b"a merged model")


@pytest.fixture
def names() -> Names:
    return Names()


@pytest.fixture
def runner(names: Names) -> Runner:
    runner = Runner(names)
    runner.ok(*(names.enrol(f"dev-{i}") for i in range(5)))
    return runner


def first(finalized: Finalized, kind: type[Event]) -> Event:
    return next(event for event in finalized.events if isinstance(event, kind))


def refuse(runner: Runner, tx: bytes, reason: Reason) -> None:
    assert runner.app.check(tx).code is reason
    before = runner.app.state
    assert runner.height(tx).results[0].code is reason
    assert runner.app.state.round == before.round
    assert runner.app.state.core.collect_ticks == before.core.collect_ticks


def fill(runner: Runner, count: int = 3) -> list[Digest]:
    return [runner.publish(f"dev-{i}", 1)[1] for i in range(count)]


def all_score(runner: Runner, *values: int, base: int = 500) -> Finalized:
    return runner.score({miner: scores(base, *values) for miner in runner.names.miners})


def owed(runner: Runner, index: int = 0) -> MergeBlock:
    (duty,) = duties(runner.app.state, runner.names.miners[index], runner.names.genesis)
    assert isinstance(duty, MergeBlock)
    return duty


def all_vote(runner: Runner, root: Digest = NEW_ROOT) -> Finalized:
    duty = owed(runner)
    return runner.ok(*(runner.names.vote(miner, duty.statement(root)) for miner in runner.names.miners))


def merge_block(runner: Runner, *values: int) -> Finalized:
    all_score(runner, *values)
    return all_vote(runner, sha256(b"root", runner.app.state.block_index.to_bytes(4)))


# --- the cut ---


def test_a_full_block_is_cut_by_size_with_the_oldest(names: Names, runner: Runner) -> None:
    digests = fill(runner, 2)
    assert runner.is_in(Phase.COLLECT)
    update = names.update("dev-2", 1)
    runner.ok(update)
    late = names.update("dev-3", 1)
    both = [names.receipt(miner, u, d, 1) for u, d in ((late, "dev-3"), (update, "dev-2")) for miner in names.miners]
    finalized = runner.ok(late, *both)
    cut = first(finalized, BlockCut)
    assert cut == BlockCut(block_index=1, cause=CutCause.SIZE, candidate_count=3, refused_count=0)
    assert [c.update_digest for c in runner.round().candidates] == [*digests, update_digest(update)]
    assert runner.app.state.updates[update_digest(late)].status is UpdateStatus.PENDING


def test_a_quorum_of_ticks_cuts_what_is_pending(names: Names, runner: Runner) -> None:
    fill(runner, 1)
    for miner in names.miners[:2]:
        runner.ok(names.tick(miner, 1, Phase.COLLECT))
    assert runner.is_in(Phase.COLLECT)
    finalized = runner.ok(names.tick(names.miners[2], 1, Phase.COLLECT))
    assert first(finalized, BlockCut) == BlockCut(block_index=1, cause=CutCause.TAU, candidate_count=1, refused_count=0)


def test_no_block_is_empty_before_there_is_a_certificate(names: Names, runner: Runner) -> None:
    refuse(runner, names.tick(names.miners[0], 1, Phase.COLLECT), Reason.WRONG_PHASE)
    runner.ok(names.update("dev-0", 1))  # waiting, not pending
    refuse(runner, names.tick(names.miners[0], 1, Phase.COLLECT), Reason.WRONG_PHASE)
    assert not open_phase(runner.app.state).tick_is_due


def test_an_empty_block_renews_the_certificate(names: Names, runner: Runner) -> None:
    fill(runner)
    merge_block(runner, 510, 520, 530)
    before = runner.app.state.core
    assert before.last_statement is not None
    opened = open_phase(runner.app.state)
    assert (opened.tick_is_due, opened.certified_until_s) == (False, before.last_statement.expiry_s)
    for miner in names.miners[:2]:
        runner.ok(names.tick(miner, 2, Phase.COLLECT))
    later_s = before.time_s + 1_000
    cut = runner.height(names.tick(names.miners[2], 2, Phase.COLLECT), time_s=later_s)
    assert first(cut, BlockCut) == BlockCut(block_index=2, cause=CutCause.TAU, candidate_count=0, refused_count=0)
    statement = owed(runner).statement(before.model_roots[-1])
    votes = [names.vote(miner, statement) for miner in names.miners]
    certified = first(runner.height(*votes, time_s=later_s), BlockCertified)
    assert isinstance(certified, BlockCertified)
    after = runner.app.state.core
    assert (after.version, after.model_roots, certified.entries) == (before.version, before.model_roots, ())
    assert certified.certificate.statement.expiry_s == later_s + names.genesis.params.certificate_ttl_s
    verify_certificate(certified.certificate, names.genesis)


def test_ticks_name_block_phase_and_attempt_and_count_once(names: Names, runner: Runner) -> None:
    fill(runner, 1)
    miner = names.miners[0]
    refuse(runner, names.tick(miner, 2, Phase.COLLECT), Reason.WRONG_PHASE)
    refuse(runner, names.tick(miner, 1, Phase.COMMIT), Reason.WRONG_PHASE)
    refuse(runner, names.tick(miner, 1, Phase.COLLECT, 1), Reason.WRONG_PHASE)
    runner.ok(names.tick(miner, 1, Phase.COLLECT))
    refuse(runner, names.tick(miner, 1, Phase.COLLECT), Reason.DUPLICATE)
    refuse(runner, names.tick("stranger", 1, Phase.COLLECT), Reason.UNKNOWN_MINER)


def refused_at_cut(runner: Runner) -> dict[str, Reason]:
    return {entry.device_id: entry.reason for entry in runner.round().refused}


def test_the_cut_refuses_revoked_and_expired_updates(names: Names, runner: Runner) -> None:
    runner.publish("dev-0", 1)
    runner.publish("dev-1", 1, expiry_height=runner.app.state.height + 1)
    runner.ok(names.revoke("dev-0"))
    runner.publish("dev-2", 1)
    assert refused_at_cut(runner) == {"dev-0": Reason.REVOKED_DEVICE, "dev-1": Reason.EXPIRED}
    assert [c.device_id for c in runner.round().candidates] == ["dev-2"]


def test_the_cut_refuses_what_has_become_stale() -> None:
    names = Names(params=replace(PARAMS, block_size=1, staleness_max=1))
    runner = Runner(names)
    runner.ok(names.enrol("dev-0"), names.enrol("dev-1"))
    for seq in (1, 2):
        state = runner.app.state
        runner.publish("dev-0", seq, base_version=state.version, base_root=state.model_root)
        merge_block(runner, 500)
    runner.publish("dev-1", 1)  # on version 0; the model is at 2
    decision = runner.round().decision
    assert decision is not None  # nothing to score: decided at once
    assert [(e.device_id, e.reason, e.score) for e in decision.entries] == [("dev-1", Reason.STALE, SCORE_UNAVAILABLE)]
    assert decision.plan is None


def test_one_merge_per_device_and_base(names: Names, runner: Runner) -> None:
    runner.publish("dev-0", 1)
    runner.publish("dev-0", 2)
    runner.publish("dev-1", 1)
    assert refused_at_cut(runner) == {"dev-0": Reason.BASE_REUSED}
    merge_block(runner, 500, 500)
    again = names.update("dev-0", 3)
    assert runner.app.admit(again) is Reason.BASE_REUSED
    runner.publish("dev-0", 3)
    fresh = {"base_version": 1, "base_root": runner.app.state.model_root}
    runner.publish("dev-0", 4, **fresh)
    runner.publish("dev-1", 2, **fresh)
    assert refused_at_cut(runner) == {"dev-0": Reason.BASE_REUSED}
    assert [c.seq for c in runner.round().candidates] == [4, 2]


def test_a_refused_update_does_not_use_up_its_base(runner: Runner) -> None:
    fill(runner)
    merge_block(runner, 100, 500, 500)
    assert runner.app.admit(runner.names.update("dev-0", 2)) is Reason.NONE
    assert runner.app.admit(runner.names.update("dev-1", 2)) is Reason.BASE_REUSED


def test_an_update_without_a_storage_quorum_lapses_and_frees_its_quota(names: Names, runner: Runner) -> None:
    runner.ok(names.update("dev-0", 1, expiry_height=runner.app.state.height + 1))
    assert runner.app.state.registry[names.manifest("dev-0", 1).device_id].open_updates == 1
    runner.height()
    finalized = runner.ok(*(names.tick(miner, 1, Phase.COLLECT) for miner in names.miners))
    assert first(finalized, UpdateRefused).reason is Reason.EXPIRED  # type: ignore[union-attr]
    assert runner.app.state.registry[names.manifest("dev-0", 1).device_id].open_updates == 0
    root = runner.app.state.model_root
    certified = all_vote(runner, root)
    assert first(certified, BlockCertified).header.version == 0  # type: ignore[union-attr]


def test_full_blocks_leave_room_for_updates_that_never_got_their_quorum() -> None:
    devices = [f"dev-{i}" for i in range(BLOCK_UPDATES_MAX)]
    names = Names(params=replace(PARAMS, block_size=BLOCK_UPDATES_MAX))
    runner = Runner(names)
    runner.ok(*(names.enrol(device) for device in ("late", *devices)))
    runner.ok(names.update("late", 1, expiry_height=runner.app.state.height + 1))
    updates = [(device, names.update(device, 1)) for device in devices]
    runner.ok(*(update for _, update in updates))
    runner.ok(*(names.receipt(miner, update, device, 1) for device, update in updates for miner in names.miners))
    assert len(runner.round().candidates) == BLOCK_UPDATES_MAX - 1
    assert refused_at_cut(runner) == {"late": Reason.EXPIRED}


# --- commit and reveal ---


def test_a_whole_block_from_the_cut_to_the_certificate(names: Names, runner: Runner) -> None:
    digests = fill(runner)
    (duty,) = duties(runner.app.state, names.miners[0], names.genesis)
    assert isinstance(duty, ScoreBlock)
    assert [c.update_digest for c in duty.candidates] == digests
    assert (duty.base_version, duty.base_root, duty.total_weight) == (0, names.genesis.model_root, 3 << 16)
    round_ = runner.round()
    runner.ok(*(names.commit(miner, round_, scores(500, 510, 495, 300)) for miner in names.miners))
    (reveal,) = duties(runner.app.state, names.miners[0], names.genesis)
    assert reveal == RevealScores(block_index=1, candidates_digest=duty.candidates_digest)
    decided = runner.ok(*(names.reveal(miner, round_, scores(500, 510, 495, 300)) for miner in names.miners))
    block = first(decided, BlockDecided)
    assert isinstance(block, BlockDecided)
    assert [(e.verdict, e.reason, e.score, e.weight) for e in block.entries] == [
        (Verdict.MERGED, Reason.NONE, 510, 1 << 16),
        (Verdict.MERGED, Reason.NONE, 495, 1 << 16),
        (Verdict.REFUSED, Reason.QUALITY, 300, 0),
    ]
    assert (block.header.base_score, block.header.version, block.header.base_version) == (500, 1, 0)
    merge = owed(runner)
    assert merge.plan is not None
    assert [(e.update_digest, e.weight) for e in merge.plan.entries] == [(digests[0], 1 << 16), (digests[1], 1 << 16)]
    assert merge.plan.total_weight == 2 << 16
    certified = first(all_vote(runner), BlockCertified)
    assert isinstance(certified, BlockCertified)
    verify_certificate(certified.certificate, names.genesis)
    statement = certified.certificate.statement
    assert (statement.version, statement.model_root, statement.block_hash) == (1, NEW_ROOT, block_hash(block.header))
    assert statement.expiry_s == CREATED_S + block.header.decided_height + PARAMS.certificate_ttl_s
    state = runner.app.state
    assert (state.version, state.model_root, state.block_index, state.phase) == (1, NEW_ROOT, 2, Phase.COLLECT)
    assert not state.updates
    assert duties(state, names.miners[0], names.genesis) == ()


def test_a_commit_phase_waits_for_all_or_for_a_quorum_of_ticks(names: Names, runner: Runner) -> None:
    fill(runner)
    round_ = runner.round()
    value = scores(500, 500, 500, 500)
    runner.ok(*(names.commit(miner, round_, value) for miner in names.miners[:3]))
    assert runner.is_in(Phase.COMMIT)  # a quorum committed, but the fourth may still come
    finalized = runner.ok(*(names.tick(miner, 1, Phase.COMMIT) for miner in names.miners[:3]))
    assert runner.is_in(Phase.REVEAL)
    absent = first(finalized, EvidenceFound)
    assert isinstance(absent, EvidenceFound)
    assert (absent.evidence.kind, absent.evidence.subject) == (EvidenceKind.ABSENT, names.miners[3])
    refuse(runner, names.commit(names.miners[3], round_, value), Reason.WRONG_PHASE)
    refuse(runner, names.reveal(names.miners[3], round_, value), Reason.WRONG_PHASE)
    runner.ok(*(names.reveal(miner, round_, value) for miner in names.miners[:3]))
    assert runner.is_in(Phase.CERTIFY)


@pytest.mark.parametrize("phase", [Phase.COMMIT, Phase.REVEAL])
def test_without_a_quorum_a_phase_is_extended_and_then_void(names: Names, runner: Runner, phase: Phase) -> None:
    digests = fill(runner)
    round_, value = runner.round(), scores(500, 500, 500, 500)
    if phase is Phase.REVEAL:
        runner.ok(*(names.commit(miner, round_, value) for miner in names.miners))
        runner.ok(names.reveal(names.miners[0], round_, value))
    else:
        runner.ok(names.commit(names.miners[0], round_, value))
    extended = runner.ok(*(names.tick(miner, 1, phase) for miner in names.miners[:3]))
    assert first(extended, RoundExtended) == RoundExtended(block_index=1, phase=phase, attempt=1)
    refuse(runner, names.tick(names.miners[0], 1, phase, 0), Reason.WRONG_PHASE)
    voided = runner.ok(*(names.tick(miner, 1, phase, 1) for miner in names.miners[:3]))
    assert first(voided, RoundVoided) == RoundVoided(block_index=1, phase=phase)
    round_two = runner.round()  # three updates are pending again, so the next block is cut at once
    assert round_two.block_index == 2
    assert [c.update_digest for c in round_two.candidates] == digests
    assert (round_two.commits, round_two.reveals) == ((), ())
    merge_block(runner, 500, 500, 500)
    assert runner.app.state.version == 1


def test_commitments_are_kept_and_a_second_one_is_evidence(names: Names, runner: Runner) -> None:
    fill(runner)
    round_, miner = runner.round(), names.miners[0]
    first_commit = names.commit(miner, round_, scores(500, 1, 2, 3))
    runner.ok(first_commit)
    refuse(runner, first_commit, Reason.DUPLICATE)
    second = names.commit(miner, round_, scores(500, 3, 2, 1))
    assert runner.app.check(second).code is Reason.NONE
    finalized = runner.height(second)
    assert finalized.results[0].code is Reason.EQUIVOCATION
    assert runner.app.state.evidence[-1].kind is EvidenceKind.COMMIT_EQUIVOCATION
    refuse(runner, names.commit(miner, round_, scores(500, 9, 9, 9)), Reason.DUPLICATE)
    assert len(runner.app.state.evidence) == 1
    refuse(runner, names.commit(names.miners[1], replace(round_, block_index=7), scores(1)), Reason.WRONG_PHASE)


def wrong_reveals(names: Names, runner: Runner) -> dict[str, tuple[Scores, Scores]]:
    honest = scores(500, 500, 500, 500)
    return {
        "other scores": (honest, scores(500, 900, 500, 500)),
        "too few": (scores(500, 500), scores(500, 500)),
        "percentages": (
            Scores(base=1, updates=(1, 1, 1), classes=(b"\x65",) * 4),
            Scores(base=1, updates=(1, 1, 1), classes=(b"\x65",) * 4),
        ),
    }


@pytest.mark.parametrize("case", ["other scores", "too few", "percentages"])
def test_a_reveal_that_does_not_open_the_commitment_is_evidence(names: Names, runner: Runner, case: str) -> None:
    fill(runner)
    round_, liar = runner.round(), names.miners[0]
    committed, shown = wrong_reveals(names, runner)[case]
    value = scores(500, 500, 500, 500)
    runner.ok(names.commit(liar, round_, committed), *(names.commit(m, round_, value) for m in names.miners[1:]))
    finalized = runner.height(names.reveal(liar, round_, shown))
    assert finalized.results[0].code is Reason.BAD_REVEAL
    assert finalized.results[0].belongs
    assert (runner.app.state.evidence[-1].kind, runner.app.state.evidence[-1].subject) == (
        EvidenceKind.BAD_REVEAL,
        liar,
    )
    refuse(runner, names.reveal(liar, round_, shown), Reason.DUPLICATE)


def test_a_commitment_cannot_be_copied(names: Names, runner: Runner) -> None:
    fill(runner)
    round_, value = runner.round(), scores(500, 500, 500, 500)
    runner.ok(*(names.commit(miner, round_, value) for miner in names.miners[:3]))
    victim = runner.round().commits[0].commitment
    copied = Commit(miner_id=names.miners[3], block_index=1, commitment=victim)
    runner.ok(names.sign(copied, Domain.COMMIT, names.miners[3]))
    finalized = runner.height(names.reveal(names.miners[3], round_, value))
    assert finalized.results[0].code is Reason.BAD_REVEAL


def test_a_withheld_reveal_is_named_and_does_not_stop_the_others(names: Names, runner: Runner) -> None:
    fill(runner)
    round_, value = runner.round(), scores(500, 500, 500, 500)
    runner.ok(*(names.commit(miner, round_, value) for miner in names.miners))
    reveal = names.reveal(names.miners[0], round_, value)
    runner.ok(reveal)
    refuse(runner, reveal, Reason.DUPLICATE)
    runner.ok(*(names.reveal(miner, round_, value) for miner in names.miners[1:3]))
    assert runner.is_in(Phase.REVEAL)
    runner.ok(*(names.tick(miner, 1, Phase.REVEAL) for miner in names.miners[:3]))
    assert runner.is_in(Phase.CERTIFY)
    found = runner.app.state.evidence[-1]
    assert (found.kind, found.subject) == (EvidenceKind.WITHHELD, names.miners[3])


def test_a_block_that_merges_nothing_certifies_the_old_model(names: Names, runner: Runner) -> None:
    fill(runner)
    all_score(runner, 100, SCORE_UNAVAILABLE, SCORE_OUT_OF_BOUNDS)
    duty = owed(runner)
    assert duty.plan is None
    refuse(runner, names.vote(names.miners[0], duty.statement(NEW_ROOT)), Reason.WRONG_STATEMENT)
    certified = first(all_vote(runner, names.genesis.model_root), BlockCertified)
    assert isinstance(certified, BlockCertified)
    assert [e.reason for e in certified.entries] == [Reason.QUALITY, Reason.UNAVAILABLE, Reason.OUT_OF_BOUNDS]
    assert (runner.app.state.version, runner.app.state.block_index) == (0, 2)


def test_one_liar_in_four_changes_no_verdict_and_is_named(names: Names, runner: Runner) -> None:
    fill(runner)
    liar = names.miners[3]
    honest = scores(500, 503, 498, 200)
    finalized = runner.score({**dict.fromkeys(names.miners[:3], honest), liar: scores(500, 0, 0, 1_000)})
    decided = first(finalized, BlockDecided)
    assert isinstance(decided, BlockDecided)
    assert [e.verdict for e in decided.entries] == [Verdict.MERGED, Verdict.MERGED, Verdict.REFUSED]
    assert {(e.kind, e.subject) for e in runner.app.state.evidence} == {(EvidenceKind.SCORE_OUTLIER, liar)}


def test_a_receipt_without_a_blob_is_named(names: Names, runner: Runner) -> None:
    fill(runner)
    liar = names.miners[3]
    honest = scores(500, 503, 498, 500)
    runner.score({**dict.fromkeys(names.miners[:3], honest), liar: scores(500, SCORE_UNAVAILABLE, 498, 500)})
    found = {(e.kind, e.subject) for e in runner.app.state.evidence}
    assert (EvidenceKind.RECEIPT_WITHOUT_BLOB, liar) in found


# --- certificates ---


def test_a_certificate_needs_more_than_two_thirds_on_the_same_root(names: Names, runner: Runner) -> None:
    fill(runner)
    all_score(runner, 500, 500, 500)
    duty = owed(runner)
    runner.ok(names.vote(names.miners[0], duty.statement(sha256(b"lie"))))
    assert duties(runner.app.state, names.miners[0], names.genesis) == ()
    runner.ok(*(names.vote(miner, duty.statement(NEW_ROOT)) for miner in names.miners[1:3]))
    assert runner.is_in(Phase.CERTIFY)
    refuse(runner, names.tick(names.miners[0], 1, Phase.CERTIFY), Reason.WRONG_PHASE)
    certified = first(runner.ok(names.vote(names.miners[3], duty.statement(NEW_ROOT))), EvidenceFound)
    assert isinstance(certified, EvidenceFound)
    assert (certified.evidence.kind, certified.evidence.subject) == (EvidenceKind.ROOT_DISSENT, names.miners[0])
    assert runner.app.state.model_root == NEW_ROOT


def test_votes_are_checked_against_the_decided_block(names: Names, runner: Runner) -> None:
    fill(runner)
    all_score(runner, 500, 500, 500)
    duty, miner = owed(runner), names.miners[0]
    statement = duty.statement(NEW_ROOT)
    changes: tuple[dict[str, Any], ...] = (
        {"version": 2},
        {"block_hash": bytes(32)},
        {"expiry_s": statement.expiry_s + 1},
        {"height": statement.height + 1},
        {"miner_set_hash": bytes(32)},
    )
    for change in changes:
        refuse(runner, names.vote(miner, replace(statement, **change)), Reason.WRONG_STATEMENT)
    refuse(runner, names.vote(miner, replace(statement, block_index=9)), Reason.WRONG_PHASE)
    vote = names.vote(miner, statement)
    runner.ok(vote)
    refuse(runner, vote, Reason.DUPLICATE)
    finalized = runner.height(names.vote(miner, duty.statement(sha256(b"other"))))
    assert finalized.results[0].code is Reason.EQUIVOCATION
    assert runner.app.state.evidence[-1].kind is EvidenceKind.VOTE_EQUIVOCATION


def test_a_late_vote_changes_nothing_and_a_late_lie_is_named(names: Names, runner: Runner) -> None:
    fill(runner)
    all_score(runner, 500, 500, 500)
    duty = owed(runner)
    runner.ok(*(names.vote(miner, duty.statement(NEW_ROOT)) for miner in names.miners[:3]))
    assert runner.app.state.version == 1
    refuse(runner, names.vote(names.miners[3], duty.statement(NEW_ROOT)), Reason.DUPLICATE)
    late = replace(duty.statement(NEW_ROOT), expiry_s=1)
    refuse(runner, names.vote(names.miners[3], late), Reason.WRONG_STATEMENT)
    lie = names.vote(names.miners[3], duty.statement(sha256(b"lie")))
    assert runner.height(lie).results[0].is_evidence
    assert (runner.app.state.evidence[-1].kind, runner.app.state.evidence[-1].subject) == (
        EvidenceKind.ROOT_DISSENT,
        names.miners[3],
    )
    refuse(runner, lie, Reason.DUPLICATE)


def test_blocks_are_chained_by_their_hashes(names: Names, runner: Runner) -> None:
    headers = []
    for number in range(3):
        state = runner.app.state
        for device in range(3):
            runner.publish(f"dev-{device}", number, base_version=state.version, base_root=state.model_root)
        certified = first(merge_block(runner, 500, 500, 500), BlockCertified)
        assert isinstance(certified, BlockCertified)
        headers.append(certified.header)
    assert [header.index for header in headers] == [1, 2, 3]
    assert [header.version for header in headers] == [1, 2, 3]
    assert headers[1].previous_hash == block_hash(headers[0])
    assert headers[2].previous_hash == block_hash(headers[1])


def test_staleness_discounts_the_weight_by_its_root(names: Names, runner: Runner) -> None:
    for number in range(3):
        state = runner.app.state
        for device in range(3):
            runner.publish(f"dev-{device}", number, base_version=state.version, base_root=state.model_root)
        merge_block(runner, 500, 500, 500)
    runner.publish("dev-3", 1)  # base version 0, model at version 3: 1 / sqrt(1 + 3)
    runner.ok(*(names.tick(miner, 4, Phase.COLLECT) for miner in names.miners))
    assert [c.weight for c in runner.round().candidates] == [1 << 15]


def test_duties_are_level_triggered(names: Names, runner: Runner) -> None:
    fill(runner)
    one = duties(runner.app.state, names.miners[0], names.genesis)
    assert one == duties(runner.app.state, names.miners[0], names.genesis)
    runner.ok(names.commit(names.miners[0], runner.round(), scores(500, 1, 1, 1)))
    assert duties(runner.app.state, names.miners[0], names.genesis) == ()  # committed: waits for the others
    assert duties(runner.app.state, names.miners[1], names.genesis) == one
