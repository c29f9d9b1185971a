"""A miner's side of the broker: one ``MqttLink``, whose threads feed an event loop.

Messages cross into the loop through a counted gate, so that a flood stops at the socket and not in memory. Nothing is
promised about delivery: devices repeat what no receipt answers, and miners answer every repetition.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Final

from edge_sdk.adapters.mqtt import Arrived, BrokerSettings, Connected, Disconnected, LinkEvent, Message, MqttLink
from edge_sdk.errors import TransportError

log = logging.getLogger(__name__)

INBOX_MESSAGES_MAX: Final = 256
"""Messages between the network thread and the event loop: 16 MiB of chunks."""
_GATE_POLL_S: Final = 0.2


class Intake:
    """The durable session of one miner, for an asyncio program."""

    def __init__(
        self,
        brokers: Sequence[BrokerSettings],
        *,
        client_id: str,
        subscriptions: Sequence[str],
        will_of: Callable[[int], Message],
        first_session: int,
        on_connected: Callable[[int], None],
    ) -> None:
        """Prepare; ``start`` connects. Call from within the event loop.

        Args:
            brokers: In order of preference.
            client_id: Names the durable session on the broker.
            subscriptions: Topic filters.
            will_of: What the broker publishes when the session of this number dies without a goodbye.
            first_session: Rises over restarts.
            on_connected: Called in the event loop with the session's number, to publish birth and retained messages.
        """
        self._loop = asyncio.get_running_loop()
        self._on_connected = on_connected
        self._inbox: asyncio.Queue[Arrived] = asyncio.Queue()
        self._gate = threading.BoundedSemaphore(INBOX_MESSAGES_MAX)
        self._is_stopping = False
        self._link = MqttLink(
            client_id=client_id,
            brokers=brokers,
            subscriptions=subscriptions,
            will_of=will_of,
            sink=self._sink,
            first_session=first_session,
        )
        self.session = 0
        """Number of the session that stands now; 0 while there is none."""

    def start(self) -> None:
        """Begin to connect, and reconnect for ever."""
        self._link.start()

    async def stop(self, farewell: Message | None) -> None:
        """Say goodbye properly, so that the will is not sent."""
        if farewell is not None and self.session:
            self.publish(farewell)
        self._is_stopping = True
        await asyncio.to_thread(self._link.stop)

    def publish(self, message: Message) -> bool:
        """Hand a message to the broker.

        Returns:
            False when there is no session or its queue is full: nothing is kept, and whoever waits will ask again.
        """
        try:
            self._link.publish(message)
        except TransportError as error:
            log.debug("not published on %s: %s", message.topic, error)
            return False
        return True

    async def messages(self) -> AsyncIterator[Arrived]:
        """Yield messages as they come, for ever."""
        while True:
            message = await self._inbox.get()
            self._gate.release()
            yield message

    def _sink(self, event: LinkEvent) -> None:
        """Take an event on a thread of the link."""
        if isinstance(event, Arrived):
            while not self._gate.acquire(timeout=_GATE_POLL_S):
                if self._is_stopping:
                    return
        if not self._is_stopping:
            self._loop.call_soon_threadsafe(self._take, event)

    def _take(self, event: LinkEvent) -> None:
        match event:
            case Arrived():
                self._inbox.put_nowait(event)
            case Connected():
                log.info("broker %s: session %d", event.broker, event.session)
                self.session = event.session
                self._on_connected(event.session)
            case Disconnected():
                log.warning("broker %s: %s", event.broker, event.reason)
                self.session = 0
            case _:
                pass  # publications are not tracked: receipts and outcomes are repeated on request
