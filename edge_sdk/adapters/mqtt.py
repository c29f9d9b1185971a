"""MQTT client: a durable session over an ordered list of brokers, behind one callback.

One ``MqttLink`` keeps one session alive: it tries the brokers in order, MQTT 5 first and 3.1.1 where the broker
refuses it, and starts again with exponential backoff and jitter. paho's queue lives in memory and PUBACK proves
nothing, so this class promises nothing about delivery: what was not confirmed when a session ends is forgotten, and
the owner, who has the durable table, sends it again after the next ``Connected``.

Every connection is a new paho client, because the Last Will carries a session counter and is fixed at connect. paho
runs the socket in its own thread; a second thread waits and reconnects. Both call the sink, which must not block.
"""

from __future__ import annotations

import logging
import secrets
import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from edge_sdk.errors import ConfigError, PublishTimeoutError, TransportError

_LOG: Final = logging.getLogger(__name__)

CONNECT_TIMEOUT_S: Final = 10.0
MQTT5_TIMEOUT_S: Final = 3.0
"""Some brokers (amqtt) neither answer nor close on a version that they do not speak."""
BACKOFF_FIRST_S: Final = 0.5
BACKOFF_MAX_S: Final = 60.0
STABLE_S: Final = 10.0
"""A session that lasted this long resets the backoff; one that is thrown out at once does not."""
SESSION_EXPIRY_S: Final = 7 * 24 * 3600
IN_FLIGHT_MAX: Final = 20
OPEN_MAX: Final = 256
"""Publications without an answer; fewer when an MQTT 5 broker announces a smaller Receive Maximum."""
PACKET_BYTES_MAX: Final = 256 * 1024
"""Largest packet that we accept (told to MQTT 5 brokers) and send; a chunk message is 64 KiB and a little."""
PACKET_OVERHEAD_BYTES: Final = 64
"""Fixed header, lengths, packet identifier and properties of a PUBLISH, generously."""
PASSWORD_BYTES_MAX: Final = 4_096
_REFUSED_FROM: Final = 0x80
"""Reason codes from here on are failures (MQTT 5, section 2.4); in 3.1.1 the one failure of a SUBACK."""
_POLL_S: Final = 0.25
_CLOSE_TIMEOUT_S: Final = 1.0
_NO_ANSWER: Final = "no answer"
_VERSION_REFUSED: Final = "Unsupported protocol version"


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerSettings:
    """Where a broker is and how to show who we are. The password is read from its file at each connect."""

    host: str
    port: int
    keepalive_s: int = 30
    tls: bool = False
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    username: str | None = None
    password_file: Path | None = None
    is_mqtt5_tried: bool = True
    """False spends no time on MQTT 5 where the broker is known not to speak it."""

    def __str__(self) -> str:
        """Host and port, without any secret."""
        return f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Message:
    """What to publish, always with QoS 1."""

    topic: str
    payload: bytes
    retain: bool = False


@dataclass(frozen=True, slots=True)
class Token:
    """Names one publication; packet identifiers start again with each session."""

    session: int
    packet: int


@dataclass(frozen=True, slots=True)
class Connected:
    """The session stands and its subscriptions are active."""

    session: int
    broker: str
    is_session_present: bool
    """Whether the broker kept our subscriptions and queue. If not, messages may have been lost while we were away."""
    is_mqtt5: bool


@dataclass(frozen=True, slots=True)
class Disconnected:
    """A connection ended or could not be made."""

    session: int
    broker: str
    reason: str


@dataclass(frozen=True, slots=True)
class Arrived:
    """A message."""

    topic: str
    payload: bytes
    is_retained: bool


@dataclass(frozen=True, slots=True)
class Published:
    """The broker answered a publication; ``refused`` says why it will not deliver it (MQTT 5 only)."""

    token: Token
    refused: str | None


LinkEvent: TypeAlias = Connected | Disconnected | Arrived | Published


class MqttLink:
    """One client identity on an ordered list of brokers. Safe to use from several threads."""

    def __init__(
        self,
        *,
        client_id: str,
        brokers: Sequence[BrokerSettings],
        subscriptions: Sequence[str],
        will_of: Callable[[int], Message | None],
        sink: Callable[[LinkEvent], None],
        first_session: int = 1,
    ) -> None:
        """Keep the settings; nothing happens before ``start``.

        Args:
            client_id: The same at every start, so that the broker finds the session again.
            brokers: In the order of preference.
            subscriptions: Topic filters, QoS 1, renewed at every connect.
            will_of: Last Will for a session number, None for none.
            sink: Receives every event, on threads of the link.
            first_session: Number of the first connection; the owner makes it rise over restarts.
        """
        self._client_id = client_id
        self._brokers = tuple(brokers)
        self._subscriptions = tuple(subscriptions)
        self._will_of = will_of
        self._sink = sink
        self._session = first_session - 1
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._connection: _Connection | None = None
        self._uses_mqtt311 = {broker for broker in self._brokers if not broker.is_mqtt5_tried}
        self._thread = threading.Thread(target=self._run, name="mqtt-link", daemon=True)

    def start(self) -> None:
        """Begin to connect, in the background."""
        self._thread.start()

    def stop(self, *, timeout_s: float = 5.0) -> None:
        """Disconnect cleanly (the broker does not send the will) and wait for the threads."""
        self._stopping.set()
        with self._lock:
            connection = self._connection
        if connection is not None:
            connection.close()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def publish(self, message: Message) -> Token:
        """Hand a message to the current session.

        Raises:
            TransportError: there is no session, its queue is full, or the broker takes no packet of this size.
        """
        with self._lock:
            connection = self._connection
        if connection is None or not connection.is_ready:
            raise TransportError("not connected to a broker")
        return connection.publish(message)

    def _run(self) -> None:
        """Connect, wait for the end, wait a little longer each time."""
        index, failures = 0, 0
        while not self._stopping.is_set():
            broker = self._brokers[index % len(self._brokers)]
            lasted_s = self._hold_session(broker)
            if lasted_s is None and broker not in self._uses_mqtt311:
                # It did not want MQTT 5: ask again at once, and for good in the older version.
                self._uses_mqtt311.add(broker)
                continue
            if lasted_s is not None and lasted_s >= STABLE_S:
                index, failures = 0, 0
            else:
                index, failures = index + 1, failures + 1
            passes = failures // len(self._brokers)
            delay_s = min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2 ** min(passes, 16))
            self._stopping.wait(delay_s * (500 + secrets.randbelow(501)) / 1000)

    def _hold_session(self, broker: BrokerSettings) -> float | None:
        """One connection from start to end.

        Returns:
            Seconds that the session stood, 0 when it never did; None when the broker refused the protocol version.
        """
        with self._lock:
            self._session += 1
            session = self._session
        try:
            connection = _Connection(
                session,
                broker,
                client_id=self._client_id,
                subscriptions=self._subscriptions,
                will=self._will_of(session),
                sink=self._sink,
                is_mqtt5=broker not in self._uses_mqtt311,
            )
        except (OSError, ConfigError) as error:  # ssl.SSLError is an OSError
            self._sink(Disconnected(session, str(broker), f"credentials: {error}"))
            return 0.0
        with self._lock:
            self._connection = connection
        try:
            return connection.run(self._stopping)
        finally:
            with self._lock:
                self._connection = None


class _Connection:
    """One paho client, used for one connection."""

    def __init__(
        self,
        session: int,
        broker: BrokerSettings,
        *,
        client_id: str,
        subscriptions: tuple[str, ...],
        will: Message | None,
        sink: Callable[[LinkEvent], None],
        is_mqtt5: bool,
    ) -> None:
        self._session = session
        self._broker = broker
        self._subscriptions = subscriptions
        self._sink = sink
        self._is_mqtt5 = is_mqtt5
        self._is_session_present = False
        self._packet_bytes_max = PACKET_BYTES_MAX
        self._open_max = OPEN_MAX
        self._open_count = 0
        self._open_lock = threading.Lock()
        self._ended = threading.Event()
        self._reason = _NO_ANSWER
        self._is_version_refused = False
        self.is_ready = False
        """Whether the subscriptions are active."""
        self._client = self._make_client(client_id, will)

    def _make_client(self, client_id: str, will: Message | None) -> paho.Client:
        client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=client_id,
            clean_session=None if self._is_mqtt5 else False,
            protocol=paho.MQTTv5 if self._is_mqtt5 else paho.MQTTv311,
            reconnect_on_failure=False,
        )
        client.max_inflight_messages_set(IN_FLIGHT_MAX)
        client.connect_timeout = CONNECT_TIMEOUT_S
        if will is not None:
            client.will_set(will.topic, will.payload, qos=1, retain=will.retain)
        broker = self._broker
        if broker.username is not None:
            client.username_pw_set(broker.username, _password(broker.password_file))
        if broker.tls:
            client.tls_set_context(_tls_context(broker))
        client.on_socket_open = _send_at_once
        client.on_connect = self._on_connect
        client.on_subscribe = self._on_subscribe
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        client.on_publish = self._on_publish
        return client

    def run(self, stopping: threading.Event) -> float | None:
        """Connect and wait for the end; see ``MqttLink._hold_session``."""
        try:
            self._client.connect(
                self._broker.host,
                self._broker.port,
                self._broker.keepalive_s,
                clean_start=False if self._is_mqtt5 else paho.MQTT_CLEAN_START_FIRST_ONLY,
                properties=self._connect_properties(),
            )
        except (OSError, ValueError) as error:
            self._sink(Disconnected(self._session, str(self._broker), f"cannot connect: {error}"))
            return 0.0
        timeout_s = MQTT5_TIMEOUT_S if self._is_mqtt5 else CONNECT_TIMEOUT_S
        started_s = time.monotonic()
        self._client.loop_start()
        try:
            while not self._ended.wait(_POLL_S) and not stopping.is_set():
                if not self.is_ready and time.monotonic() - started_s > timeout_s:
                    break  # TCP answers, MQTT does not
            self.close()
            self._ended.wait(_CLOSE_TIMEOUT_S)
        finally:
            was_ready, self.is_ready = self.is_ready, False
            self._client.loop_stop()
            self._break_cycle()
        if self._is_version_refused:
            return None
        self._sink(Disconnected(self._session, str(self._broker), self._reason))
        return time.monotonic() - started_s if was_ready else 0.0

    def _break_cycle(self) -> None:
        """Let the client go at once: it closes its wake-up sockets when it is deleted, not when it is stopped."""
        client = self._client
        client.on_connect = client.on_subscribe = client.on_disconnect = client.on_message = client.on_publish = None

    def close(self) -> None:
        """Ask paho to disconnect; ``run`` then returns."""
        self._client.disconnect()

    def publish(self, message: Message) -> Token:
        """Queue a publication in paho."""
        size = len(message.payload) + len(message.topic.encode()) + PACKET_OVERHEAD_BYTES
        if size > self._packet_bytes_max:
            # paho does not look at the broker's limit: the packet would close the connection again and again.
            raise TransportError(f"{size} bytes: {self._broker} takes packets of at most {self._packet_bytes_max}")
        with self._open_lock:
            if self._open_count >= self._open_max:
                raise TransportError(f"{self._open_count} publications wait for {self._broker}")
            self._open_count += 1
        info = self._client.publish(message.topic, message.payload, qos=1, retain=message.retain)
        if info.rc != paho.MQTT_ERR_SUCCESS:
            raise PublishTimeoutError(f"connection to {self._broker} is gone")
        return Token(self._session, info.mid)

    def _connect_properties(self) -> Properties | None:
        if not self._is_mqtt5:
            return None
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.SessionExpiryInterval = SESSION_EXPIRY_S
        properties.MaximumPacketSize = PACKET_BYTES_MAX
        properties.ReceiveMaximum = IN_FLIGHT_MAX
        return properties

    # --- callbacks, on paho's thread ---

    def _on_connect(
        self, client: paho.Client, _: Any, flags: paho.ConnectFlags, code: Any, properties: Properties | None
    ) -> None:
        if code.is_failure:
            self._reason = f"refused: {code}"
            self._is_version_refused = self._is_mqtt5 and str(code) == _VERSION_REFUSED
            client.disconnect()
            return
        self._is_session_present = flags.session_present
        if properties is not None:
            limit = getattr(properties, "MaximumPacketSize", PACKET_BYTES_MAX)
            self._packet_bytes_max = min(limit, PACKET_BYTES_MAX)
            self._open_max = min(getattr(properties, "ReceiveMaximum", OPEN_MAX), OPEN_MAX)
        if self._is_mqtt5:
            client.subscribe([(topic, SubscribeOptions(qos=1)) for topic in self._subscriptions])
        else:
            client.subscribe([(topic, 1) for topic in self._subscriptions])

    def _on_subscribe(self, client: paho.Client, _: Any, __: int, codes: Sequence[Any], ___: Any) -> None:
        for topic, code in zip(self._subscriptions, codes, strict=False):
            if code.value >= _REFUSED_FROM:
                self._reason = f"subscription to {topic} refused: {code}"
                client.disconnect()
                return
        self.is_ready = True
        self._sink(Connected(self._session, str(self._broker), self._is_session_present, self._is_mqtt5))

    def _on_disconnect(self, _: paho.Client, __: Any, ___: Any, code: Any, ____: Any) -> None:
        if self._reason == _NO_ANSWER:
            # Closed before any answer: some brokers do so to a version that they do not speak.
            self._is_version_refused = self._is_mqtt5 and not self.is_ready
            self._reason = str(code)
        self._ended.set()

    def _on_message(self, _: paho.Client, __: Any, message: paho.MQTTMessage) -> None:
        try:
            topic = message.topic
        except UnicodeDecodeError:
            _LOG.warning("dropped a message with a topic that is not UTF-8 from %s", self._broker)
            return
        self._sink(Arrived(topic, bytes(message.payload), message.retain))

    def _on_publish(self, _: paho.Client, __: Any, packet: int, code: Any, ___: Any) -> None:
        with self._open_lock:
            self._open_count -= 1
        refused = str(code) if code is not None and code.is_failure else None
        self._sink(Published(Token(self._session, packet), refused))


def _send_at_once(_: paho.Client, __: Any, connection: Any) -> None:
    """A small message must not wait until the broker has acknowledged the last one (Nagle): that costs 40 ms."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _password(path: Path | None) -> str | None:
    if path is None:
        return None
    data = path.read_bytes()[: PASSWORD_BYTES_MAX + 1]
    if len(data) > PASSWORD_BYTES_MAX:
        raise ConfigError(f"{path}: a password has at most {PASSWORD_BYTES_MAX} bytes")
    return data.decode("utf-8").strip()


def _tls_context(broker: BrokerSettings) -> ssl.SSLContext:
    """Verify the broker against its CA; show our own certificate where there is one."""
    context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=broker.ca_file)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if broker.cert_file is not None:
        context.load_cert_chain(broker.cert_file, broker.key_file)
    return context
