"""What a miner says to devices: signed where it is the miner's word, bare where it proves itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from edge_sdk.adapters.mqtt import Message
from edge_sdk.protocol import chunks, topics, wire
from edge_sdk.protocol.cose import Signer, sign
from edge_sdk.protocol.ids import DeviceId, Digest, MinerId
from edge_sdk.protocol.messages import (
    Announcement,
    Domain,
    Genesis,
    Outcome,
    Reason,
    Receipt,
    ReceiptStatus,
    Resume,
    Status,
)

STATUS_NOTE: Final = ""


class Courier:
    """Signs and publishes. ``publish`` may drop: whoever waits asks again."""

    def __init__(
        self, *, genesis: Genesis, miner_id: MinerId, signer: Signer, publish: Callable[[Message], bool]
    ) -> None:
        """Keep the miner's identity and the way to the broker."""
        self._genesis = genesis
        self._miner_id = miner_id
        self._signer = signer
        self._publish = publish

    def seal(self, message: object, domain: Domain) -> bytes:
        """Sign a message in this miner's name."""
        return sign(
            wire.to_bytes(message),
            signer=self._signer,
            domain=domain,
            chain_id=self._genesis.chain_id,
            sender=self._miner_id,
        )

    def receipt(
        self,
        device_id: DeviceId,
        seq: int,
        update_digest: Digest,
        status: ReceiptStatus,
        reason: Reason,
        *,
        height: int,
    ) -> bytes:
        """Send a receipt; return its envelope, which is also a transaction when the update is stored."""
        envelope = self.sealed_receipt(device_id, seq, update_digest, status, reason, height=height)
        self.send_receipt(device_id, envelope)
        return envelope

    def sealed_receipt(
        self,
        device_id: DeviceId,
        seq: int,
        update_digest: Digest,
        status: ReceiptStatus,
        reason: Reason,
        *,
        height: int,
    ) -> bytes:
        """Sign a receipt."""
        receipt = Receipt(
            miner_id=self._miner_id,
            device_id=device_id,
            seq=seq,
            update_digest=update_digest,
            status=status,
            reason=reason,
            height=height,
        )
        return self.seal(receipt, Domain.RECEIPT)

    def send_receipt(self, device_id: DeviceId, envelope: bytes) -> None:
        """Publish a signed receipt."""
        self._publish(Message(topics.receipt(self._genesis.task, device_id), envelope))

    def resume(self, device_id: DeviceId, update_digest: Digest, ranges: tuple[tuple[int, int], ...]) -> None:
        """Ask a device for the byte ranges that are missing."""
        message = Resume(miner_id=self._miner_id, device_id=device_id, update_digest=update_digest, ranges=ranges)
        self._publish(Message(topics.resume(self._genesis.task, device_id), self.seal(message, Domain.RESUME)))

    def outcome(self, device_id: DeviceId, outcome: Outcome) -> None:
        """Send the certified end of an update; it needs no signature of ours."""
        self._publish(Message(topics.outcome(self._genesis.task, device_id), wire.to_bytes(outcome)))

    def chunks(self, device_id: DeviceId, blob: bytes, digest: Digest, ranges: Sequence[tuple[int, int]]) -> int:
        """Send pieces of a fetched blob; return the bytes that were handed over."""
        sent = 0
        for chunk in chunks.split(blob, digest, ranges=ranges):
            if not self._publish(Message(topics.down_chunk(self._genesis.task, device_id), wire.to_bytes(chunk))):
                break
            sent += len(chunk.data)
        return sent

    def announce(self, announcement: Announcement) -> bytes:
        """Publish the newest certified model, retained; return the envelope."""
        envelope = self.seal(announcement, Domain.ANNOUNCEMENT)
        self._publish(Message(topics.current(self._genesis.task, self._miner_id), envelope, retain=True))
        return envelope

    def status(self, session: int, *, version: int, is_online: bool) -> Message:
        """Birth or death of a session, retained; the death is also the will."""
        status = Status(
            sender=self._miner_id, session=session, online=is_online, installed_version=version, note=STATUS_NOTE
        )
        topic = topics.miner_status(self._genesis.task, self._miner_id)
        return Message(topic, self.seal(status, Domain.STATUS), retain=True)
