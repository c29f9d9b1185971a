"""Which updates, receipts and registrations enter the ledger, and why the others do not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from coordinator.application import Application
from coordinator.events import DeviceEnrolled, DeviceRevoked, EvidenceFound, UpdateAccepted, UpdatePending
from coordinator.ledger.state import EvidenceKind, UpdateStatus
from edge_sdk.errors import ConfigError, LocalProtocolError
from edge_sdk.protocol import cose
from edge_sdk.protocol.cose import SENDER_REGISTRAR
from edge_sdk.protocol.digest import update_digest
from edge_sdk.protocol.ids import DeviceId
from edge_sdk.protocol.limits import BLOB_BYTES_MAX, PENDING_PER_DEVICE_MAX, SEQ_WINDOW
from edge_sdk.protocol.messages import Codec, Domain, Enrol, Reason, ReceiptStatus, Status
from tests.support.chain import CREATED_S, PARAMS, Names, Runner, signer


@pytest.fixture
def names() -> Names:
    return Names()


@pytest.fixture
def runner(names: Names) -> Runner:
    runner = Runner(names)
    runner.ok(names.enrol("dev-a"), names.enrol("dev-b"))
    return runner


def refusal(runner: Runner, tx: bytes) -> Reason:
    """Check, proposal and execution refuse alike, and the state does not change."""
    before = runner.app.state
    checked = runner.app.check(tx).code
    assert runner.app.process([tx]).code is checked
    assert runner.app.prepare([tx]) == []
    finalized = runner.height(tx)
    assert finalized.results[0].code is checked
    assert runner.app.state.registry == before.registry
    assert runner.app.state.updates == before.updates
    return checked


def test_an_update_waits_for_a_storage_quorum_and_is_then_pending(names: Names, runner: Runner) -> None:
    update = names.update("dev-a", 1)
    digest = update_digest(update)
    accepted = runner.ok(update)
    assert [type(event) for event in accepted.events] == [UpdateAccepted]
    assert runner.app.state.updates[digest].status is UpdateStatus.WAITING
    runner.ok(*(names.receipt(miner, update, "dev-a", 1) for miner in names.miners[:2]))
    assert runner.app.state.updates[digest].status is UpdateStatus.WAITING  # 2 of 4 is not more than 2/3
    third = runner.ok(names.receipt(names.miners[2], update, "dev-a", 1))
    assert third.events == (UpdatePending(update_digest=digest),)
    assert runner.app.state.updates[digest].stored_by == names.miners[:3]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"chain_id": "other-chain"}, Reason.WRONG_CHAIN),
        ({"task": "other-task"}, Reason.WRONG_TASK),
        ({"device_id": "stranger"}, Reason.UNKNOWN_DEVICE),
        ({"device_id": "dev-b"}, Reason.BAD_SIGNATURE),  # the envelope names dev-a
        ({"codec": Codec.INT16_DENSE}, Reason.CODEC),
        ({"blob_bytes": 0}, Reason.OVERSIZE),
        ({"blob_bytes": BLOB_BYTES_MAX + 1}, Reason.OVERSIZE),
        ({"base_version": 1}, Reason.FUTURE_BASE),
        ({"base_root": bytes(32)}, Reason.BASE_ROOT),
    ],
)
def test_a_manifest_that_breaks_a_rule_is_refused_with_its_reason(
    names: Names, runner: Runner, changes: dict[str, Any], reason: Reason
) -> None:
    assert refusal(runner, names.update("dev-a", 1, **changes)) is reason


def test_a_signature_by_another_key_is_refused(names: Names, runner: Runner) -> None:
    assert refusal(runner, names.update("dev-a", 1, key="dev-b")) is Reason.BAD_SIGNATURE


def test_a_flipped_payload_bit_is_refused(names: Names, runner: Runner) -> None:
    tx = bytearray(names.update("dev-a", 1))
    tx[-80] ^= 1  # inside the payload, before the signature of 64 bytes
    assert refusal(runner, bytes(tx)) in {Reason.BAD_SIGNATURE, Reason.MALFORMED}


@pytest.mark.parametrize("tx", [b"", b"\xd2", b"\xff" * 100, b"\xd2\x84\x40\xa0\x40\x40"])
def test_bytes_that_are_no_envelope_are_malformed(runner: Runner, tx: bytes) -> None:
    assert refusal(runner, tx) is Reason.MALFORMED


def test_an_envelope_of_another_kind_is_malformed(names: Names, runner: Runner) -> None:
    status = Status(sender="dev-a", session=1, online=True, installed_version=0, note="")
    assert refusal(runner, names.sign(status, Domain.STATUS, "dev-a")) is Reason.MALFORMED


def test_an_update_envelope_beyond_its_bound_is_oversize(names: Names, runner: Runner) -> None:
    assert refusal(runner, b"\xd2" + bytes(70_000)) is Reason.OVERSIZE


def test_the_same_update_twice_is_a_duplicate_also_when_signed_again(names: Names, runner: Runner) -> None:
    update = names.update("dev-a", 1)
    runner.ok(update)
    assert refusal(runner, update) is Reason.DUPLICATE
    assert runner.app.admit(update) is Reason.DUPLICATE


def test_two_digests_under_one_number_are_evidence_once(names: Names, runner: Runner) -> None:
    runner.ok(names.update("dev-a", 1))
    second = names.update("dev-a", 1, energy_mj=99)
    assert runner.app.admit(second) is Reason.EQUIVOCATION
    assert runner.app.check(second).code is Reason.NONE  # may wait for its place on the ledger, as evidence
    assert runner.app.prepare([second]) == [second]
    assert runner.app.process([second]).code is Reason.NONE
    finalized = runner.height(second)
    assert finalized.results[0].code is Reason.EQUIVOCATION
    assert finalized.results[0].belongs
    found = [event.evidence for event in finalized.events if isinstance(event, EvidenceFound)]
    assert [(e.kind, e.subject, e.detail) for e in found] == [(EvidenceKind.DEVICE_EQUIVOCATION, "dev-a", "seq 1")]
    assert len(runner.app.state.updates) == 1
    third = names.update("dev-a", 1, energy_mj=100)
    assert refusal(runner, third) is Reason.EQUIVOCATION
    assert len(runner.app.state.evidence) == 1


def test_a_number_below_the_window_is_refused_and_one_inside_is_not(names: Names, runner: Runner) -> None:
    runner.ok(names.update("dev-a", SEQ_WINDOW + 10))
    assert refusal(runner, names.update("dev-a", 10)) is Reason.SEQ_WINDOW
    runner.ok(names.update("dev-a", 11))


def test_a_device_has_a_quota_of_open_updates(names: Names, runner: Runner) -> None:
    runner.ok(*(names.update("dev-a", seq) for seq in range(PENDING_PER_DEVICE_MAX)))
    assert refusal(runner, names.update("dev-a", 99)) is Reason.QUOTA
    runner.ok(names.update("dev-b", 1))


def test_the_ledger_holds_a_bounded_number_of_open_updates(
    names: Names, runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coordinator.admission.PENDING_UPDATES_MAX", 1)
    runner.ok(names.update("dev-a", 1))
    assert refusal(runner, names.update("dev-b", 1)) is Reason.CAPACITY


def test_a_revoked_device_is_refused_until_it_is_enrolled_again(names: Names, runner: Runner) -> None:
    revoked = runner.ok(names.revoke("dev-a"))
    assert revoked.events == (DeviceRevoked(device_id=DeviceId("dev-a"), serial=1),)
    assert refusal(runner, names.update("dev-a", 1)) is Reason.REVOKED_DEVICE
    assert refusal(runner, names.revoke("dev-a")) is Reason.DUPLICATE
    renewed = runner.ok(names.enrol("dev-a", serial=2, key="new-key"))
    assert renewed.events == (DeviceEnrolled(device_id=DeviceId("dev-a"), serial=2),)
    assert refusal(runner, names.update("dev-a", 1)) is Reason.BAD_SIGNATURE
    runner.ok(names.update("dev-a", 1, key="new-key"))


def test_revocation_in_the_same_height_comes_first(names: Names, runner: Runner) -> None:
    txs = [names.update("dev-a", 1), names.revoke("dev-a")]
    assert runner.app.prepare(txs) == [txs[1]]


def test_only_the_registrar_enrols_and_serials_rise(names: Names, runner: Runner) -> None:
    assert refusal(runner, names.enrol("dev-a")) is Reason.DUPLICATE
    assert refusal(runner, names.enrol("dev-a", key="other")) is Reason.SEQ_WINDOW
    assert refusal(runner, names.revoke("dev-a", serial=7)) is Reason.UNKNOWN_DEVICE
    assert refusal(runner, names.revoke("stranger")) is Reason.UNKNOWN_DEVICE
    forged = names.sign(enrolment(), Domain.ENROL, SENDER_REGISTRAR, key="mallory")
    assert refusal(runner, forged) is Reason.BAD_SIGNATURE
    by_miner = names.sign(enrolment(), Domain.ENROL, names.miners[0])
    assert refusal(runner, by_miner) is Reason.BAD_SIGNATURE


def enrolment() -> Enrol:
    return Enrol(device_id=DeviceId("dev-c"), key=signer("dev-c").public_key, serial=1)


def test_the_registry_is_bounded(names: Names, runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coordinator.execution.DEVICES_MAX", 2)
    assert refusal(runner, names.enrol("dev-c")) is Reason.CAPACITY
    runner.ok(names.enrol("dev-a", serial=2))


def test_a_new_key_starts_a_new_window(names: Names, runner: Runner) -> None:
    runner.ok(names.update("dev-a", 1_000))
    runner.ok(names.enrol("dev-a", serial=2, key="new-key"))
    runner.ok(names.update("dev-a", 1, key="new-key"))


def test_receipts_that_do_not_count(names: Names, runner: Runner) -> None:
    update = names.update("dev-a", 1)
    assert refusal(runner, names.receipt(names.miners[0], update, "dev-a", 1)) is Reason.UNKNOWN_UPDATE
    runner.ok(update)
    runner.ok(names.receipt(names.miners[0], update, "dev-a", 1))
    assert refusal(runner, names.receipt(names.miners[0], update, "dev-a", 1)) is Reason.DUPLICATE
    other_seq = names.receipt(names.miners[1], update, "dev-a", 2)
    assert refusal(runner, other_seq) is Reason.WRONG_STATEMENT
    refused = names.receipt(names.miners[1], update, "dev-a", 1, status=ReceiptStatus.REFUSED)
    assert refusal(runner, refused) is Reason.WRONG_STATEMENT
    for_other = names.receipt(names.miners[1], update, "dev-a", 1, miner_id=names.miners[2])
    assert refusal(runner, for_other) is Reason.BAD_SIGNATURE
    assert refusal(runner, names.receipt("stranger", update, "dev-a", 1)) is Reason.UNKNOWN_MINER
    assert refusal(runner, names.receipt("dev-a", update, "dev-a", 1)) is Reason.UNKNOWN_MINER


def test_power_counts_and_not_heads() -> None:
    names = Names(4, powers=(6, 1, 1, 1))
    runner = Runner(names)
    runner.ok(names.enrol("dev-a"))
    update = names.update("dev-a", 1)
    runner.ok(update, *(names.receipt(miner, update, "dev-a", 1) for miner in names.miners[1:]))
    assert runner.app.state.updates[update_digest(update)].status is UpdateStatus.WAITING  # 3 of 9
    finalized = runner.ok(names.receipt(names.miners[0], update, "dev-a", 1))
    assert UpdatePending(update_digest=update_digest(update)) in finalized.events


def test_admission_advises_what_the_ledger_would_only_refuse_at_the_cut(names: Names, runner: Runner) -> None:
    expired = names.update("dev-a", 1, expiry_height=0)
    assert runner.app.admit(expired) is Reason.EXPIRED
    assert runner.app.check(expired).code is Reason.NONE
    assert runner.app.admit(names.update("dev-a", 1)) is Reason.NONE
    assert runner.app.admit(names.revoke("dev-a")) is Reason.MALFORMED


def test_a_device_cannot_claim_a_longer_life_than_the_chain_allows(names: Names, runner: Runner) -> None:
    update = names.update("dev-a", 1, expiry_height=10**9)
    finalized = runner.ok(update)
    record = runner.app.state.updates[update_digest(update)]
    assert record.expiry_height == finalized.height + PARAMS.expiry_heights


def test_a_proposal_with_one_invalid_or_repeated_transaction_is_refused(names: Names, runner: Runner) -> None:
    good, bad = names.update("dev-a", 1), names.update("dev-b", 1, key="dev-a")
    assert runner.app.process([good]).code is Reason.NONE
    assert runner.app.process([good, bad]).code is Reason.BAD_SIGNATURE
    assert runner.app.process([good, good]).code is Reason.DUPLICATE
    assert runner.app.prepare([bad, good, good]) == [good]


def test_proposals_are_bounded_in_bytes_and_count(
    names: Names, runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    txs = [names.update("dev-a", 1), names.update("dev-b", 1)]
    assert runner.app.prepare(txs, bytes_max=len(txs[0])) == [txs[0]]
    monkeypatch.setattr("coordinator.application.HEIGHT_TXS_MAX", 1)
    assert len(runner.app.prepare(txs)) == 1
    assert runner.app.process(txs).code is Reason.OVERSIZE


def test_a_proposal_is_in_canonical_order_whatever_came_first(names: Names, runner: Runner) -> None:
    update = names.update("dev-a", 1)
    receipt = names.receipt(names.miners[0], update, "dev-a", 1)
    assert runner.app.prepare([receipt, update, names.enrol("dev-c")]) == [names.enrol("dev-c"), update, receipt]


def test_finalize_changes_nothing_until_commit(names: Names, runner: Runner) -> None:
    before = runner.app.state
    height = before.height + 1
    finalized = runner.app.finalize(height, CREATED_S, [names.update("dev-a", 1)])
    assert runner.app.state is before
    assert finalized == runner.app.finalize(height, CREATED_S, [names.update("dev-a", 1)])
    runner.app.commit(finalized)
    assert runner.app.state.root == finalized.state_root


def test_heights_follow_one_another(runner: Runner) -> None:
    with pytest.raises(LocalProtocolError):
        runner.app.finalize(runner.app.state.height + 2, CREATED_S, [])
    finalized = runner.app.finalize(runner.app.state.height + 1, CREATED_S, [])
    runner.app.commit(finalized)
    with pytest.raises(LocalProtocolError):
        runner.app.commit(finalized)


def test_time_never_goes_back(runner: Runner) -> None:
    runner.height(time_s=CREATED_S + 100)
    runner.height(time_s=5)
    assert runner.app.state.core.time_s == CREATED_S + 100


def test_an_unknown_method_is_a_wrong_setting(names: Names) -> None:
    genesis = replace(names.genesis, params=replace(PARAMS, method="magic"))
    with pytest.raises(ConfigError, match="magic"):
        Application(genesis)


def test_a_signature_is_verified_once(names: Names, runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    verify = cose.verify

    def counted(*arguments: Any, **keywords: Any) -> bytes:
        calls.append(arguments)
        return verify(*arguments, **keywords)

    monkeypatch.setattr(cose, "verify", counted)
    tx = names.update("dev-a", 1)
    runner.app.check(tx)
    runner.app.prepare([tx])
    runner.app.process([tx])
    runner.ok(tx)
    assert len(calls) == 1


def test_what_is_remembered_of_transactions_is_bounded(
    names: Names, runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coordinator.transactions._CACHE_SIZE", 4)
    for seq in range(20):
        runner.app.check(names.update("dev-a", seq))
    assert len(runner.app._reader._read) <= 4
    assert len(runner.app._reader._verified) <= 4
