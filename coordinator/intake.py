"""A miner's connection to its MQTT broker, for an asyncio program.

paho runs its network thread; messages cross into the event loop through a counted gate, so that a flood stops at the
socket and not in memory. The session is durable (clean session off), and subscriptions are renewed after every connect,
since brokers forget sessions. Nothing here is trusted to be delivered: devices repeat what no receipt answers. MQTT
3.1.1, which every broker speaks.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from coordinator.config import BrokerConfig
from edge_sdk.errors import ConnectError

if TYPE_CHECKING:
    from paho.mqtt.reasoncodes import ReasonCode

log = logging.getLogger(__name__)

INBOX_MESSAGES_MAX: Final = 256
"""Messages between the network thread and the event loop: 16 MiB of chunks."""
OUTBOX_MESSAGES_MAX: Final = 4096
INFLIGHT_MESSAGES_MAX: Final = 100
CONNECT_S: Final = 10.0
RECONNECT_S_MIN: Final = 0.2
RECONNECT_S_MAX: Final = 15.0
_GATE_POLL_S: Final = 0.2


@dataclass(frozen=True, slots=True)
class Message:
    """One message as it came."""

    topic: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class Will:
    """What the broker publishes when this session dies without a goodbye; retained."""

    topic: str
    payload: bytes


class BrokerSession:
    """One durable session over an ordered list of brokers; the first that answers is used until it fails."""

    def __init__(
        self,
        brokers: Sequence[BrokerConfig],
        *,
        client_id: str,
        subscriptions: Sequence[str],
        will: Will,
        on_connected: Callable[[], None],
    ) -> None:
        """Prepare; ``run`` connects.

        Args:
            brokers: In order of preference.
            client_id: Names the durable session on the broker.
            subscriptions: Topic filters, quality of service 1.
            will: Published by the broker at an unexpected end.
            on_connected: Called in the event loop after each connect, to publish birth and retained messages.
        """
        self._brokers = tuple(brokers)
        self._client_id = client_id
        self._subscriptions = [(topic, 1) for topic in subscriptions]
        self._will = will
        self._on_connected = on_connected
        self._inbox: asyncio.Queue[Message] = asyncio.Queue()
        self._gate = threading.BoundedSemaphore(INBOX_MESSAGES_MAX)
        self._client: mqtt.Client | None = None
        self._is_closing = False

    @property
    def is_connected(self) -> bool:
        """Whether a broker has accepted the session and it lives."""
        return self._client is not None and self._client.is_connected()

    async def messages(self) -> AsyncIterator[Message]:
        """Yield messages as they come, for ever."""
        while True:
            message = await self._inbox.get()
            self._gate.release()
            yield message

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> bool:
        """Hand a message to the network thread with quality of service 1.

        Returns:
            False when there is no connection or the queue is full: nothing is kept, whoever waits will ask again.
        """
        if self._client is None or not self._client.is_connected():
            return False
        return self._client.publish(topic, payload, qos=1, retain=retain).rc == mqtt.MQTT_ERR_SUCCESS

    async def run(self) -> None:
        """Stay connected until cancelled, with growing, jittered pauses between attempts."""
        pause_s = RECONNECT_S_MIN
        while True:
            for broker in self._brokers:
                lost = asyncio.Event()
                try:
                    client = await self._connect(broker, lost)
                except ConnectError as error:
                    log.warning(
                        "broker not reached", extra={"host": broker.host, "port": broker.port, "error": str(error)}
                    )
                    continue
                pause_s = RECONNECT_S_MIN
                try:
                    await lost.wait()
                finally:
                    await self._drop(client)
                log.warning("broker connection lost", extra={"host": broker.host, "port": broker.port})
                break
            await asyncio.sleep(pause_s * (0.5 + secrets.randbelow(1000) / 1000))
            pause_s = min(2 * pause_s, RECONNECT_S_MAX)

    async def close(self, farewell: Will) -> None:
        """Say goodbye properly, so that the will is not sent."""
        self._is_closing = True
        client = self._client
        if client is not None and client.is_connected():
            sent = client.publish(farewell.topic, farewell.payload, qos=1, retain=True)
            try:
                await asyncio.to_thread(sent.wait_for_publish, 2.0)
            except (RuntimeError, ValueError) as error:
                log.info("farewell not delivered", extra={"error": str(error)})
            client.disconnect()
            await self._drop(client)

    async def _connect(self, broker: BrokerConfig, lost: asyncio.Event) -> mqtt.Client:
        loop = asyncio.get_running_loop()
        accepted: asyncio.Future[str] = loop.create_future()
        client = self._new_client(broker)

        def on_connect(_client: mqtt.Client, _data: Any, _flags: mqtt.ConnectFlags, code: ReasonCode, _p: Any) -> None:
            if not code.is_failure:
                client.subscribe(self._subscriptions)
            loop.call_soon_threadsafe(_resolve, accepted, str(code) if code.is_failure else "")

        def on_disconnect(*_args: Any) -> None:
            loop.call_soon_threadsafe(_resolve, accepted, "connection closed")
            loop.call_soon_threadsafe(lost.set)

        def on_message(_client: mqtt.Client, _data: Any, message: mqtt.MQTTMessage) -> None:
            while not self._gate.acquire(timeout=_GATE_POLL_S):
                if self._is_closing:
                    return
            loop.call_soon_threadsafe(self._inbox.put_nowait, Message(message.topic, bytes(message.payload)))

        client.on_connect, client.on_disconnect, client.on_message = on_connect, on_disconnect, on_message
        try:
            await asyncio.to_thread(client.connect, broker.host, broker.port, broker.keepalive_s)
        except (OSError, ValueError) as error:
            raise ConnectError(str(error)) from error
        client.loop_start()
        try:
            refusal = await asyncio.wait_for(accepted, CONNECT_S)
        except TimeoutError:
            refusal = f"no answer in {CONNECT_S} s"
        if refusal:
            await self._drop(client)
            raise ConnectError(refusal)
        self._client = client
        log.info("broker connected", extra={"host": broker.host, "port": broker.port})
        self._on_connected()
        return client

    def _new_client(self, broker: BrokerConfig) -> mqtt.Client:
        client = mqtt.Client(
            CallbackAPIVersion.VERSION2,
            client_id=self._client_id,
            clean_session=False,
            protocol=mqtt.MQTTv311,
            reconnect_on_failure=False,
        )
        client.max_inflight_messages_set(INFLIGHT_MESSAGES_MAX)
        client.max_queued_messages_set(OUTBOX_MESSAGES_MAX)
        client.connect_timeout = CONNECT_S
        client.on_socket_open = _set_nodelay
        client.will_set(self._will.topic, self._will.payload, qos=1, retain=True)
        if broker.username is not None:
            client.username_pw_set(broker.username, _password(broker))
        if broker.tls:
            client.tls_set(
                ca_certs=None if broker.ca_file is None else str(broker.ca_file),
                certfile=None if broker.cert_file is None else str(broker.cert_file),
                keyfile=None if broker.key_file is None else str(broker.key_file),
            )
        return client

    async def _drop(self, client: mqtt.Client) -> None:
        """Stop a client's thread and forget it."""
        if self._client is client:
            self._client = None
        client.on_disconnect = None
        client.disconnect()
        await asyncio.to_thread(client.loop_stop)


def _set_nodelay(_client: mqtt.Client, _data: Any, sock: Any) -> None:
    """Small messages must not wait for acknowledgements of earlier ones (Nagle)."""
    raw = getattr(sock, "_sock", sock)
    if isinstance(raw, socket.socket) and raw.family in {socket.AF_INET, socket.AF_INET6}:
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _password(broker: BrokerConfig) -> str | None:
    if broker.password_file is None:
        return None
    return broker.password_file.read_text(encoding="utf-8").splitlines()[0]


def _resolve(future: asyncio.Future[str], value: str) -> None:
    if not future.done():
        future.set_result(value)
