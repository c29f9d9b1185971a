"""Intake machine: bounds before memory, answers to everything that came before, refusals with a reason."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Final

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from coordinator.pool import (
    RESUMES_MAX,
    BlobStored,
    ChunkArrived,
    Drop,
    ManifestArrived,
    Pool,
    Report,
    SendOutcome,
    SendReceipt,
    SendResume,
    Store,
    StoreFailed,
    TimePassed,
)
from edge_sdk.protocol import chunks, cose, digest, wire
from edge_sdk.protocol.ids import ChainId, DeviceId, Digest, TaskId
from edge_sdk.protocol.limits import (
    ASSEMBLIES_PER_DEVICE_MAX,
    ASSEMBLY_AGE_S_MAX,
    ASSEMBLY_BYTES_TOTAL_MAX,
    DIGEST_RETRIES_MAX,
    RESUME_INTERVAL_S,
    UPDATE_ENVELOPE_BYTES_MAX,
)
from edge_sdk.protocol.messages import (
    Codec,
    Domain,
    EnergyQuality,
    Reason,
    ReceiptStatus,
    UpdateManifest,
)

CHAIN: Final = ChainId("chain-1")
DEVICE: Final = DeviceId("device-1")
OTHER: Final = DeviceId("device-2")
BLOB: Final = bytes(range(256)) * 600
SIGNER: Final = cose.SoftwareSigner(Ed25519PrivateKey.from_private_bytes(b"\x07" * 32))


class FakeLedger:
    """Committed state as sets; admission verifies with the one key of this file."""

    def __init__(self) -> None:
        self.enrolled = {DEVICE, OTHER}
        self.stored: set[Digest] = set()
        self.decided: set[Digest] = set()
        self.verdict = Reason.NONE

    def admit(self, device_id: DeviceId, envelope: bytes) -> Reason:
        return self.verdict

    def is_enrolled(self, device_id: DeviceId) -> bool:
        return device_id in self.enrolled

    def is_stored(self, update_digest: Digest) -> bool:
        return update_digest in self.stored

    def is_decided(self, update_digest: Digest) -> bool:
        return update_digest in self.decided


def manifest_of(blob: bytes, *, seq: int = 0, device: DeviceId = DEVICE) -> UpdateManifest:
    return UpdateManifest(
        task=TaskId("task"),
        chain_id=CHAIN,
        device_id=device,
        seq=seq,
        base_version=0,
        base_root=Digest(bytes(32)),
        codec=Codec.INT8_DENSE,
        blob_bytes=len(blob),
        blob_digest=Digest(hashlib.sha256(blob).digest()),
        example_count=10,
        local_steps=5,
        training_ms=100,
        energy_mj=20,
        energy_quality=EnergyQuality.MODELLED,
        expiry_height=1000,
    )


def seal(manifest: UpdateManifest, *, sender: str = DEVICE, domain: Domain = Domain.UPDATE) -> bytes:
    return cose.sign(wire.to_bytes(manifest), signer=SIGNER, domain=domain, chain_id=CHAIN, sender=sender)


def chunk_messages(blob: bytes, update_digest: Digest) -> list[bytes]:
    return [wire.to_bytes(chunk) for chunk in chunks.split(blob, update_digest)]


@pytest.fixture
def ledger() -> FakeLedger:
    return FakeLedger()


@pytest.fixture
def pool(ledger: FakeLedger) -> Pool:
    return Pool(ledger=ledger, check_blob=lambda _manifest, _blob: Reason.NONE, blob_bytes_max=10**7)


def refusal(effects: tuple[object, ...]) -> Reason:
    (effect,) = effects
    assert isinstance(effect, SendReceipt)
    assert effect.status is ReceiptStatus.REFUSED
    return effect.reason


def test_a_whole_upload_is_stored_and_only_then_receipted(pool: Pool, ledger: FakeLedger) -> None:
    envelope = seal(manifest_of(BLOB))
    update_digest = digest.update_digest(envelope)
    assert pool.apply(ManifestArrived(DEVICE, envelope, 1.0)) == ()
    assert pool.assembly_bytes == len(BLOB)
    *first, last = chunk_messages(BLOB, update_digest)
    for message in first:
        assert pool.apply(ChunkArrived(DEVICE, message, 1.1)) == ()
    (effect,) = pool.apply(ChunkArrived(DEVICE, last, 1.2))
    assert isinstance(effect, Store)
    assert (effect.upload.blob, effect.upload.envelope, effect.upload.started_s) == (BLOB, envelope, 1.0)
    assert pool.assembly_bytes == len(BLOB)  # still in memory
    (receipt,) = pool.apply(BlobStored(effect.upload))
    assert pool.assembly_bytes == 0
    assert receipt == SendReceipt(DEVICE, 0, update_digest, ReceiptStatus.STORED, Reason.NONE)


def test_a_transfer_that_ends_after_the_verdict_is_answered_with_it(pool: Pool, ledger: FakeLedger) -> None:
    envelope = seal(manifest_of(BLOB))
    update_digest = digest.update_digest(envelope)
    pool.apply(ManifestArrived(DEVICE, envelope, 0.0))
    *first, last = chunk_messages(BLOB, update_digest)
    for message in first:
        pool.apply(ChunkArrived(DEVICE, message, 0.1))
    ledger.decided.add(update_digest)  # the other miners had it all
    assert pool.apply(ChunkArrived(DEVICE, last, 0.2)) == (SendOutcome(DEVICE, update_digest),)
    assert pool.assembly_bytes == 0


def test_chunks_in_any_order_and_twice(pool: Pool) -> None:
    envelope = seal(manifest_of(BLOB))
    messages = chunk_messages(BLOB, digest.update_digest(envelope))
    pool.apply(ManifestArrived(DEVICE, envelope, 0.0))
    effects = [pool.apply(ChunkArrived(DEVICE, message, 0.1)) for message in reversed([*messages[:-1], *messages])]
    stores = [effect for batch in effects for effect in batch if isinstance(effect, Store)]
    assert len(stores) == 1
    assert stores[0].upload.blob == BLOB
    assert all(not batch or isinstance(batch[0], Store) for batch in effects)


def test_a_stored_update_gets_the_same_receipt_again(pool: Pool, ledger: FakeLedger) -> None:
    envelope = seal(manifest_of(BLOB))
    ledger.stored.add(digest.update_digest(envelope))
    (effect,) = pool.apply(ManifestArrived(DEVICE, envelope, 0.0))
    assert effect == SendReceipt(DEVICE, 0, digest.update_digest(envelope), ReceiptStatus.STORED, Reason.NONE)
    assert pool.assembly_bytes == 0


def test_a_resigned_update_is_the_same_update(pool: Pool, ledger: FakeLedger) -> None:
    envelope = seal(manifest_of(BLOB))
    resigned = envelope[:-64] + bytes(64)  # a signature is not part of the digest
    ledger.stored.add(digest.update_digest(envelope))
    (effect,) = pool.apply(ManifestArrived(DEVICE, resigned, 0.0))
    assert isinstance(effect, SendReceipt)
    assert effect.status is ReceiptStatus.STORED


def test_a_decided_update_gets_its_outcome(pool: Pool, ledger: FakeLedger) -> None:
    envelope = seal(manifest_of(BLOB))
    ledger.stored.add(digest.update_digest(envelope))
    ledger.decided.add(digest.update_digest(envelope))
    assert pool.apply(ManifestArrived(DEVICE, envelope, 0.0)) == (SendOutcome(DEVICE, digest.update_digest(envelope)),)


def test_an_update_known_to_the_ledger_only_is_still_collected(pool: Pool, ledger: FakeLedger) -> None:
    ledger.verdict = Reason.DUPLICATE  # other miners have put it on the ledger
    assert pool.apply(ManifestArrived(DEVICE, seal(manifest_of(BLOB)), 0.0)) == ()
    assert pool.assembly_bytes == len(BLOB)


@pytest.mark.parametrize("reason", [Reason.STALE, Reason.REVOKED_DEVICE, Reason.SEQ_WINDOW, Reason.QUOTA])
def test_a_refusal_of_the_application_is_answered(pool: Pool, ledger: FakeLedger, reason: Reason) -> None:
    ledger.verdict = reason
    assert refusal(pool.apply(ManifestArrived(DEVICE, seal(manifest_of(BLOB)), 0.0))) is reason
    assert pool.assembly_bytes == 0


def test_two_updates_under_one_number_are_refused_and_reported(pool: Pool, ledger: FakeLedger) -> None:
    ledger.verdict = Reason.EQUIVOCATION
    envelope = seal(manifest_of(BLOB))
    report, *rest = pool.apply(ManifestArrived(DEVICE, envelope, 0.0))
    assert report == Report(DEVICE, digest.update_digest(envelope), envelope)
    assert refusal(tuple(rest)) is Reason.EQUIVOCATION


def test_a_bad_signature_is_not_answered(pool: Pool, ledger: FakeLedger) -> None:
    ledger.verdict = Reason.BAD_SIGNATURE
    assert pool.apply(ManifestArrived(DEVICE, seal(manifest_of(BLOB)), 0.0)) == (Drop(Reason.BAD_SIGNATURE),)


def test_an_unknown_device_is_not_answered(pool: Pool, ledger: FakeLedger) -> None:
    ledger.enrolled.clear()
    ledger.verdict = Reason.UNKNOWN_DEVICE
    assert pool.apply(ManifestArrived(DEVICE, seal(manifest_of(BLOB)), 0.0)) == (Drop(Reason.UNKNOWN_DEVICE),)


@pytest.mark.parametrize(
    "envelope",
    [
        seal(manifest_of(BLOB), sender=OTHER),
        seal(manifest_of(BLOB, device=OTHER)),
        seal(manifest_of(BLOB), domain=Domain.FETCH),
    ],
)
def test_somebody_elses_message_on_this_topic(pool: Pool, envelope: bytes) -> None:
    assert refusal(pool.apply(ManifestArrived(DEVICE, envelope, 0.0))) is Reason.WRONG_TOPIC


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (b"", Reason.MALFORMED),
        (b"\xd2\x84", Reason.MALFORMED),
        (b"\x00" * (UPDATE_ENVELOPE_BYTES_MAX + 1), Reason.OVERSIZE),
        (cose.sign(b"\xa0", signer=SIGNER, domain=Domain.UPDATE, chain_id=CHAIN, sender=DEVICE), Reason.MALFORMED),
    ],
)
def test_noise_on_the_manifest_topic(pool: Pool, message: bytes, reason: Reason) -> None:
    assert pool.apply(ManifestArrived(DEVICE, message, 0.0)) == (Drop(reason),)


def test_chunks_without_a_manifest_are_dropped(pool: Pool) -> None:
    message = chunk_messages(BLOB, Digest(bytes(32)))[0]
    assert pool.apply(ChunkArrived(DEVICE, message, 0.0)) == (Drop(Reason.FOREIGN_CHUNK),)
    assert pool.apply(ChunkArrived(DEVICE, b"\xff" * 100, 0.0)) == (Drop(Reason.MALFORMED),)


def test_late_chunks_of_a_stored_blob_are_not_foreign(pool: Pool, ledger: FakeLedger) -> None:
    ledger.stored.add(Digest(bytes(32)))
    assert pool.apply(ChunkArrived(DEVICE, chunk_messages(BLOB, Digest(bytes(32)))[0], 0.0)) == ()


def test_a_chunk_on_another_devices_topic(pool: Pool) -> None:
    envelope = seal(manifest_of(BLOB))
    pool.apply(ManifestArrived(DEVICE, envelope, 0.0))
    message = chunk_messages(BLOB, digest.update_digest(envelope))[0]
    assert pool.apply(ChunkArrived(OTHER, message, 0.0)) == (Drop(Reason.WRONG_TOPIC),)


def test_a_chunk_beyond_the_end(pool: Pool) -> None:
    envelope = seal(manifest_of(BLOB))
    pool.apply(ManifestArrived(DEVICE, envelope, 0.0))
    for message in chunk_messages(BLOB + b"tail" * 20_000, digest.update_digest(envelope))[-1:]:
        assert pool.apply(ChunkArrived(DEVICE, message, 0.0)) == (Drop(Reason.FOREIGN_CHUNK),)


def test_a_blob_longer_than_the_model_allows(ledger: FakeLedger) -> None:
    pool = Pool(ledger=ledger, check_blob=lambda _manifest, _blob: Reason.NONE, blob_bytes_max=len(BLOB) - 1)
    assert refusal(pool.apply(ManifestArrived(DEVICE, seal(manifest_of(BLOB)), 0.0))) is Reason.OVERSIZE


def test_too_many_transfers_of_one_device(pool: Pool) -> None:
    for seq in range(ASSEMBLIES_PER_DEVICE_MAX):
        assert pool.apply(ManifestArrived(DEVICE, seal(manifest_of(BLOB, seq=seq)), 0.0)) == ()
    envelope = seal(manifest_of(BLOB, seq=90))
    assert refusal(pool.apply(ManifestArrived(DEVICE, envelope, 0.1))) is Reason.QUOTA
    assert pool.apply(ManifestArrived(OTHER, seal(manifest_of(BLOB, device=OTHER), sender=OTHER), 0.1)) == ()


def test_a_stalled_transfer_gives_way(pool: Pool) -> None:
    for seq in range(ASSEMBLIES_PER_DEVICE_MAX):
        pool.apply(ManifestArrived(DEVICE, seal(manifest_of(BLOB, seq=seq)), 0.0))
    later_s = 2 * RESUME_INTERVAL_S + 1
    assert pool.apply(ManifestArrived(DEVICE, seal(manifest_of(BLOB, seq=90)), later_s)) == ()
    assert pool.assembly_bytes == ASSEMBLIES_PER_DEVICE_MAX * len(BLOB)


def test_memory_of_all_transfers_is_bounded(ledger: FakeLedger) -> None:
    pool = Pool(ledger=ledger, check_blob=lambda _manifest, _blob: Reason.NONE, blob_bytes_max=2**24)
    big = replace(manifest_of(BLOB), blob_bytes=2**24)
    refused = 0
    for number in range(ASSEMBLY_BYTES_TOTAL_MAX // 2**24 + 3):
        name = DeviceId(f"device-{number}")
        ledger.enrolled.add(name)
        effects = pool.apply(ManifestArrived(name, seal(replace(big, device_id=name), sender=name), 0.0))
        refused += bool(effects) and refusal(effects) is Reason.CAPACITY
    assert refused == 3
    assert pool.assembly_bytes <= ASSEMBLY_BYTES_TOTAL_MAX


def test_missing_chunks_are_asked_for_with_growing_pauses(pool: Pool) -> None:
    envelope = seal(manifest_of(BLOB))
    update_digest = digest.update_digest(envelope)
    pool.apply(ManifestArrived(DEVICE, envelope, 0.0))
    pool.apply(ChunkArrived(DEVICE, chunk_messages(BLOB, update_digest)[1], 0.0))
    assert pool.apply(TimePassed(RESUME_INTERVAL_S / 2)) == ()
    (effect,) = pool.apply(TimePassed(RESUME_INTERVAL_S))
    assert effect == SendResume(DEVICE, update_digest, ((0, 65_536), (131_072, len(BLOB))))
    asked = [pool.apply(TimePassed(RESUME_INTERVAL_S + 0.1 * step)) for step in range(1, 1150)]
    assert sum(map(len, asked)) == RESUMES_MAX - 1


def test_an_abandoned_transfer_is_forgotten(pool: Pool) -> None:
    envelope = seal(manifest_of(BLOB))
    pool.apply(ManifestArrived(DEVICE, envelope, 0.0))
    assert pool.apply(TimePassed(ASSEMBLY_AGE_S_MAX + 0.1)) == (Drop(Reason.TIMEOUT),)
    assert pool.assembly_bytes == 0
    assert pool.apply(ManifestArrived(DEVICE, envelope, 500.0)) == ()  # and may come back


def test_a_wrong_digest_is_asked_for_again_and_then_refused(pool: Pool) -> None:
    envelope = seal(manifest_of(BLOB))
    update_digest = digest.update_digest(envelope)
    pool.apply(ManifestArrived(DEVICE, envelope, 0.0))
    false = chunk_messages(bytes(len(BLOB)), update_digest)
    for _ in range(DIGEST_RETRIES_MAX):
        *_, effects = [pool.apply(ChunkArrived(DEVICE, message, 0.0)) for message in false]
        assert effects == (
            Drop(Reason.DIGEST_MISMATCH),
            SendResume(DEVICE, update_digest, ((0, len(BLOB)),)),
        )
    *_, effects = [pool.apply(ChunkArrived(DEVICE, message, 0.0)) for message in false]
    assert refusal(effects) is Reason.DIGEST_MISMATCH
    assert pool.assembly_bytes == 0


def test_a_blob_of_the_wrong_form_is_refused(ledger: FakeLedger) -> None:
    pool = Pool(ledger=ledger, check_blob=lambda _manifest, _blob: Reason.SHAPE, blob_bytes_max=10**7)
    envelope = seal(manifest_of(BLOB))
    pool.apply(ManifestArrived(DEVICE, envelope, 0.0))
    *_, effects = [
        pool.apply(ChunkArrived(DEVICE, message, 0.0))
        for message in chunk_messages(BLOB, digest.update_digest(envelope))
    ]
    assert refusal(effects) is Reason.SHAPE


def test_a_full_disk_gives_no_receipt_and_lets_the_device_retry(pool: Pool) -> None:
    envelope = seal(manifest_of(BLOB))
    update_digest = digest.update_digest(envelope)
    pool.apply(ManifestArrived(DEVICE, envelope, 0.0))
    for message in chunk_messages(BLOB, update_digest):
        pool.apply(ChunkArrived(DEVICE, message, 0.0))
    assert (
        pool.apply(ManifestArrived(DEVICE, envelope, 0.1)) == ()
    )  # being stored: neither a receipt nor a new transfer
    assert pool.assembly_bytes == len(BLOB)
    assert pool.apply(StoreFailed(update_digest)) == (Drop(Reason.CAPACITY),)
    assert pool.assembly_bytes == 0
    assert pool.apply(ManifestArrived(DEVICE, envelope, 1.0)) == ()
    assert pool.assembly_bytes == len(BLOB)


def test_blobs_on_their_way_to_a_slow_disk_count_against_the_bounds(pool: Pool) -> None:
    """Else a device could hand in one update after the other, faster than the disk takes them, without end."""
    blobs = [bytes([seq]) * 1_000 for seq in range(ASSEMBLIES_PER_DEVICE_MAX + 1)]
    stores: list[object] = []
    for seq, blob in enumerate(blobs[:-1]):
        envelope = seal(manifest_of(blob, seq=seq))
        pool.apply(ManifestArrived(DEVICE, envelope, 1.0))
        (message,) = chunk_messages(blob, digest.update_digest(envelope))
        stores += pool.apply(ChunkArrived(DEVICE, message, 1.0))
    assert pool.assembly_bytes == 1_000 * ASSEMBLIES_PER_DEVICE_MAX
    late = ManifestArrived(DEVICE, seal(manifest_of(blobs[-1], seq=9)), 100.0)
    assert refusal(pool.apply(late)) is Reason.QUOTA
    first, second = stores
    assert isinstance(first, Store)
    assert isinstance(second, Store)
    pool.apply(BlobStored(first.upload))
    pool.apply(StoreFailed(second.upload.update_digest))
    assert pool.assembly_bytes == 0
    assert pool.apply(late) == ()
