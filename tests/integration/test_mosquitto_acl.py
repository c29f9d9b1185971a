"""The documented production set-up against a real mosquitto: mutual TLS (Ed25519), access list, revocation.

MQTT 5 is used because its acknowledgements say *Not authorized* where 3.1.1 pretends success.
"""

from __future__ import annotations

import getpass
import queue
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import paho.mqtt.client as mqtt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import NameOID
from paho.mqtt.enums import CallbackAPIVersion

from coordinator.broker.access import access_list
from coordinator.broker.child import BrokerProcess
from coordinator.broker.mosquitto import TlsFiles, prepare, production_config
from coordinator.broker.ports import free_port
from coordinator.enrolment.access import BrokerAccess
from coordinator.enrolment.authority import Authority, miner_user, private_pem, read_request
from coordinator.enrolment.claims import ClaimStore
from edge_sdk.adapters.system_clock import SystemClock
from edge_sdk.protocol import topics
from edge_sdk.protocol.ids import DeviceId, MinerId, TaskId
from edge_sdk.protocol.limits import CHUNK_MESSAGE_BYTES_MAX

if TYPE_CHECKING:
    from paho.mqtt.properties import Properties
    from paho.mqtt.reasoncodes import ReasonCode

pytestmark = pytest.mark.network

TASK = TaskId("digits")
MINERS = (MinerId("m0"), MinerId("m1"))
WAIT_S = 5.0
SILENCE_S = 0.3


@dataclass
class Site:
    """A broker with the authority and the store that it obeys."""

    folder: Path
    port: int
    authority: Authority
    store: ClaimStore
    access: BrokerAccess
    broker: BrokerProcess
    now_s: int


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, mosquitto_path: Path) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    now_s = SystemClock().time_s()
    port = free_port()
    authority = Authority.create(name="test fleet", now_s=now_s)
    key = ed25519.Ed25519PrivateKey.generate()
    files = {
        "ca.pem": authority.certificate_pem,
        "broker.pem": authority.issue_server(["localhost", "127.0.0.1"], key.public_key(), now_s=now_s).pem,
        "broker-key.pem": private_pem(key),
        "crl.pem": authority.revocation_list((), now_s=now_s),
        "acl": access_list(TASK, MINERS).encode(),
    }
    for name, data in files.items():
        (folder / name).write_bytes(data)
    config = production_config(
        host="127.0.0.1",
        port=port,
        tls=TlsFiles(
            ca_file=folder / "ca.pem",
            cert_file=folder / "broker.pem",
            key_file=folder / "broker-key.pem",
            crl_file=folder / "crl.pem",
        ),
        acl_file=folder / "acl",
        data_dir=folder,
        pid_file=folder / "mosquitto.pid",
        run_as=getpass.getuser(),
    )
    store = ClaimStore.open(folder / "claims.sqlite3")
    access = BrokerAccess(
        authority,
        store,
        task=TASK,
        miners=MINERS,
        crl_file=folder / "crl.pem",
        acl_file=folder / "acl",
        broker_pid_file=folder / "mosquitto.pid",
    )
    broker = prepare(config, work_dir=folder, port=port)
    broker.start()
    yield Site(folder, port, authority, store, access, broker, now_s)
    broker.stop()
    store.close()


def make_request(name: str, key: Any) -> bytes:
    builder = x509.CertificateSigningRequestBuilder().subject_name(
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    )
    digest = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return builder.sign(key, digest).public_bytes(serialization.Encoding.PEM)


def write_identity(site: Site, name: str, certificate: bytes, key: Any) -> None:
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (site.folder / f"{name}.key").write_bytes(pem)
    (site.folder / f"{name}.crt").write_bytes(certificate)


def enrol(site: Site, name: str, key: Any = None) -> None:
    """A device with a certificate from the claim that was made for it."""
    key = key or ed25519.Ed25519PrivateKey.generate()
    request = read_request(make_request(name, key))
    token = site.store.issue_claim(DeviceId(name), now_s=site.now_s, ttl_s=60)
    member = site.store.redeem(
        token,
        request,
        issue=lambda: site.authority.issue_device(request, now_s=site.now_s, days=1),
        now_s=site.now_s,
    )
    write_identity(site, name, member.certificate_pem, key)


class Client:
    """A paho client over mutual TLS that waits for every acknowledgement."""

    def __init__(self, site: Site, name: str | None, *, client_id: str = "") -> None:
        self.received: queue.Queue[tuple[str, bytes]] = queue.Queue()
        self._events: queue.Queue[tuple[str, Any]] = queue.Queue()
        self._client = mqtt.Client(
            CallbackAPIVersion.VERSION2, client_id=client_id, protocol=mqtt.MQTTv5, reconnect_on_failure=False
        )
        context = ssl.create_default_context(cafile=site.folder / "ca.pem")
        if name is not None:
            context.load_cert_chain(site.folder / f"{name}.crt", site.folder / f"{name}.key")
        self._client.tls_set_context(context)
        self._client.on_connect = self._on_connect
        self._client.on_disconnect = self._on_disconnect
        self._client.on_publish = self._on_publish
        self._client.on_subscribe = self._on_subscribe
        self._client.on_message = self._on_message
        self._port = site.port

    def connect(self) -> bool:
        """Whether the broker lets us in; a refused certificate shows as a broken connection."""
        with suppress(ssl.SSLError, ConnectionError):
            self._client.connect("127.0.0.1", self._port)
            self._client.loop_start()
            return self._is_granted("connect")
        return False

    def publish(self, topic: str, data: bytes = b"x", *, retain: bool = False) -> bool:
        """Whether the broker accepts a message; it may also hang up."""
        self._client.publish(topic, data, qos=1, retain=retain)
        return self._is_granted("publish")

    def subscribe(self, topic_filter: str) -> bool:
        """Whether the broker accepts a subscription."""
        self._client.subscribe(topic_filter, qos=1)
        return self._is_granted("subscribe")

    def messages(self) -> list[tuple[str, bytes]]:
        """What arrives until nothing has for a while."""
        found = []
        with suppress(queue.Empty):
            while True:
                found.append(self.received.get(timeout=SILENCE_S))
        return found

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def _is_granted(self, kind: str) -> bool:
        found, code = self._events.get(timeout=WAIT_S)
        return found == kind and not code.is_failure

    def _on_connect(self, _c: Any, _u: Any, _f: Any, code: ReasonCode, _p: Properties | None) -> None:
        self._events.put(("connect", code))

    def _on_disconnect(self, _c: Any, _u: Any, _f: Any, code: ReasonCode, _p: Properties | None) -> None:
        self._events.put(("disconnect", code))

    def _on_publish(self, _c: Any, _u: Any, _mid: int, code: ReasonCode, _p: Properties) -> None:
        self._events.put(("publish", code))

    def _on_subscribe(self, _c: Any, _u: Any, _mid: int, codes: list[ReasonCode], _p: Properties | None) -> None:
        self._events.put(("subscribe", codes[0]))

    def _on_message(self, _c: Any, _u: Any, message: mqtt.MQTTMessage) -> None:
        self.received.put((message.topic, bytes(message.payload)))


Open = Callable[..., Client]


@pytest.fixture
def open_client(site: Site) -> Iterator[Open]:
    """Connected clients that are closed at the end."""
    clients: list[Client] = []

    def open_one(name: str, *, client_id: str = "") -> Client:
        client = Client(site, name, client_id=client_id)
        clients.append(client)
        assert client.connect(), name
        return client

    yield open_one
    for client in clients:
        client.close()


@pytest.fixture
def miner(site: Site, open_client: Open) -> Client:
    key = ed25519.Ed25519PrivateKey.generate()
    issued = site.authority.issue_miner(MINERS[0], key.public_key(), now_s=site.now_s)
    write_identity(site, "m0", issued.pem, key)
    return open_client("m0")


def test_device_reaches_the_miner_and_back(site: Site, open_client: Open, miner: Client) -> None:
    enrol(site, "d1")
    device = open_client("d1")
    for topic_filter in topics.miner_filters(TASK):
        assert miner.subscribe(topic_filter)
    for topic_filter in topics.device_filters(TASK, DeviceId("d1")):
        assert device.subscribe(topic_filter)
    assert device.publish(topics.update(TASK, 3, DeviceId("d1")), b"manifest")
    assert device.publish(topics.chunk(TASK, 3, DeviceId("d1")), bytes(CHUNK_MESSAGE_BYTES_MAX))
    assert [len(data) for _, data in miner.messages()] == [8, CHUNK_MESSAGE_BYTES_MAX]
    assert miner.publish(topics.receipt(TASK, DeviceId("d1")), b"receipt")
    assert miner.publish(topics.current(TASK, MINERS[0]), b"announcement", retain=True)
    assert [data for _, data in device.messages()] == [b"receipt", b"announcement"]


def test_device_cannot_write_outside_its_branch(site: Site, open_client: Open) -> None:
    enrol(site, "d2")
    device = open_client("d2")
    other = DeviceId("d3")
    for topic in (
        topics.update(TASK, 0, other),
        topics.chunk(TASK, 0, other),
        topics.status(TASK, 0, other),
        topics.receipt(TASK, DeviceId("d2")),
        topics.receipt(TASK, other),
        topics.current(TASK, MINERS[0]),
        topics.miner_status(TASK, MINERS[0]),
        topics.update(TaskId("another-task"), 0, DeviceId("d2")),
        f"fl/v1/{TASK}/up/0/d2/update/deeper",
        "anything/else",
    ):
        assert not device.publish(topic), topic
    assert device.publish(topics.update(TASK, 0, DeviceId("d2")))


def test_device_does_not_hear_another(site: Site, open_client: Open, miner: Client) -> None:
    enrol(site, "d4")
    spy = open_client("d4")
    # A wildcard may be granted by the broker; what counts is that nothing is delivered.
    for topic_filter in ("#", f"fl/v1/{TASK}/down/#", f"fl/v1/{TASK}/up/#", topics.receipt(TASK, DeviceId("d1"))):
        spy.subscribe(topic_filter)
    assert miner.publish(topics.receipt(TASK, DeviceId("d1")), b"for d1")
    assert miner.publish(topics.receipt(TASK, DeviceId("d4")), b"for d4")
    assert {data for topic, data in spy.messages() if "/down/" in topic} == {b"for d4"}


def test_client_id_does_not_lend_a_name(site: Site, open_client: Open) -> None:
    enrol(site, "d5")
    device = open_client("d5", client_id="d1")
    assert not device.publish(topics.update(TASK, 0, DeviceId("d1")))


def test_miner_writes_its_own_model_topic_only(miner: Client) -> None:
    assert miner.publish(topics.current(TASK, MINERS[0]))
    assert miner.publish(topics.miner_status(TASK, MINERS[0]))
    assert not miner.publish(topics.current(TASK, MINERS[1]))
    assert not miner.publish(topics.miner_status(TASK, MINERS[1]))
    assert not miner.publish(topics.update(TASK, 0, DeviceId("d1")))


def test_device_named_like_a_miner_is_only_a_device(site: Site, open_client: Open) -> None:
    enrol(site, "m1")  # its certificate says m1, a miner's says miner.m1
    device = open_client("m1")
    assert not device.publish(topics.current(TASK, MINERS[1]))
    assert not device.publish(topics.receipt(TASK, DeviceId("d1")))
    assert miner_user(MINERS[1]) != "m1"


def test_p256_device_gets_in(site: Site, open_client: Open) -> None:
    enrol(site, "d6", ec.generate_private_key(ec.SECP256R1()))
    assert open_client("d6").publish(topics.update(TASK, 0, DeviceId("d6")))


def test_no_certificate_or_a_strangers_is_refused(site: Site) -> None:
    assert not Client(site, None).connect()
    stranger = Authority.create(name="test fleet", now_s=site.now_s)
    key = ed25519.Ed25519PrivateKey.generate()
    request = read_request(make_request("d7", key))
    write_identity(site, "d7", stranger.issue_device(request, now_s=site.now_s, days=1).pem, key)
    assert not Client(site, "d7").connect()


def test_oversize_packet_ends_the_connection(site: Site, open_client: Open, miner: Client) -> None:
    enrol(site, "d8")
    device = open_client("d8")
    assert miner.subscribe(topics.miner_filters(TASK)[1])
    assert not device.publish(topics.chunk(TASK, 0, DeviceId("d8")), bytes(4 * CHUNK_MESSAGE_BYTES_MAX))
    assert miner.messages() == []


def test_revoked_device_is_shut_out(site: Site, open_client: Open, miner: Client) -> None:
    enrol(site, "d9")
    enrol(site, "d10")
    open_session, neighbour = open_client("d9"), open_client("d10")
    assert miner.subscribe(topics.miner_filters(TASK)[0])
    assert open_session.publish(topics.update(TASK, 0, DeviceId("d9")))
    assert miner.messages() == [(topics.update(TASK, 0, DeviceId("d9")), b"x")]

    site.store.revoke(DeviceId("d9"), now_s=site.now_s)
    assert site.access.refresh(now_s=site.now_s), "mosquitto was not asked to reload"
    deadline = time.monotonic() + WAIT_S
    while Client(site, "d9").connect():
        assert time.monotonic() < deadline, "a revoked certificate still opens a connection"
        time.sleep(0.05)

    assert not open_session.publish(topics.update(TASK, 0, DeviceId("d9"))), "an open session still writes"
    assert miner.messages() == []
    assert neighbour.publish(topics.update(TASK, 0, DeviceId("d10")))
    assert len(miner.messages()) == 1


def test_device_comes_back_with_a_new_claim(site: Site, open_client: Open) -> None:
    enrol(site, "d11")
    site.store.revoke(DeviceId("d11"), now_s=site.now_s)
    assert site.access.refresh(now_s=site.now_s)
    enrol(site, "d11")
    assert site.access.refresh(now_s=site.now_s)
    time.sleep(SILENCE_S)
    assert open_client("d11").publish(topics.update(TASK, 0, DeviceId("d11")))
