"""Intake of updates as a machine without I/O: messages of devices in, work for the miner out.

A manifest comes first and is judged by the application's own admission rule; only then memory is reserved for its blob,
within three bounds (per device, in total, by age). Chunks that no admitted manifest announced are dropped before they
are looked at. A complete blob is hashed and checked, then handed out to be made durable; the receipt leaves only after
the app has reported ``BlobStored``. Everything may arrive twice, in any order, from anybody.

State is mutable inside, since it holds megabytes of half-received blobs; what crosses the border is frozen. Time is an
argument.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Protocol, TypeAlias, assert_never

from edge_sdk.errors import DecodeError
from edge_sdk.protocol import cose, digest, wire
from edge_sdk.protocol.chunks import Assembly
from edge_sdk.protocol.ids import DeviceId, Digest
from edge_sdk.protocol.limits import (
    ASSEMBLIES_PER_DEVICE_MAX,
    ASSEMBLY_AGE_S_MAX,
    ASSEMBLY_BYTES_TOTAL_MAX,
    CHUNK_MESSAGE_BYTES_MAX,
    DIGEST_RETRIES_MAX,
    RESUME_INTERVAL_S,
    UPDATE_ENVELOPE_BYTES_MAX,
)
from edge_sdk.protocol.messages import Chunk, Domain, Reason, ReceiptStatus, UpdateManifest

RESUMES_MAX: Final = 5
"""Requests without progress, each after twice the pause of the last; then the manifest has to come again."""


@dataclass(frozen=True, slots=True)
class ManifestArrived:
    """A message on a device's ``update`` topic."""

    device_id: DeviceId
    """Of the topic: whom the broker let publish here."""
    envelope: bytes
    now_s: float


@dataclass(frozen=True, slots=True)
class ChunkArrived:
    """A message on a device's ``chunk`` topic."""

    device_id: DeviceId
    message: bytes
    now_s: float


@dataclass(frozen=True, slots=True)
class BlobStored:
    """Blob and row of an upload are durable."""

    upload: Upload


@dataclass(frozen=True, slots=True)
class StoreFailed:
    """An upload could not be made durable; the device will try again."""

    update_digest: Digest


@dataclass(frozen=True, slots=True)
class TimePassed:
    """To be fed every fraction of ``RESUME_INTERVAL_S``."""

    now_s: float


Event: TypeAlias = ManifestArrived | ChunkArrived | BlobStored | StoreFailed | TimePassed


@dataclass(frozen=True, slots=True)
class Upload:
    """A complete, checked update."""

    update_digest: Digest
    manifest: UpdateManifest
    envelope: bytes
    blob: bytes
    started_s: float
    """When its manifest came, on the clock of the events."""


@dataclass(frozen=True, slots=True)
class Store:
    """Make an upload durable, then feed ``BlobStored``."""

    upload: Upload


@dataclass(frozen=True, slots=True)
class SendReceipt:
    """Sign and send a receipt."""

    device_id: DeviceId
    seq: int
    update_digest: Digest
    status: ReceiptStatus
    reason: Reason


@dataclass(frozen=True, slots=True)
class SendOutcome:
    """Send the certified end of an update."""

    device_id: DeviceId
    update_digest: Digest


@dataclass(frozen=True, slots=True)
class SendResume:
    """Sign and send the byte ranges that are missing."""

    device_id: DeviceId
    update_digest: Digest
    ranges: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Report:
    """Put an envelope on the ledger as evidence: its device has used one number for two updates."""

    device_id: DeviceId
    update_digest: Digest
    envelope: bytes


@dataclass(frozen=True, slots=True)
class Drop:
    """Count a message that gets no answer: its sender or its form is unknown."""

    reason: Reason


Effect: TypeAlias = Store | SendReceipt | SendOutcome | SendResume | Report | Drop


class Ledger(Protocol):
    """What the pool asks of committed state and of this miner's own store."""

    def admit(self, device_id: DeviceId, envelope: bytes) -> Reason:
        """Judge a manifest by the application's rule; ``NONE`` or ``DUPLICATE`` let it in."""

    def is_enrolled(self, device_id: DeviceId) -> bool:
        """Whether the registry knows the device, revoked or not."""

    def is_stored(self, update_digest: Digest) -> bool:
        """Whether blob and row are durable here."""

    def is_decided(self, update_digest: Digest) -> bool:
        """Whether a certified block holds the update."""


BlobCheck: TypeAlias = Callable[[UpdateManifest, bytes], Reason]
"""Form of a blob against the model: shapes, codec, exponents."""


@dataclass(slots=True)
class _Transfer:
    """A blob on its way."""

    manifest: UpdateManifest
    envelope: bytes
    assembly: Assembly
    started_s: float
    progress_s: float
    resume_s: float
    """When to ask for what is missing."""
    resumes: int = 0
    mismatches: int = 0


@dataclass(slots=True)
class Pool:
    """Transfers in progress of one miner.

    ``blob_bytes_max`` follows from the model: no honest blob is longer.
    """

    ledger: Ledger
    check_blob: BlobCheck
    blob_bytes_max: int
    _transfers: dict[Digest, _Transfer] = field(default_factory=dict)
    _per_device: Counter[DeviceId] = field(default_factory=Counter)
    _storing: dict[Digest, UpdateManifest] = field(default_factory=dict)
    """Complete, on their way to the disk: they hold memory, so they count against the bounds."""
    _bytes: int = 0

    @property
    def assembly_bytes(self) -> int:
        """Memory held for transfers until they are durable."""
        return self._bytes

    def apply(self, event: Event) -> tuple[Effect, ...]:
        """Take one event; return what is to be done, in order."""
        match event:
            case ManifestArrived():
                return self._take_manifest(event)
            case ChunkArrived():
                return self._take_chunk(event)
            case BlobStored(upload):
                self._end_storing(upload.update_digest)
                return (_stored(upload.manifest.device_id, upload.manifest.seq, upload.update_digest),)
            case StoreFailed(update_digest):
                self._end_storing(update_digest)
                return (Drop(Reason.CAPACITY),)
            case TimePassed(now_s):
                return self._pass_time(now_s)
            case _:
                assert_never(event)

    def _take_manifest(self, event: ManifestArrived) -> tuple[Effect, ...]:
        if len(event.envelope) > UPDATE_ENVELOPE_BYTES_MAX:
            return (Drop(Reason.OVERSIZE),)
        try:
            envelope = cose.peek(event.envelope)
            manifest = wire.from_bytes(UpdateManifest, envelope.payload)
        except DecodeError as error:
            return (Drop(error.reason or Reason.MALFORMED),)
        update_digest = digest.update_digest(event.envelope)
        sender = event.device_id
        if envelope.domain != Domain.UPDATE or not sender == envelope.sender == manifest.device_id:
            return self._refuse(sender, manifest.seq, update_digest, Reason.WRONG_TOPIC)
        known = self._answer_known(sender, manifest.seq, update_digest)
        if known is not None:
            return known
        reason = self.ledger.admit(sender, event.envelope)
        if reason is Reason.NONE or reason is Reason.DUPLICATE:
            reason = self._room(manifest, event.now_s)
        if reason is not Reason.NONE:
            refusal = self._refuse(sender, manifest.seq, update_digest, reason)
            is_evidence = reason is Reason.EQUIVOCATION
            return (Report(sender, update_digest, event.envelope), *refusal) if is_evidence else refusal
        self._transfers[update_digest] = _Transfer(
            manifest=manifest,
            envelope=event.envelope,
            assembly=Assembly(digest=update_digest, blob_digest=manifest.blob_digest, blob_bytes=manifest.blob_bytes),
            started_s=event.now_s,
            progress_s=event.now_s,
            resume_s=event.now_s + RESUME_INTERVAL_S,
        )
        self._per_device[sender] += 1
        self._bytes += manifest.blob_bytes
        return ()

    def _answer_known(self, sender: DeviceId, seq: int, update_digest: Digest) -> tuple[Effect, ...] | None:
        """Answer a manifest that came before; None for a new one. Needs no signature: the digest covers the content."""
        if self.ledger.is_decided(update_digest):
            return (SendOutcome(sender, update_digest),)
        if self.ledger.is_stored(update_digest):
            return (_stored(sender, seq, update_digest),)
        if update_digest in self._storing:
            return ()
        transfer = self._transfers.get(update_digest)
        if transfer is None:
            return None
        # A device that starts again sends its chunks again; the pause decides whether it needs to be asked.
        transfer.resumes = 0
        return ()

    def _room(self, manifest: UpdateManifest, now_s: float) -> Reason:
        """Check the bounds on memory before any is reserved; a device's stalled transfer gives way to its next one."""
        if manifest.blob_bytes > self.blob_bytes_max:
            return Reason.OVERSIZE
        if self._per_device[manifest.device_id] >= ASSEMBLIES_PER_DEVICE_MAX:
            stalled = [
                key
                for key, transfer in self._transfers.items()
                if transfer.manifest.device_id == manifest.device_id
                and now_s - transfer.progress_s > 2 * RESUME_INTERVAL_S
            ]
            if not stalled:
                return Reason.QUOTA
            self._forget(stalled[0])
        if self._bytes + manifest.blob_bytes > ASSEMBLY_BYTES_TOTAL_MAX:
            return Reason.CAPACITY
        return Reason.NONE

    def _take_chunk(self, event: ChunkArrived) -> tuple[Effect, ...]:
        try:
            chunk = wire.from_bytes(Chunk, event.message, bytes_max=CHUNK_MESSAGE_BYTES_MAX)
        except DecodeError as error:
            return (Drop(error.reason or Reason.MALFORMED),)
        transfer = self._transfers.get(chunk.digest)
        if transfer is None:
            is_late = chunk.digest in self._storing or self.ledger.is_stored(chunk.digest)
            return () if is_late else (Drop(Reason.FOREIGN_CHUNK),)
        if transfer.manifest.device_id != event.device_id:
            return (Drop(Reason.WRONG_TOPIC),)
        try:
            is_new = transfer.assembly.add(chunk)
        except DecodeError as error:
            return (Drop(error.reason or Reason.OVERSIZE),)
        if is_new:
            transfer.progress_s = event.now_s
            transfer.resumes = 0
            transfer.resume_s = event.now_s + RESUME_INTERVAL_S
        return self._finish(chunk.digest, transfer, event.now_s) if transfer.assembly.is_complete else ()

    def _finish(self, update_digest: Digest, transfer: _Transfer, now_s: float) -> tuple[Effect, ...]:
        """Judge a complete blob, unless the others have decided without it."""
        manifest = transfer.manifest
        if self.ledger.is_decided(update_digest):
            self._forget(update_digest)
            return (SendOutcome(manifest.device_id, update_digest),)
        try:
            blob = transfer.assembly.blob()
        except DecodeError:
            transfer.mismatches += 1
            if transfer.mismatches > DIGEST_RETRIES_MAX:
                self._forget(update_digest)
                return self._refuse(manifest.device_id, manifest.seq, update_digest, Reason.DIGEST_MISMATCH)
            transfer.resume_s = now_s + RESUME_INTERVAL_S
            missing = transfer.assembly.missing()
            return (Drop(Reason.DIGEST_MISMATCH), SendResume(manifest.device_id, update_digest, missing))
        reason = self.check_blob(manifest, blob)
        if reason is not Reason.NONE:
            self._forget(update_digest)
            return self._refuse(manifest.device_id, manifest.seq, update_digest, reason)
        del self._transfers[update_digest]
        self._storing[update_digest] = manifest
        return (Store(Upload(update_digest, manifest, transfer.envelope, blob, transfer.started_s)),)

    def _pass_time(self, now_s: float) -> tuple[Effect, ...]:
        effects: list[Effect] = []
        for update_digest, transfer in list(self._transfers.items()):
            if now_s - transfer.progress_s > ASSEMBLY_AGE_S_MAX:
                # No receipt: the device may still come back with the same update, and a refusal would end it.
                self._forget(update_digest)
                effects.append(Drop(Reason.TIMEOUT))
            elif now_s >= transfer.resume_s and transfer.resumes < RESUMES_MAX:
                transfer.resumes += 1
                transfer.resume_s = now_s + RESUME_INTERVAL_S * 2**transfer.resumes
                ranges = transfer.assembly.missing()
                effects.append(SendResume(transfer.manifest.device_id, update_digest, ranges))
        return tuple(effects)

    def _refuse(self, sender: DeviceId, seq: int, update_digest: Digest, reason: Reason) -> tuple[Effect, ...]:
        """Answer where the sender is known, else only count.

        The digest does not cover the signature, so a refusal for a bad one would let anybody end an honest update.
        """
        if reason is Reason.BAD_SIGNATURE or not self.ledger.is_enrolled(sender):
            return (Drop(reason),)
        return (SendReceipt(sender, seq, update_digest, ReceiptStatus.REFUSED, reason),)

    def _forget(self, update_digest: Digest) -> None:
        self._release(self._transfers.pop(update_digest).manifest)

    def _end_storing(self, update_digest: Digest) -> None:
        manifest = self._storing.pop(update_digest, None)
        if manifest is not None:
            self._release(manifest)

    def _release(self, manifest: UpdateManifest) -> None:
        self._bytes -= manifest.blob_bytes
        self._per_device[manifest.device_id] -= 1
        if not self._per_device[manifest.device_id]:
            del self._per_device[manifest.device_id]


def _stored(device_id: DeviceId, seq: int, update_digest: Digest) -> SendReceipt:
    return SendReceipt(device_id, seq, update_digest, ReceiptStatus.STORED, Reason.NONE)
