"""A device without a participant: it trains on clouds, publishes what a test tells it to and keeps every answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt

from edge_sdk.adapters.mqtt import Arrived, Connected, LinkEvent, Message, MqttLink, Published
from edge_sdk.device import encoding
from edge_sdk.protocol import chunks, topics, wire
from edge_sdk.protocol.certificate import verify_outcome
from edge_sdk.protocol.cose import Signer, peek, sign, verify
from edge_sdk.protocol.digest import sha256, update_digest
from edge_sdk.protocol.ids import DeviceId, Digest, MinerId
from edge_sdk.protocol.messages import (
    BlockEntry,
    Domain,
    EnergyQuality,
    ModelParams,
    Outcome,
    Receipt,
    ReceiptStatus,
    Resume,
    UpdateManifest,
    UpdatePayload,
)
from edge_sdk.protocol.model import model_root
from edge_sdk.protocol.topics import Kind
from edge_sdk.training.codecs.reading import UpdateForm
from edge_sdk.training.dataset import ArrayDataset
from edge_sdk.training.delta import carried_specs, encode_delta
from edge_sdk.training.spsa_trainer import SpsaTrainer
from tests.support.fleet import CLASSES, CLIP_NORM, Fleet, clouds

WAIT_S: Final = 60.0
FLOOD_IN_FLIGHT: Final = 15
Q24: Final = 2**24


class ScriptedDevice:
    """One session at the broker. Use as ``async with``."""

    def __init__(self, fleet: Fleet, device_id: DeviceId, *, signer: Signer | None = None) -> None:
        """Prepare; entering connects."""
        self.device_id = device_id
        self.genesis = fleet.genesis
        self.signer = signer or fleet.device_signers[device_id]
        self.receipts: dict[tuple[Digest, MinerId], Receipt] = {}
        self.receipt_times_s: dict[tuple[Digest, MinerId], float] = {}
        self.receipt_envelopes: list[bytes] = []
        self.outcomes: dict[Digest, list[BlockEntry]] = {}
        self.resumes: list[Resume] = []
        self.sealed: dict[Digest, bytes] = {}
        """Envelopes that were published, by update."""
        self.answered = 0
        """Publications that the broker has answered."""
        self.refused_by_broker: list[str] = []
        self._fleet = fleet
        self._keys = {miner.miner_id: miner.key for miner in fleet.genesis.miners}
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()
        self._is_connected = asyncio.Event()
        self._link = MqttLink(
            client_id=device_id,
            brokers=[fleet.broker_settings(device_id)],
            subscriptions=topics.device_filters(fleet.genesis.task, device_id),
            will_of=lambda _session: Message(topics.status(fleet.genesis.task, 0, device_id), b"gone"),
            sink=self._sink,
        )

    async def __aenter__(self) -> Self:
        """Connect."""
        self._link.start()
        async with asyncio.timeout(WAIT_S):
            await self._is_connected.wait()
        return self

    async def __aexit__(self, *_error: object) -> None:
        await asyncio.to_thread(self._link.stop)

    def train(self, base: ModelParams, *, seed: int, scale: float = 1.0, steps: int = 15) -> UpdatePayload:
        """Learn from some clouds; a negative or large ``scale`` makes it hostile, and no longer clipped."""
        fleet, params = self._fleet, self.genesis.params
        x, y = clouds(120, width=fleet.rules.width, seed=seed)
        trainer = encoding.new_trainer(
            fleet.artifact,
            params,
            backend="onnxruntime",
            device_id=self.device_id,
            root=model_root(base),
            kind="",
        )
        trainer.load(base)
        dataset = ArrayDataset(x, y, input_shape=(fleet.rules.width,), class_count=CLASSES)
        trainer.train(dataset, steps=steps, lr=params.learning_rate_q24 / Q24, rng=np.random.default_rng(seed))
        if isinstance(trainer, SpsaTrainer):
            return trainer.payload()
        delta: dict[str, npt.NDArray[np.float32]] = {
            name: np.float32(scale) * values for name, values in trainer.delta().items()
        }
        return encode_delta(
            delta,
            None,
            carried_specs(fleet.artifact.network.tensors, params.carried),
            clip_norm=CLIP_NORM if abs(scale) <= 1 else 1e9,
            codec=params.codec,
            top_share=UpdateForm.of_task(params).top_share,
        ).payload

    def manifest(
        self, blob: bytes, *, seq: int, base: ModelParams | None = None, base_version: int = 0, **changes: Any
    ) -> UpdateManifest:
        """Describe a blob."""
        return replace(
            UpdateManifest(
                task=self.genesis.task,
                chain_id=self.genesis.chain_id,
                device_id=self.device_id,
                seq=seq,
                base_version=base_version,
                base_root=model_root(base or self._fleet.model),
                codec=self.genesis.params.codec,
                blob_bytes=len(blob),
                blob_digest=sha256(blob),
                example_count=120,
                local_steps=15,
                training_ms=100,
                energy_mj=10,
                energy_quality=EnergyQuality.MODELLED,
                expiry_height=9_000,
            ),
            **changes,
        )

    def seal(self, manifest: UpdateManifest) -> bytes:
        """Sign a manifest."""
        return sign(
            wire.to_bytes(manifest),
            signer=self.signer,
            domain=Domain.UPDATE,
            chain_id=self.genesis.chain_id,
            sender=self.device_id,
        )

    def publish_manifest(self, envelope: bytes) -> Digest:
        """Publish a manifest alone."""
        self._link.publish(Message(topics.update(self.genesis.task, 0, self.device_id), envelope))
        digest = update_digest(envelope)
        self.sealed[digest] = envelope
        return digest

    def publish_chunks(self, digest: Digest, blob: bytes, *, ranges: list[tuple[int, int]] | None = None) -> None:
        """Publish chunks of a blob."""
        topic = topics.chunk(self.genesis.task, 0, self.device_id)
        for chunk in chunks.split(blob, digest, ranges=ranges):
            self._link.publish(Message(topic, wire.to_bytes(chunk)))

    def publish_raw(self, leaf: str, payload: bytes, *, branch: str = "") -> None:
        """Publish any bytes on a topic of this device, or of another one's branch."""
        self._link.publish(Message(f"fl/v1/{self.genesis.task}/up/0/{branch or self.device_id}/{leaf}", payload))

    async def flood(self, leaf: str, payloads: Iterable[bytes]) -> int:
        """Publish as fast as the broker answers; the number of messages."""
        sent, before = 0, self.answered
        for payload in payloads:
            self.publish_raw(leaf, payload)
            sent += 1
            await self._until(lambda: sent - (self.answered - before) < FLOOD_IN_FLIGHT, "the broker's answers")  # noqa: B023
        await self._until(lambda: self.answered - before >= sent, "the broker's answers")
        return sent

    def publish(self, blob: bytes, *, seq: int, base_version: int = 0, base: ModelParams | None = None) -> Digest:
        """Publish a whole update as an honest device would."""
        digest = self.publish_manifest(self.seal(self.manifest(blob, seq=seq, base=base, base_version=base_version)))
        self.publish_chunks(digest, blob)
        return digest

    def stored_by(self, digest: Digest) -> set[MinerId]:
        """Miners that have confirmed an update."""
        return {
            miner
            for (update, miner), receipt in self.receipts.items()
            if update == digest and receipt.status is ReceiptStatus.STORED
        }

    async def until_stored(self, digest: Digest, count: int) -> None:
        """Wait for receipts of ``count`` miners."""
        await self._until(lambda: len(self.stored_by(digest)) >= count, f"{count} receipts")

    async def until_outcome(self, digest: Digest) -> BlockEntry:
        """Wait for the certified end of an update."""
        await self._until(lambda: digest in self.outcomes, "an outcome")
        return self.outcomes[digest][0]

    async def until_resume(self, digest: Digest) -> Resume:
        """Wait until a miner asks for missing chunks."""
        await self._until(lambda: any(r.update_digest == digest for r in self.resumes), "a resume")
        return next(r for r in self.resumes if r.update_digest == digest)

    async def until_receipt(self, digest: Digest, status: ReceiptStatus) -> Receipt:
        """Wait for a receipt with this status."""

        def found() -> list[Receipt]:
            return [r for (update, _), r in self.receipts.items() if update == digest and r.status is status]

        await self._until(lambda: bool(found()), f"a receipt {status.name}")
        return found()[0]

    async def _until(self, is_true: Any, what: str) -> None:
        deadline_s = time.monotonic() + WAIT_S
        while not is_true():
            self._changed.clear()
            rest_s = deadline_s - time.monotonic()
            try:
                async with asyncio.timeout(max(rest_s, 0.001)):
                    await self._changed.wait()
            except TimeoutError as error:
                raise TimeoutError(f"{self.device_id} waits for {what}") from error

    def _sink(self, event: LinkEvent) -> None:
        self._loop.call_soon_threadsafe(self._take, event)

    def _take(self, event: LinkEvent) -> None:
        if isinstance(event, Connected):
            self._is_connected.set()
        if isinstance(event, Published):
            self.answered += 1
            if event.refused is not None:
                self.refused_by_broker.append(event.refused)
            self._changed.set()
        if not isinstance(event, Arrived):
            return
        kind = topics.parse(event.topic).kind
        if kind is Kind.RECEIPT:
            receipt = self._open(event.payload, Domain.RECEIPT, Receipt)
            key = (receipt.update_digest, receipt.miner_id)
            self.receipt_times_s.setdefault(key, time.monotonic())
            self.receipts[key] = receipt
            self.receipt_envelopes.append(event.payload)
        elif kind is Kind.RESUME:
            self.resumes.append(self._open(event.payload, Domain.RESUME, Resume))
        elif kind is Kind.OUTCOME:
            entry = verify_outcome(wire.from_bytes(Outcome, event.payload), self.genesis)
            self.outcomes.setdefault(entry.update_digest, []).append(entry)
        self._changed.set()

    def _open(self, envelope: bytes, domain: Domain, kind: type[Any]) -> Any:
        sender = peek(envelope).sender
        payload = verify(envelope, key=self._keys[MinerId(sender)], domain=domain, chain_id=self.genesis.chain_id)
        message = wire.from_bytes(kind, payload)
        assert message.miner_id == sender
        return message
