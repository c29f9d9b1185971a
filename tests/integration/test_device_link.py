"""The MQTT link against real brokers: session, fallback, limits, will, reconnect."""

import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import pytest

from edge_sdk.adapters.mqtt import (
    PACKET_BYTES_MAX,
    Arrived,
    BrokerSettings,
    Connected,
    Disconnected,
    LinkEvent,
    Message,
    MqttLink,
    Published,
)
from edge_sdk.errors import TransportError
from tests.support.fake_miners import running_mosquitto

pytestmark = pytest.mark.network

E = TypeVar("E", bound=LinkEvent)


class Listener:
    """A link and its events."""

    def __init__(
        self, name: str, port: int, *, subscriptions: tuple[str, ...] = ("a/+",), is_mqtt5: bool = True
    ) -> None:
        self.events: queue.SimpleQueue[LinkEvent] = queue.SimpleQueue()
        self.link = MqttLink(
            client_id=name,
            brokers=[
                BrokerSettings(host="127.0.0.1", port=1),  # nobody there: the second is tried
                BrokerSettings(host="127.0.0.1", port=port, is_mqtt5_tried=is_mqtt5),
            ],
            subscriptions=subscriptions,
            will_of=lambda session: Message("a/will", b"%d" % session, retain=False),
            sink=self.events.put,
            first_session=100,
        )

    @contextmanager
    def running(self) -> Iterator["Listener"]:
        self.link.start()
        try:
            yield self
        finally:
            self.link.stop()

    def next(self, kind: type[E], *, timeout_s: float = 15.0) -> E:
        deadline_s = time.monotonic() + timeout_s
        while True:
            event = self.events.get(timeout=max(0.01, deadline_s - time.monotonic()))
            if isinstance(event, kind):
                return event


@pytest.fixture
def broker(mosquitto_path: Path, tmp_path: Path, free_tcp_port: int) -> Iterator[tuple[int, Callable[[], None]]]:
    with running_mosquitto(mosquitto_path, tmp_path / "broker", free_tcp_port) as restart:
        yield free_tcp_port, restart


@pytest.mark.parametrize("is_mqtt5", [True, False])
def test_publish_and_receive(broker: tuple[int, Callable[[], None]], *, is_mqtt5: bool) -> None:
    with Listener("one", broker[0], is_mqtt5=is_mqtt5).running() as one:
        connected = one.next(Connected)
        assert connected.is_mqtt5 is is_mqtt5
        assert connected.session > 100  # the first attempt, at the dead broker, had number 100
        token = one.link.publish(Message("a/x", b"hello"))
        assert one.next(Published).token == token
    with Listener("one", broker[0], is_mqtt5=is_mqtt5).running() as again:
        assert again.next(Connected).is_session_present


def test_durable_session_keeps_messages_while_away(broker: tuple[int, Callable[[], None]]) -> None:
    with Listener("one", broker[0]).running() as one:
        one.next(Connected)
    with Listener("two", broker[0]).running() as two:
        two.next(Connected)
        two.link.publish(Message("a/x", b"while away"))
        two.next(Published)
        with Listener("one", broker[0]).running() as one:
            assert one.next(Arrived).payload == b"while away"


def test_broker_restart_reconnects_with_a_higher_session(broker: tuple[int, Callable[[], None]]) -> None:
    port, restart = broker
    with Listener("one", port).running() as one:
        first = one.next(Connected)
        restart()
        one.next(Disconnected)
        with pytest.raises(TransportError, match="not connected"):
            one.link.publish(Message("a/x", b""))
        second = one.next(Connected)
        assert second.session > first.session


def test_oversize_packet_is_refused_before_it_harms_the_session(broker: tuple[int, Callable[[], None]]) -> None:
    with Listener("one", broker[0]).running() as one:
        one.next(Connected)
        with pytest.raises(TransportError, match="at most"):
            one.link.publish(Message("a/x", bytes(PACKET_BYTES_MAX)))
        one.link.publish(Message("a/x", b"small"))
        assert one.next(Arrived).payload == b"small"


CLIENT = """
import sys, threading
from edge_sdk.adapters.mqtt import BrokerSettings, Connected, Message, MqttLink
link = MqttLink(
    client_id="one",
    brokers=[BrokerSettings(host="127.0.0.1", port=int(sys.argv[1]))],
    subscriptions=["b/+"],
    will_of=lambda session: Message("a/will", b"%d" % session),
    sink=lambda event: print(event.session, flush=True) if isinstance(event, Connected) else None,
    first_session=7,
)
link.start()
threading.Event().wait()
"""


def test_will_tells_of_a_death_but_not_of_a_goodbye(broker: tuple[int, Callable[[], None]]) -> None:
    with Listener("watcher", broker[0]).running() as watcher:
        watcher.next(Connected)
        with Listener("one", broker[0], subscriptions=("b/+",)).running() as one:
            one.next(Connected)
        command = [sys.executable, "-c", CLIENT, str(broker[0])]
        with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"7\n"
            process.kill()
        assert watcher.next(Arrived).payload == b"7"


def test_stop_leaves_no_thread(broker: tuple[int, Callable[[], None]]) -> None:
    before = threading.active_count()
    with Listener("one", broker[0]).running() as one:
        one.next(Connected)
        assert threading.active_count() > before
    deadline_s = time.monotonic() + 5
    while threading.active_count() > before:
        assert time.monotonic() < deadline_s
        time.sleep(0.01)
