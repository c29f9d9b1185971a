"""The auditor counts from files alone: real outboxes and ledgers in every state in which a run can end."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from coordinator.application import Finalized
from coordinator.demo.auditor import Audit, audit
from coordinator.events import BlockDecided
from coordinator.ledger.rows import UploadRow
from coordinator.ledger.store import LedgerStore
from coordinator.rounds import MergeBlock, duties
from edge_sdk.adapters.outbox import NewUpdate, Outbox
from edge_sdk.errors import CorruptStoreError
from edge_sdk.protocol import cose, wire
from edge_sdk.protocol.digest import sha256, update_digest
from edge_sdk.protocol.ids import ChainId, DeviceId, Digest, MinerId
from edge_sdk.protocol.messages import Certificate, Domain, Reason, Receipt, ReceiptStatus, Verdict
from edge_sdk.protocol.wire import to_bytes
from tests.support.chain import CHAIN, CREATED_S, PARAMS, TASK, Names, Runner, scores, signer, toy_payload

EVIL = DeviceId("evil-0")
BLOCK = 3
QUORUM = 3
"""Of four miners with one vote each."""


class Site:
    """Folders of a run: four miners, of which the first keeps the ledger, and devices that come into being by use."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.names = Names(params=replace(PARAMS, block_size=BLOCK))
        self.runner = Runner(self.names, self.new_ledger("miner-0"))
        self.outboxes: dict[str, Outbox] = {}
        self.runner.ok(*(self.names.enrol(device) for device in ("dev-0", "dev-1", "dev-2", EVIL)))

    def new_ledger(self, miner: str) -> LedgerStore:
        folder = self.root / "miners" / miner
        folder.mkdir(parents=True)
        return LedgerStore.open(folder / "ledger.sqlite3", genesis=self.names.genesis, miner_id=MinerId(miner))

    @property
    def ledger(self) -> LedgerStore:
        assert self.runner.store is not None
        return self.runner.store

    def outbox(self, device: str) -> Outbox:
        if device not in self.outboxes:
            folder = self.root / "devices" / device
            folder.mkdir(parents=True)
            self.outboxes[device] = Outbox.open(
                folder / "state.sqlite3", device_id=DeviceId(device), chain_id=CHAIN, task=TASK
            )
        return self.outboxes[device]

    def store(self, device: str, *, base_version: int = 0) -> bytes:
        """Let a device sign its next update and put it into its outbox; returns the envelope."""
        outbox = self.outbox(device)
        seq = outbox.next_seq
        envelope = self.names.update(device, seq, base_version=base_version)
        outbox.store(
            NewUpdate(
                digest=update_digest(envelope),
                seq=seq,
                base_version=base_version,
                expiry_height=500,
                envelope=envelope,
                blob=to_bytes(toy_payload(seq)),
                created_s=CREATED_S,
                residual=b"",
            )
        )
        return envelope

    def order(self, device: str, envelope: bytes, seq: int = 1) -> None:
        """Put an update on the ledger with the receipts of all miners."""
        self.runner.ok(envelope)
        self.runner.ok(*(self.names.receipt(miner, envelope, device, seq) for miner in self.names.miners))

    def hold(self, device: str, *receipts: bytes) -> None:
        """Let a device keep receipts as they came."""
        for receipt in receipts:
            self.outbox(device).save_receipt(wire.from_bytes(Receipt, cose.peek(receipt).payload), receipt)

    def stored(self, device: str, envelope: bytes, count: int = QUORUM) -> list[bytes]:
        return [self.names.receipt(miner, envelope, device, 1) for miner in self.names.miners[:count]]

    def refused(self, device: str, envelope: bytes, *reasons: Reason) -> list[bytes]:
        return [
            self.names.receipt(miner, envelope, device, 1, status=ReceiptStatus.REFUSED, reason=reason)
            for miner, reason in zip(self.names.miners, reasons, strict=False)
        ]

    def decide(self, *values: int, base: int = 500) -> Finalized:
        """Score the open block with the same values by all miners; returns the height of the verdict."""
        return self.runner.score({miner: scores(base, *values) for miner in self.names.miners})

    def certify(self) -> Certificate:
        (duty,) = duties(self.runner.app.state, self.names.miners[0], self.names.genesis)
        assert isinstance(duty, MergeBlock)
        statement = duty.statement(sha256(b"merged"))
        self.runner.ok(*(self.names.vote(miner, statement) for miner in self.names.miners))
        (block,) = self.ledger.blocks()
        assert block.certificate is not None
        return block.certificate

    def block_of(self, *devices: str) -> list[bytes]:
        """Fill a block with the first updates of these devices."""
        envelopes = [self.store(device) for device in devices]
        for device, envelope in zip(devices, envelopes, strict=True):
            self.order(device, envelope)
        return envelopes

    def audit(self, *, hostile: Iterable[DeviceId] = (EVIL,)) -> Audit:
        self.close()
        return audit(self.root, self.names.genesis, hostile=frozenset(hostile))

    def close(self) -> None:
        for outbox in self.outboxes.values():
            outbox.close()
        self.outboxes.clear()
        if self.runner.store is not None:
            self.runner.store.close()
            self.runner.store = None


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    yield site
    site.close()


def upload(envelope: bytes) -> UploadRow:
    blob = to_bytes(toy_payload(1))
    return UploadRow(
        update_digest=update_digest(envelope),
        device_id=DeviceId("dev-0"),
        seq=1,
        envelope=envelope,
        blob_digest=sha256(blob),
        blob_bytes=len(blob),
        received_s=CREATED_S,
    )


def check_balance(counts: Audit) -> None:
    settled = counts.merged + sum(counts.refused.values()) + counts.pending + counts.unreceipted + counts.lost
    assert counts.published == settled


# --- what became of an update ---


def test_merged_and_refused_by_verdict_and_the_hostile_share(site: Site) -> None:
    envelopes = site.block_of("dev-0", "dev-1", EVIL)
    site.decide(500, 505, 100)
    site.certify()
    counts = site.audit()
    assert (counts.published, counts.merged, counts.refused) == (3, 2, {Reason.QUALITY: 1})
    assert (counts.hostile_published, counts.hostile_merged) == (1, 0)
    assert (counts.honest_judged, counts.honest_refused_on_content, counts.refused_honest) == (2, 0, 0.0)
    assert (counts.pending, counts.unreceipted, counts.lost, counts.duplicated) == (0, 0, 0, 0)
    assert counts.payload_bytes == [len(to_bytes(toy_payload(1)))] * 3
    assert sorted(counts.envelope_bytes) == sorted(len(envelope) for envelope in envelopes)
    check_balance(counts)


def test_an_honest_update_that_validation_refused_counts_against_the_miners(site: Site) -> None:
    site.block_of("dev-0", "dev-1", EVIL)
    site.decide(500, 100, 505)
    site.certify()
    counts = site.audit()
    assert (counts.hostile_published, counts.hostile_merged) == (1, 1)
    assert counts.refused_honest == 0.5  # dev-1 of the two honest ones


def test_an_honest_update_that_came_too_late_was_not_judged(site: Site) -> None:
    site.block_of("dev-0", "dev-1")
    second = site.store("dev-0")  # a second one on the same base: only one can be merged
    site.order("dev-0", second, seq=2)
    site.decide(500, 505)
    site.certify()
    counts = site.audit()
    assert (counts.merged, counts.refused) == (2, {Reason.BASE_REUSED: 1})
    assert (counts.honest_judged, counts.refused_honest) == (2, 0.0)
    assert counts.duplicated == 0


def test_without_any_verdict_nobody_was_refused_wrongly(site: Site) -> None:
    site.outbox("dev-0")
    counts = site.audit()
    assert (counts.published, counts.refused_honest) == (0, 0.0)


def test_refused_by_a_quorum_of_receipts_with_the_commonest_reason(site: Site) -> None:
    envelope = site.store("dev-0")
    site.hold("dev-0", *site.refused("dev-0", envelope, Reason.STALE, Reason.QUOTA, Reason.STALE))
    counts = site.audit()
    assert (counts.published, counts.refused) == (1, {Reason.STALE: 1})
    check_balance(counts)


def test_two_refusing_miners_of_four_decide_nothing(site: Site) -> None:
    envelope = site.store("dev-0")
    site.hold("dev-0", *site.refused("dev-0", envelope, Reason.STALE, Reason.STALE))
    counts = site.audit()
    assert (counts.unreceipted, counts.refused) == (1, {})


@pytest.mark.parametrize("is_certified", [False, True])
def test_waiting_on_the_ledger_is_pending_until_the_verdict(site: Site, *, is_certified: bool) -> None:
    site.block_of("dev-0", "dev-1", EVIL)
    late = site.store("dev-2")
    site.order("dev-2", late)
    if is_certified:
        site.decide(500, 505, 100)
        site.certify()
    counts = site.audit()
    assert counts.pending == (1 if is_certified else 4)
    check_balance(counts)


def test_held_by_one_miner_and_not_ordered_is_pending(site: Site) -> None:
    envelope = site.store("dev-0")
    site.hold("dev-0", *site.stored("dev-0", envelope))
    with closing(site.new_ledger("miner-1")) as ledger:
        ledger.put_upload(upload(envelope))
    counts = site.audit()
    assert (counts.pending, counts.lost) == (1, 0)


def test_a_row_left_behind_by_a_slow_miner_does_not_reopen_a_decided_update(site: Site) -> None:
    envelope, *_ = site.block_of("dev-0", "dev-1", EVIL)
    site.decide(500, 505, 100)
    site.certify()
    with closing(site.new_ledger("miner-1")) as ledger:
        ledger.put_upload(upload(envelope))
    counts = site.audit()
    assert (counts.pending, counts.merged) == (0, 2)


def test_verdicts_come_from_the_longest_ledger(site: Site) -> None:
    behind = Runner(site.names, site.new_ledger("miner-1"))
    behind.ok(*(site.names.enrol(device) for device in ("dev-0", "dev-1", "dev-2", EVIL)))
    site.block_of("dev-0", "dev-1", EVIL)
    site.decide(500, 505, 100)
    site.certify()
    assert behind.store is not None
    behind.store.close()
    assert site.audit().merged == 2


def test_never_receipted(site: Site) -> None:
    site.store("dev-0")
    partly = site.store("dev-1")
    site.hold("dev-1", *site.stored("dev-1", partly, count=QUORUM - 1))
    counts = site.audit()
    assert (counts.published, counts.unreceipted, counts.lost) == (2, 2, 0)


def test_a_quorum_of_receipts_and_no_miner_that_knows_it_is_lost(site: Site) -> None:
    envelope = site.store("dev-0")
    site.hold("dev-0", *site.stored("dev-0", envelope))
    counts = site.audit()
    assert (counts.published, counts.lost, counts.unreceipted) == (1, 1, 0)
    check_balance(counts)


# --- receipts that count for nothing ---


def forged(site: Site, envelope: bytes) -> list[bytes]:
    """Three receipts in the names of miners, none of them by a miner."""
    genuine = [wire.from_bytes(Receipt, cose.peek(receipt).payload) for receipt in site.stored("dev-0", envelope)]
    return [site.names.sign(receipt, Domain.RECEIPT, receipt.miner_id, key="thief") for receipt in genuine]


def of_unknown_miners(site: Site, envelope: bytes) -> list[bytes]:
    return [site.names.receipt(f"stranger-{i}", envelope, "dev-0", 1) for i in range(QUORUM)]


def in_the_name_of_others(site: Site, envelope: bytes) -> list[bytes]:
    """One real miner speaks for three."""
    return [
        site.names.sign(wire.from_bytes(Receipt, cose.peek(receipt).payload), Domain.RECEIPT, "miner-3", key="miner-3")
        for receipt in site.stored("dev-0", envelope)
    ]


def of_another_chain(site: Site, envelope: bytes) -> list[bytes]:
    return [
        cose.sign(
            cose.peek(receipt).payload,
            signer=signer(miner),
            domain=Domain.RECEIPT,
            chain_id=ChainId("other-chain"),
            sender=miner,
        )
        for miner, receipt in zip(site.names.miners, site.stored("dev-0", envelope), strict=False)
    ]


def of_another_domain(site: Site, envelope: bytes) -> list[bytes]:
    return [
        site.names.sign(wire.from_bytes(Receipt, cose.peek(receipt).payload), Domain.TICK, miner)
        for miner, receipt in zip(site.names.miners, site.stored("dev-0", envelope), strict=False)
    ]


@pytest.mark.parametrize(
    "make", [forged, of_unknown_miners, in_the_name_of_others, of_another_chain, of_another_domain]
)
def test_receipts_that_do_not_verify_count_for_nothing(site: Site, make: Callable[[Site, bytes], list[bytes]]) -> None:
    envelope = site.store("dev-0")
    site.hold("dev-0", *make(site, envelope))
    counts = site.audit()
    assert (counts.unreceipted, counts.lost) == (1, 0)


def test_a_receipt_kept_beside_another_update_counts_for_neither(site: Site) -> None:
    first, second = site.store("dev-0"), site.store("dev-0")
    for miner, receipt in zip(site.names.miners, site.stored("dev-0", first), strict=False):
        body = wire.from_bytes(Receipt, cose.peek(receipt).payload)
        site.outbox("dev-0").save_receipt(replace(body, update_digest=update_digest(second), miner_id=miner), receipt)
    counts = site.audit()
    assert (counts.unreceipted, counts.lost) == (2, 0)


def test_bytes_that_are_no_envelope_count_for_nothing(site: Site) -> None:
    envelope = site.store("dev-0")
    for receipt in site.stored("dev-0", envelope):
        site.outbox("dev-0").save_receipt(wire.from_bytes(Receipt, cose.peek(receipt).payload), b"\xff" * 40)
    assert site.audit().unreceipted == 1


# --- merged twice ---


def test_an_update_in_two_blocks_is_a_duplicate(site: Site) -> None:
    site.block_of("dev-0", "dev-1", EVIL)
    decision = site.decide(500, 505, 100)
    site.certify()
    # No application decides so: a ledger whose second block repeats the first one's updates.
    (decided,) = (event for event in decision.events if isinstance(event, BlockDecided))
    repeated = BlockDecided(header=replace(decided.header, index=2), entries=decided.entries)
    state = site.runner.app.state
    height = site.runner.app.finalize(state.height + 1, CREATED_S + 99, ())
    site.ledger.commit_height(replace(height, events=(repeated,)), proposer="miner-0")
    counts = site.audit()
    assert (counts.published, counts.merged, counts.duplicated) == (3, 2, 2)


def test_two_updates_of_one_device_on_one_base_are_a_duplicate(site: Site) -> None:
    site.block_of("dev-0", "dev-1", EVIL)
    decision = site.decide(500, 505, 100)
    site.certify()
    (decided,) = (event for event in decision.events if isinstance(event, BlockDecided))
    other = replace(decided.entries[0], update_digest=Digest(b"\7" * 32), seq=2)
    height = site.runner.app.finalize(site.runner.app.state.height + 1, CREATED_S + 99, ())
    event = BlockDecided(header=replace(decided.header, index=2), entries=(other,))
    site.ledger.commit_height(replace(height, events=(event,)), proposer="miner-0")
    assert site.audit().duplicated == 1


# --- certificates on the devices ---


def test_only_certificates_that_hold_are_counted(site: Site) -> None:
    site.block_of("dev-0", "dev-1", EVIL)
    site.decide(500, 505, 100)
    certificate = site.certify()
    root, data = certificate.statement.model_root, to_bytes(certificate)
    below_quorum = to_bytes(replace(certificate, signatures=certificate.signatures[: QUORUM - 1]))
    site.outbox("dev-0").record_install(0, site.names.genesis.model_root, None, now_s=1)
    site.outbox("dev-0").record_install(1, root, data, now_s=2)
    site.outbox("dev-1").record_install(1, root, below_quorum, now_s=2)
    site.outbox("dev-1").record_install(2, root, data, now_s=3)  # the certificate is of another version
    site.outbox("dev-2").record_install(1, Digest(b"\1" * 32), data, now_s=2)  # and of another root
    site.outbox("dev-2").record_install(2, root, b"\xff", now_s=2)
    assert site.audit().certificates_verified == 1


# --- files that lie ---


def test_an_envelope_of_another_digest_is_named_with_its_file(site: Site) -> None:
    site.store("dev-0")
    site.close()
    path = site.root / "devices" / "dev-0" / "state.sqlite3"
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE updates SET digest = ?", (b"\1" * 32,))
    with pytest.raises(CorruptStoreError, match=f"{path}: the envelope of update 0101010101010101"):
        site.audit()


def test_a_file_that_is_no_database_is_named(site: Site) -> None:
    path = site.root / "devices" / "dev-0" / "state.sqlite3"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"not a database, but long enough to be read as one" * 40)
    with pytest.raises(CorruptStoreError, match=str(path)):
        site.audit()


def test_the_audit_changes_nothing(site: Site) -> None:
    site.block_of("dev-0", "dev-1", EVIL)
    site.close()
    before = {path: path.read_bytes() for path in site.root.rglob("*") if path.is_file()}
    site.audit()
    assert {path: path.read_bytes() for path in site.root.rglob("*.sqlite3")} == before


def test_a_verdict_is_the_ledgers_not_the_devices_word(site: Site) -> None:
    envelope = site.store("dev-0")
    site.outbox("dev-0").settle(
        update_digest(envelope), Verdict.MERGED, Reason.NONE, outcome=None, residual=None, now_s=1
    )
    counts = site.audit()
    assert (counts.merged, counts.unreceipted) == (0, 1)
