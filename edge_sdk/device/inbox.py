"""From MQTT messages to events: topic, envelope, signature, content; whatever does not hold is refused with a reason.

Everything that arrives was written by somebody else. A message counts only when its topic, its signature's sender and
its content name the same miner of the genesis. Outcomes need no envelope: they prove themselves, and the participant
verifies that.
"""

from __future__ import annotations

import queue
import threading
from collections import Counter
from dataclasses import dataclass
from typing import Final, TypeAlias

from edge_sdk.adapters.mqtt import Arrived, LinkEvent
from edge_sdk.device.worker import Crash
from edge_sdk.errors import SignatureError, UnknownSenderError
from edge_sdk.participant import events as e
from edge_sdk.protocol import cose, topics
from edge_sdk.protocol.ids import DeviceId
from edge_sdk.protocol.limits import CHUNK_MESSAGE_BYTES_MAX, ENVELOPE_BYTES_MAX
from edge_sdk.protocol.messages import (
    Announcement,
    Chunk,
    Domain,
    Genesis,
    Outcome,
    Reason,
    Receipt,
    Resume,
)
from edge_sdk.protocol.wire import from_bytes

MAILBOX_ITEMS_MAX: Final = 2_048
MAILBOX_BYTES_MAX: Final = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Incoming:
    """A message with its verified content, and its envelope where it has one."""

    content: Receipt | Resume | Outcome | Announcement | Chunk
    envelope: bytes


@dataclass(frozen=True, slots=True)
class Stop:
    """Somebody asked the process to end."""


Item: TypeAlias = LinkEvent | e.Event | Stop | Crash


class Mailbox:
    """Queue of the device's loop, filled by other threads, bounded by items and by bytes.

    A message that does not fit is dropped and counted: every message of the protocol comes again, or can be asked for.
    Events of our own worker are few and always fit. ``put(Stop())`` takes no lock: a signal handler may call it.
    """

    def __init__(self) -> None:
        """Start empty."""
        self._items: queue.SimpleQueue[Item] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._messages = 0
        self._bytes = 0
        self.dropped = 0

    def put(self, item: Item) -> None:
        """Add an item; never blocks."""
        if isinstance(item, Arrived):
            size = len(item.payload)
            with self._lock:
                if self._messages >= MAILBOX_ITEMS_MAX or self._bytes + size > MAILBOX_BYTES_MAX:
                    self.dropped += 1
                    return
                self._messages += 1
                self._bytes += size
        self._items.put(item)

    def get(self, timeout_s: float) -> Item | None:
        """Take the oldest item, or None when none comes in time."""
        try:
            item = self._items.get(timeout=max(0.0, timeout_s))
        except queue.Empty:
            return None
        if isinstance(item, Arrived):
            with self._lock:
                self._messages -= 1
                self._bytes -= len(item.payload)
        return item


class Inbox:
    """Checks messages for one device of one chain."""

    def __init__(self, genesis: Genesis, device_id: DeviceId) -> None:
        """Know the miners' keys."""
        self._genesis = genesis
        self._device_id = device_id
        self._keys = {miner.miner_id: miner.key for miner in genesis.miners}
        self.refused: Counter[Reason] = Counter()

    def read(self, message: Arrived) -> Incoming | None:
        """Verify a message.

        Returns:
            Its content; None where the kind of message is of no interest to a device.

        Raises:
            RemoteProtocolError: it does not hold; nothing of it may be used.
        """
        topic = topics.parse(message.topic)
        is_for_us = topic.device is None or topic.device == self._device_id
        if topic.task != self._genesis.task or not is_for_us:
            raise SignatureError(f"topic {message.topic} is not ours", reason=Reason.WRONG_TOPIC)
        match topic.kind:
            case topics.Kind.RECEIPT:
                return self._signed(message.payload, Domain.RECEIPT, Receipt, None)
            case topics.Kind.RESUME:
                return self._signed(message.payload, Domain.RESUME, Resume, None)
            case topics.Kind.CURRENT:
                return self._signed(message.payload, Domain.ANNOUNCEMENT, Announcement, topic.miner)
            case topics.Kind.OUTCOME:
                return Incoming(from_bytes(Outcome, message.payload, bytes_max=ENVELOPE_BYTES_MAX), b"")
            case topics.Kind.DOWN_CHUNK:
                return Incoming(from_bytes(Chunk, message.payload, bytes_max=CHUNK_MESSAGE_BYTES_MAX), b"")
            case _:
                return None

    def read_announcement(self, envelope: bytes) -> Announcement:
        """Verify an announcement that came another way than by MQTT.

        Raises:
            RemoteProtocolError: it does not hold.
        """
        content = self._signed(envelope, Domain.ANNOUNCEMENT, Announcement, None).content
        assert isinstance(content, Announcement)
        return content

    def _signed(
        self,
        payload: bytes,
        domain: Domain,
        cls: type[Receipt | Resume | Announcement],
        topic_miner: str | None,
    ) -> Incoming:
        envelope = cose.peek(payload)
        key = next((key for miner_id, key in self._keys.items() if miner_id == envelope.sender), None)
        if key is None:
            raise UnknownSenderError("not a miner of this chain", reason=Reason.UNKNOWN_MINER, sender=envelope.sender)
        content = from_bytes(cls, cose.verify(envelope, key=key, domain=domain, chain_id=self._genesis.chain_id))
        if content.miner_id != envelope.sender or topic_miner not in {None, envelope.sender}:
            raise SignatureError(
                "signed by another miner than it names", reason=Reason.WRONG_TOPIC, sender=envelope.sender
            )
        if not isinstance(content, Announcement) and content.device_id != self._device_id:
            raise SignatureError("for another device", reason=Reason.WRONG_TOPIC, sender=envelope.sender)
        return Incoming(content, payload)
