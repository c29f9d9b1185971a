"""Carries out effects: durable ones here and now, long ones on the work thread, messages on the link."""

from __future__ import annotations

import logging
from typing import Final, assert_never

from edge_sdk.adapters import failpoints
from edge_sdk.adapters.mqtt import Message, MqttLink, Published, Token
from edge_sdk.adapters.outbox import NewUpdate
from edge_sdk.device.job import PinnedBase
from edge_sdk.device.parts import Parts
from edge_sdk.device.reports import Reports
from edge_sdk.device.tasks import Tasks
from edge_sdk.device.worker import Worker
from edge_sdk.errors import DecodeError, StoreError, TransportError
from edge_sdk.participant import events as e
from edge_sdk.protocol import topics
from edge_sdk.protocol.ids import Digest
from edge_sdk.protocol.messages import Certificate, Chunk, Receipt, ReceiptStatus
from edge_sdk.protocol.wire import to_bytes

log: Final = logging.getLogger(__name__)

SHARDS: Final = 16
"""Topics of a fleet are spread over this many segments; miners subscribe to all of them."""

Events = tuple[e.Event, ...]


class Actor:
    """Effects in, events out. Used by the loop's thread only."""

    def __init__(self, parts: Parts, tasks: Tasks, worker: Worker, link: MqttLink) -> None:
        """Keep the parts."""
        self._parts = parts
        self._tasks = tasks
        self._worker = worker
        self._link = link
        self._shard = topics.shard_of(parts.config.device_id, SHARDS)
        self._open_chunks: dict[Token, Digest] = {}
        self._published_ns: dict[Digest, int] = {}
        self._unsettled: list[e.Settle] = []
        self._is_making = False
        self._certificate: Certificate | None = None
        """Of the model that is being installed."""
        self.receipt_envelope = b""
        """Envelope of the receipt that is being applied."""
        self.announced_urls: tuple[str, ...] = ()
        self.reports = Reports()

    def carry_out(self, effect: e.Effect) -> Events:  # noqa: C901, PLR0911, PLR0912 - one case per effect
        """Do what an effect says; the events that follow at once are returned."""
        match effect:
            case e.FetchModel():
                self._submit_fetch(effect)
                return ()
            case e.SelfTest():
                self._worker.submit(self._tasks.bound(lambda: self._tasks.self_test(effect)))
                return ()
            case e.InstallModel():
                return (self._install(effect),)
            case e.TrainLocally():
                return self._train(effect)
            case e.PauseTraining():
                self._parts.trainers.gate.clear()
                return ()
            case e.ContinueTraining():
                self._parts.trainers.gate.set()
                return ()
            case e.MakeUpdate():
                return self._make_update(effect)
            case e.StoreInOutbox():
                return (self._store(effect),)
            case e.DropJob():
                self._is_making = False
                self._parts.trainers.files.drop()
                return self.settle_waiting()
            case e.PublishManifest():
                return self._publish_manifest(effect)
            case e.PublishChunk():
                return self._publish_chunk(effect)
            case e.SaveReceipt():
                self._save_receipt(effect.receipt)
                return ()
            case e.Settle():
                self._unsettled.append(effect)
                return self.settle_waiting()
            case e.AskOutcome():
                urls = (*self._parts.config.miner_urls, *self.announced_urls)
                self._worker.offer(self._tasks.bound(lambda: self._tasks.ask_outcome(effect.digest, urls)))
                return ()
            case e.Report():
                self._report(effect.kind, effect.text)
                return ()
            case _:
                assert_never(effect)

    def published(self, event: Published) -> Events:
        """The broker answered a publication."""
        if event.refused is not None:
            self._report("publish.refused", f"by the broker: {event.refused}")
        digest = self._open_chunks.pop(event.token, None)
        return () if digest is None else (e.ChunkSent(self._tasks.now_ms(), digest),)

    def link_lost(self) -> None:
        """Answers of an ended session will not come."""
        self._open_chunks.clear()

    def settle_waiting(self) -> Events:
        """End the updates whose end is decided, now that no new residual is on its way."""
        if self._is_making:
            return ()  # a new residual is computed from the old one: it must not change in between
        waiting, self._unsettled = self._unsettled, []
        settled: list[e.Event] = []
        for effect in waiting:
            try:
                self._settle(effect)
            except StoreError as error:
                self._unsettled.append(effect)
                self._report("outbox.failed", str(error))
            else:
                settled.append(e.UpdateSettled(self._tasks.now_ms(), effect.digest))
        return tuple(settled)

    # --- models ---

    def _submit_fetch(self, effect: e.FetchModel) -> None:
        if effect.announcement.certificate is not None:
            self._parts.record.mark("certificate_verified", version=effect.model.version)
        self._certificate = effect.announcement.certificate
        self._worker.submit(self._tasks.bound(lambda: self._tasks.fetch(effect)))

    def _install(self, effect: e.InstallModel) -> e.Event:
        version, staged, parts = effect.model.version, self._tasks.staged, self._parts
        if staged is None or staged.version != version:
            return e.ModelFailed(self._tasks.now_ms(), version, "no staged model")
        certificate = None if self._certificate is None else to_bytes(self._certificate)
        try:
            with parts.record.measure("install", version=version, model_root=effect.model.root.hex()):
                parts.slots.switch(staged)
                parts.outbox.record_install(version, effect.model.root, certificate, now_s=parts.clock.time_s())
        except StoreError as error:
            return e.ModelFailed(self._tasks.now_ms(), version, str(error))
        log.info("installed version %d", version)
        return e.ModelInstalled(self._tasks.now_ms(), effect.model)

    # --- training ---

    def _train(self, effect: e.TrainLocally) -> Events:
        files = self._parts.trainers.files
        try:
            if not effect.is_resumed:
                self._pin(effect.base_version)
            base = files.pinned()
        except StoreError as error:
            return (e.TrainingFailed(self._tasks.now_ms(), effect.base_version, str(error)),)
        if base is None or base.version != effect.base_version:
            return (e.TrainingFailed(self._tasks.now_ms(), effect.base_version, "no pinned base"),)
        self._worker.submit(self._tasks.bound(lambda: self._tasks.train(base)))
        return ()

    def _pin(self, version: int) -> None:
        model = self._parts.slots.current()
        if model is None or model.version != version:
            raise StoreError(f"version {version} is not in the slots")
        self._parts.trainers.files.pin(PinnedBase(model.version, model.root), self._parts.slots.blob(model))

    def _make_update(self, effect: e.MakeUpdate) -> Events:
        try:
            base = self._parts.trainers.files.pinned()
            residual = self._parts.outbox.residual()
        except StoreError as error:
            return (e.TrainingFailed(self._tasks.now_ms(), effect.base_version, str(error)),)
        if base is None:
            return (e.TrainingFailed(self._tasks.now_ms(), effect.base_version, "no pinned base"),)
        self._is_making = True
        self._worker.submit(self._tasks.bound(lambda: self._tasks.make_update(effect, base, residual)))
        return ()

    def _store(self, effect: e.StoreInOutbox) -> e.Event:
        made, parts = self._tasks.made, self._parts
        if made is None or made.digest != effect.digest:
            return e.StoreFailed(self._tasks.now_ms(), effect.digest, "no such update was made")
        new = NewUpdate(
            digest=made.digest,
            seq=made.seq,
            base_version=made.base_version,
            expiry_height=made.expiry_height,
            envelope=made.envelope,
            blob=made.blob,
            created_s=parts.clock.time_s(),
            residual=made.residual,
        )
        try:
            with parts.record.measure("store", update=made.digest.hex(), base_version=made.base_version) as span:
                span.bytes_count = len(made.blob) + len(made.envelope)
                parts.outbox.store(new)
        except StoreError as error:
            return e.StoreFailed(self._tasks.now_ms(), effect.digest, str(error))
        self._tasks.made = None
        return e.UpdateStored(self._tasks.now_ms(), effect.digest)

    # --- sending ---

    def _publish_manifest(self, effect: e.PublishManifest) -> Events:
        config, digest = self._parts.config, effect.digest
        envelope = self._parts.outbox.envelope(digest)
        self._published_ns.setdefault(digest, self._parts.clock.monotonic_ns())
        try:
            self._link.publish(Message(topics.update(config.task, self._shard, config.device_id), envelope))
        except TransportError as error:
            log.info("manifest waits: %s", error)
            return ()
        self._parts.record.mark("publish", bytes_count=len(envelope), update=digest.hex())
        failpoints.hit("device.after_manifest")
        return ()

    def _publish_chunk(self, effect: e.PublishChunk) -> Events:
        config, digest = self._parts.config, effect.digest
        data = self._parts.outbox.blob(digest, offset=effect.offset, size=effect.size)
        payload = to_bytes(Chunk(digest=digest, offset=effect.offset, data=data))
        failpoints.hit("device.mid_chunks")
        try:
            token = self._link.publish(Message(topics.chunk(config.task, self._shard, config.device_id), payload))
        except TransportError as error:
            # As if it had been lost on the way: there is room again, and a miner that misses it will ask.
            log.info("chunk not sent: %s", error)
            return (e.ChunkSent(self._tasks.now_ms(), digest),)
        self._open_chunks[token] = digest
        self._parts.record.mark("publish_chunk", bytes_count=len(payload), update=digest.hex(), offset=effect.offset)
        return ()

    # --- ends ---

    def _save_receipt(self, receipt: Receipt) -> None:
        published_ns = self._published_ns.get(receipt.update_digest)
        if published_ns is not None:
            self._parts.record.write(
                "receipt",
                start_ns=published_ns,
                duration_ns=self._parts.clock.monotonic_ns() - published_ns,
                bytes_count=len(self.receipt_envelope),
                ids={
                    "update": receipt.update_digest.hex(),
                    "miner": receipt.miner_id,
                    "stored": receipt.status is ReceiptStatus.STORED,
                    "reason": receipt.reason.name.lower(),
                },
            )
        try:
            self._parts.outbox.save_receipt(receipt, self.receipt_envelope)
        except StoreError as error:
            self._report("outbox.failed", str(error))  # it counts until a restart, and can be had again after one
        failpoints.hit("device.after_receipt")

    def _settle(self, effect: e.Settle) -> None:
        parts = self._parts
        residual = self._returned(effect.digest) if effect.returns_delta else None
        parts.outbox.settle(
            effect.digest,
            effect.verdict,
            effect.reason,
            outcome=None if effect.outcome is None else to_bytes(effect.outcome),
            residual=residual,
            now_s=parts.clock.time_s(),
        )
        self._published_ns.pop(effect.digest, None)
        verdict, reason = effect.verdict.name.lower(), effect.reason.name.lower()
        block = None if effect.outcome is None else effect.outcome.header.index
        parts.record.mark("outcome", update=effect.digest.hex(), verdict=verdict, reason=reason, block_index=block)
        log.info("update %s: %s %s", effect.digest.hex()[:12], verdict, reason)

    def _returned(self, digest: Digest) -> bytes | None:
        """The residual with the update's delta back in it; None, and a report, when stored bytes do not fit."""
        parts = self._parts
        model = parts.slots.current()
        if model is None:
            self._report("residual.lost", "no model to hold the delta against")
            return None
        try:
            blob = parts.outbox.blob(digest)
            return parts.trainers.returned_residual(parts.outbox.residual(), blob, parts.slots.read(model))
        except DecodeError as error:
            self._report("residual.lost", str(error))
            return None

    def _report(self, kind: str, text: str) -> None:
        self.reports.add(kind, text, now_ms=self._tasks.now_ms())
