"""From the broker to the pool and back: topics become events, effects become receipts, files and transactions.

An upload is durable - blob, then row - before its receipt is signed, and the receipt is a transaction as well as an
answer. What was received stays wanted on the ledger until the ledger shows it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, assert_never

from coordinator.application import Application
from coordinator.behaviour import Behaviour
from coordinator.courier import Courier
from coordinator.downlink import Downlink
from coordinator.journal import Journal
from coordinator.ledger.blobs import BlobStore
from coordinator.ledger.rows import UploadRow
from coordinator.ledger.state import State
from coordinator.ledger.store import LedgerStore
from coordinator.pool import (
    BlobStored,
    ChunkArrived,
    Drop,
    Effect,
    Event,
    ManifestArrived,
    Pool,
    Report,
    SendOutcome,
    SendReceipt,
    SendResume,
    Store,
    StoreFailed,
    TimePassed,
    Upload,
)
from coordinator.serving.metrics import Direction, MinerPhase, UpdateOutcome
from coordinator.submission import Submitter
from edge_sdk.adapters import failpoints
from edge_sdk.adapters.mqtt import Arrived
from edge_sdk.errors import DecodeError, RemoteProtocolError, StoreError
from edge_sdk.ports import Clock
from edge_sdk.protocol import cose, digest, topics, wire
from edge_sdk.protocol.ids import DeviceId, Digest
from edge_sdk.protocol.limits import CHUNK_DATA_BYTES_MAX, PENDING_PER_DEVICE_MAX
from edge_sdk.protocol.messages import Outcome, Reason, ReceiptStatus, UpdateManifest
from edge_sdk.protocol.topics import Kind

log = logging.getLogger(__name__)

RECEIPTS_REMEMBERED: Final = 1_024
CHECK_S: Final = 0.5
"""How often the pool learns that time has passed."""
NANO_PER_UNIT: Final = 1e9

# The ledger will not take such an update later either: the receipt was a promise that its device broke.
_PERMANENT: Final = frozenset(
    {
        Reason.MALFORMED,
        Reason.UNKNOWN_DEVICE,
        Reason.REVOKED_DEVICE,
        Reason.BAD_SIGNATURE,
        Reason.SEQ_WINDOW,
        Reason.EQUIVOCATION,
        Reason.BASE_ROOT,
        Reason.CODEC,
        Reason.OVERSIZE,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceptionTools:
    """What the reception works with."""

    application: Application
    store: LedgerStore
    blobs: BlobStore
    downlink: Downlink
    courier: Courier
    submitter: Submitter
    journal: Journal
    clock: Clock
    behaviour: Behaviour
    on_status: Callable[[DeviceId, bytes], None]
    """Takes births and deaths of devices, as they arrived; the registrar's miner watches them."""


class IntakeLedger:
    """The pool's view of committed state and of this miner's own store."""

    def __init__(self, application: Application, store: LedgerStore) -> None:
        """Count what is stored and not on the ledger yet, so that a quota holds before the ledger knows."""
        self._application = application
        self._store = store
        self._ahead: dict[Digest, DeviceId] = {}

    def admit(self, device_id: DeviceId, envelope: bytes) -> Reason:
        """Judge a manifest by the application's rule, as if what is on its way were there already."""
        reason = self._application.admit(envelope)
        if reason is not Reason.NONE:
            return reason
        on_ledger = self._application.state.registry[device_id].open_updates
        ahead = sum(sender == device_id for sender in self._ahead.values())
        return Reason.QUOTA if on_ledger + ahead >= PENDING_PER_DEVICE_MAX else Reason.NONE

    def is_enrolled(self, device_id: DeviceId) -> bool:
        """Whether the registry knows the device."""
        return device_id in self._application.state.registry

    def is_stored(self, update_digest: Digest) -> bool:
        """Whether blob and row are durable here."""
        return self._store.upload(update_digest) is not None

    def is_decided(self, update_digest: Digest) -> bool:
        """Whether a certified block holds the update."""
        return self._store.outcome(update_digest) is not None

    def promised(self, upload: UploadRow) -> None:
        """Take note of an update that is to be put on the ledger."""
        if not is_listed(self._application.state, upload):
            self._ahead[upload.update_digest] = upload.device_id

    def observe(self, listed: Sequence[Digest]) -> None:
        """Forget updates that are on the ledger now, or never will be."""
        for update_digest in listed:
            self._ahead.pop(update_digest, None)


def is_listed(state: State, upload: UploadRow) -> bool:
    """Whether the ledger has taken an update, decided or not."""
    if upload.update_digest in state.updates:
        return True
    record = state.registry.get(upload.device_id)
    return record is not None and (upload.seq, upload.update_digest) in record.recent


class Reception:
    """Feeds the pool and carries out what it asks for."""

    def __init__(self, tools: ReceptionTools, pool: Pool, ledger: IntakeLedger) -> None:
        """Take the tools; ``resume_promises`` and ``run`` start the work."""
        self._tools = tools
        self._pool = pool
        self._ledger = ledger
        self._disk = ThreadPoolExecutor(max_workers=1, thread_name_prefix="disk")
        self._receipts: OrderedDict[Digest, bytes] = OrderedDict()

    def resume_promises(self) -> None:
        """Want everything on the ledger that an earlier process has receipted and no block has decided."""
        for upload in self._tools.store.uploads():
            if self._drop_decided(upload.update_digest) is not None:
                continue
            self._want(upload, self._receipt(upload.device_id, upload.seq, upload.update_digest))

    async def run(self, messages: AsyncIterator[Arrived]) -> None:
        """Take messages until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._watch_time(tasks))
            async for message in messages:
                event = self._event(message)
                if event is not None:
                    self._apply(event, tasks)

    def observe(self, listed: Sequence[Digest]) -> None:
        """Take in which updates the ledger has taken."""
        self._ledger.observe(listed)

    def close(self) -> None:
        """Finish what is being written."""
        self._disk.shutdown(wait=True)

    def _event(self, message: Arrived) -> Event | None:
        """Read a topic; a message on no topic of ours is counted and dropped."""
        journal = self._tools.journal
        try:
            topic = topics.parse(message.topic)
        except DecodeError:
            journal.metrics.count_refused_message(Reason.WRONG_TOPIC)
            return None
        if topic.device is None or topic.task != self._tools.application.genesis.task:
            journal.metrics.count_refused_message(Reason.WRONG_TOPIC)
            return None
        if topic.kind is Kind.UPDATE:
            return ManifestArrived(topic.device, message.payload, self._now_s())
        if topic.kind is Kind.CHUNK:
            journal.metrics.count_chunk(Direction.UP, len(message.payload))
            return ChunkArrived(topic.device, message.payload, self._now_s())
        if topic.kind is Kind.FETCH:
            self._answer_fetch(topic.device, message.payload)
        elif topic.kind is Kind.STATUS:
            self._tools.on_status(topic.device, message.payload)
        else:
            journal.metrics.count_refused_message(Reason.WRONG_TOPIC)
        return None

    def _answer_fetch(self, device_id: DeviceId, envelope: bytes) -> None:
        metrics = self._tools.journal.metrics
        try:
            sent = self._tools.downlink.take(device_id, envelope, self._now_s())
        except RemoteProtocolError as error:
            metrics.count_refused_message(error.reason or Reason.MALFORMED)
            return
        for start in range(0, sent, CHUNK_DATA_BYTES_MAX):
            metrics.count_chunk(Direction.DOWN, min(sent - start, CHUNK_DATA_BYTES_MAX))

    def _apply(self, event: Event, tasks: asyncio.TaskGroup) -> None:
        if self._tools.behaviour.receipts_without_blob:
            self._lie(event)
            return
        for effect in self._pool.apply(event):
            self._carry_out(effect, tasks)
        self._tools.journal.metrics.set_assembly_bytes(self._pool.assembly_bytes)

    def _carry_out(self, effect: Effect, tasks: asyncio.TaskGroup) -> None:
        tools = self._tools
        match effect:
            case Store(upload):
                tasks.create_task(self._store(upload, tasks))
            case SendReceipt(status=ReceiptStatus.REFUSED):
                self._refuse(effect)
            case SendReceipt():
                tools.journal.metrics.count_update(UpdateOutcome.DUPLICATE)
                self._send_stored(effect)
            case SendOutcome(device_id, update_digest):
                outcome = tools.store.outcome(update_digest)
                if outcome is not None:
                    tools.courier.outcome(device_id, outcome)
            case SendResume(device_id, update_digest, ranges):
                tools.courier.resume(device_id, update_digest, ranges)
            case Report(device_id, update_digest, envelope):
                tools.submitter.want(
                    ("evidence", update_digest), envelope, lambda state: state.registry[device_id].equivocated
                )
            case Drop(reason):
                tools.journal.metrics.count_refused_message(reason)
            case _:
                assert_never(effect)

    async def _store(self, upload: Upload, tasks: asyncio.TaskGroup) -> None:
        """Make an upload durable, then answer and put it on the ledger."""
        tools, manifest = self._tools, upload.manifest
        row = UploadRow(
            update_digest=upload.update_digest,
            device_id=manifest.device_id,
            seq=manifest.seq,
            envelope=upload.envelope,
            blob_digest=manifest.blob_digest,
            blob_bytes=manifest.blob_bytes,
            received_s=tools.clock.time_s(),
        )
        loop = asyncio.get_running_loop()
        try:
            outcome = await loop.run_in_executor(self._disk, self._make_durable, row, upload.blob)
        except StoreError as error:
            log.error("update %s not stored: %s", upload.update_digest.hex(), error)  # noqa: TRY400 - for an operator
            self._apply(StoreFailed(upload.update_digest), tasks)
            return
        stored = self._pool.apply(BlobStored(upload))
        if outcome is not None:
            tools.courier.outcome(manifest.device_id, outcome)
            return
        for effect in stored:
            assert isinstance(effect, SendReceipt)
            receipt = self._send_stored(effect)
            failpoints.hit("miner.after_receipt")
            self._want(row, receipt)
        tools.journal.metrics.count_update(UpdateOutcome.STORED)
        tools.journal.since(
            MinerPhase.INTAKE,
            round(upload.started_s * NANO_PER_UNIT),
            bytes_count=manifest.blob_bytes,
            update=upload.update_digest.hex(),
            device=manifest.device_id,
        )

    def _make_durable(self, row: UploadRow, blob: bytes) -> Outcome | None:
        """Blob, then row: what a receipt promises. Runs in the disk thread.

        Returns:
            The end of the update, if its block was certified before the row was there to be removed with it.
        """
        self._tools.blobs.put(blob)
        failpoints.hit("miner.after_blob")
        self._tools.store.put_upload(row)
        failpoints.hit("miner.after_row")
        return self._drop_decided(row.update_digest)

    def _drop_decided(self, update_digest: Digest) -> Outcome | None:
        """Forget an update whose certified end is known, and return that end: there is nothing left to promise."""
        outcome = self._tools.store.outcome(update_digest)
        if outcome is not None:
            self._tools.store.drop_upload(update_digest)
        return outcome

    def _lie(self, event: Event) -> None:
        """Confirm an update that was never looked at (``Behaviour.LYING_RECEIPTS``)."""
        if not isinstance(event, ManifestArrived) or self._ledger.admit(event.device_id, event.envelope) != Reason.NONE:
            return
        manifest = wire.from_bytes(UpdateManifest, cose.peek(event.envelope).payload)
        row = UploadRow(
            update_digest=digest.update_digest(event.envelope),
            device_id=manifest.device_id,
            seq=manifest.seq,
            envelope=event.envelope,
            blob_digest=manifest.blob_digest,
            blob_bytes=manifest.blob_bytes,
            received_s=self._tools.clock.time_s(),
        )
        receipt = SendReceipt(row.device_id, row.seq, row.update_digest, ReceiptStatus.STORED, Reason.NONE)
        self._want(row, self._send_stored(receipt))

    def _send_stored(self, effect: SendReceipt) -> bytes:
        envelope = self._receipt(effect.device_id, effect.seq, effect.update_digest)
        if not self._tools.behaviour.is_silent:
            self._tools.courier.send_receipt(effect.device_id, envelope)
            self._tools.journal.metrics.count_receipt(effect.status)
        return envelope

    def _receipt(self, device_id: DeviceId, seq: int, update_digest: Digest) -> bytes:
        """Sign a receipt once, and give the same one again for a repetition."""
        envelope = self._receipts.get(update_digest)
        if envelope is None:
            envelope = self._tools.courier.sealed_receipt(
                device_id,
                seq,
                update_digest,
                ReceiptStatus.STORED,
                Reason.NONE,
                height=self._tools.application.state.height,
            )
            self._receipts[update_digest] = envelope
            if len(self._receipts) > RECEIPTS_REMEMBERED:
                self._receipts.popitem(last=False)
        return envelope

    def _refuse(self, effect: SendReceipt) -> None:
        tools = self._tools
        tools.journal.metrics.count_update(UpdateOutcome.REFUSED, effect.reason)
        if tools.behaviour.is_silent:
            return
        tools.journal.metrics.count_receipt(effect.status, effect.reason)
        tools.courier.receipt(
            effect.device_id,
            effect.seq,
            effect.update_digest,
            effect.status,
            effect.reason,
            height=tools.application.state.height,
        )

    def _want(self, upload: UploadRow, receipt: bytes) -> None:
        """Put an update and its receipt on the ledger."""
        miner_id, key = self._tools.store.miner_id, upload.update_digest

        def is_confirmed(state: State) -> bool:
            record = state.updates.get(key)
            return is_listed(state, upload) and (record is None or miner_id in record.stored_by)

        def give_up(reason: Reason) -> bool:
            if reason not in _PERMANENT:
                return False
            self._tools.submitter.drop(("receipt", key))
            self._ledger.observe((key,))
            outcome = self._drop_decided(key)
            if outcome is not None:  # so long ago that the state has forgotten its number
                self._tools.courier.outcome(upload.device_id, outcome)
                return True
            log.warning("update %s of %s will never be on the ledger: %s", key.hex(), upload.device_id, reason.name)
            self._tools.store.drop_upload(key)
            self._refuse(SendReceipt(upload.device_id, upload.seq, key, ReceiptStatus.REFUSED, reason))
            return True

        self._ledger.promised(upload)
        submitter = self._tools.submitter
        submitter.want(("update", key), upload.envelope, lambda state: is_listed(state, upload), on_refused=give_up)
        submitter.want(("receipt", key), receipt, is_confirmed, is_ready=lambda state: key in state.updates)

    async def _watch_time(self, tasks: asyncio.TaskGroup) -> None:
        while True:
            await asyncio.sleep(CHECK_S)
            self._apply(TimePassed(self._now_s()), tasks)

    def _now_s(self) -> float:
        return self._tools.clock.monotonic_ns() / NANO_PER_UNIT
