"""A real device process among miners that lie: it keeps its model, says why, and takes the good one from another.

One device lives through all tests of this module. Each announces the next version falsely, on behalf of one miner;
when the device has said what it thinks of it, another miner announces the true one.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

from coordinator.broker.ports import free_port
from edge_sdk.adapters.mqtt import BrokerSettings, Connected, LinkEvent, Message, MqttLink, Published
from edge_sdk.adapters.system_clock import SystemClock
from edge_sdk.cli import main
from edge_sdk.protocol import topics
from edge_sdk.protocol.digest import sha256
from edge_sdk.protocol.ids import ChainId, Digest, MinerId, TaskId
from edge_sdk.protocol.messages import Announcement, Certificate, Domain, ModelParams
from edge_sdk.protocol.model import model_root
from edge_sdk.protocol.wire import to_bytes
from tests.support.device_process import DeviceProcess, make_model, wait_until
from tests.support.fake_miners import MINERS, TASK, FakeMiners, Keys, Version, make_genesis, running_mosquitto
from tests.support.false_server import FalseServer, Fault

pytestmark = pytest.mark.network

LIAR, HONEST = MINERS[0], MINERS[1]
FLOOD: Final = 1_500
LOG_GROWTH_MAX: Final = 100_000
MEMORY_GROWTH_MIB_MAX: Final = 24


@dataclass
class World:
    """A device, four miners that are honest by themselves, and a server that a test makes lie."""

    miners: FakeMiners
    device: DeviceProcess
    server: FalseServer
    extra_blobs: dict[bytes, bytes]
    """By digest, beside those of the honest miners."""
    broker_port: int

    def installed(self) -> int:
        """Version that the device's own status names."""
        rows = self.device.query("SELECT coalesce(max(version), -1) FROM installs")
        return int(rows[0][0])

    def next_model(self) -> tuple[ModelParams, Certificate]:
        """A model that nobody has seen, with a certificate of the quorum."""
        version = self.miners.version + 1
        tensors = list(self.miners.versions[-1].params.tensors)
        values = np.frombuffer(tensors[0].values, "<i4") + 1
        tensors[0] = replace(tensors[0], values=values.astype("<i4").tobytes())
        params = ModelParams(tensors=tuple(tensors))
        return params, self.miners.chain.certify(version, model_root(params))

    def offer(self, params: ModelParams, certificate: Certificate | None, **changes: Any) -> Announcement:
        """What the liar says of a version; truthful but for the changes."""
        blob = to_bytes(params)
        announcement = Announcement(
            miner_id=LIAR,
            certificate=certificate,
            version=self.miners.version + 1,
            height=1,
            model_digest=sha256(blob),
            model_bytes=len(blob),
            artifact_digest=self.miners.genesis.artifact_digest,
            urls=(self.server.url,),
        )
        return replace(announcement, **changes)

    def announce(self, announcement: Announcement) -> None:
        """Publish in the name of the miner that it names."""
        miner = announcement.miner_id
        self.miners.publish_announcement(
            miner, self.miners.chain.sign(miner, to_bytes(announcement), Domain.ANNOUNCEMENT)
        )

    def until_said(self, words: str, since: int) -> None:
        """Wait for a line of the device's log behind a position."""
        wait_until(lambda: words in self.device.log()[since:], 60, what=words)

    def check_takes_the_good_one(self, params: ModelParams, certificate: Certificate) -> None:
        """The device still runs what it had; an honest miner's announcement is enough to get on."""
        version = self.miners.version
        assert self.installed() == version
        self.miners.versions.append(Version(params, to_bytes(params), certificate))
        self.announce(self.offer(params, certificate, version=version + 1, miner_id=HONEST, urls=(self.miners.url,)))
        wait_until(lambda: self.installed() == version + 1, 60, what=f"version {version + 1}")
        self.server.fault = Fault.NONE


@pytest.fixture(scope="module")
def world(mosquitto_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder, port = tmp_path_factory.mktemp("distrust"), free_port()
    artifact, params = make_model()
    keys = Keys()
    genesis = make_genesis(keys, artifact_digest=artifact.digest, params=params)
    with ExitStack() as stack:
        stack.enter_context(running_mosquitto(mosquitto_path, folder / "broker", port))
        miners = FakeMiners(genesis, keys, params, artifact.data, broker_port=port)
        miners.is_receipting = False  # nothing is learned here: versions are the tests' own
        extra_blobs: dict[bytes, bytes] = {}
        server = FalseServer(lambda digest: extra_blobs.get(digest) or miners._blob(digest))
        # The liar's server is the one that the device's owner has configured: it is asked first for everything.
        device = DeviceProcess(folder / "d1", genesis, broker_port=port, urls=(server.url,))
        stack.enter_context(server.running())
        stack.enter_context(miners.running())
        stack.callback(device.kill)
        device.start()
        world = World(miners, device, server, extra_blobs, port)
        world.until_said("installed version 0", 0)
        yield world


def _restate(certificate: Certificate, **changes: Any) -> Certificate:
    return replace(certificate, statement=replace(certificate.statement, **changes))


def _signed(world: World, certificate: Certificate, signers: tuple[MinerId, ...], **changes: Any) -> Certificate:
    """The same certificate, signed anew."""
    statement = certificate.statement
    expiry_s = changes.get("expiry_s", statement.expiry_s)
    return world.miners.chain.certify(statement.version, statement.model_root, signers=signers, expiry_s=expiry_s)


def _twice(certificate: Certificate) -> Certificate:
    first, second, _ = certificate.signatures
    return replace(certificate, signatures=(first, first, second))


def _under_another_name(certificate: Certificate) -> Certificate:
    first, second, third = certificate.signatures
    return replace(certificate, signatures=(first, second, replace(third, signature=first.signature)))


FORGED: Final[list[tuple[str, Callable[[World, Certificate], Certificate | None]]]] = [
    ("missing", lambda _, __: None),
    ("quorum", lambda world, good: _signed(world, good, MINERS[:2])),
    ("duplicate", lambda _, good: _twice(good)),
    ("signature", lambda _, good: _under_another_name(good)),
    ("signature", lambda _, good: _restate(good, model_root=Digest(bytes(32)))),
    ("chain", lambda _, good: _restate(good, chain_id=ChainId("other-chain"))),
    ("task", lambda _, good: _restate(good, task=TaskId("other-task"))),
    ("miner-set", lambda _, good: _restate(good, miner_set_hash=Digest(bytes(32)))),
    ("version", lambda _, good: _restate(good, version=good.statement.version + 1)),
    ("expired", lambda world, good: _signed(world, good, MINERS[:3], expiry_s=SystemClock().time_s() - 10)),
    ("clock", lambda world, good: _signed(world, good, MINERS[:3], expiry_s=SystemClock().time_s() + 10**8)),
]


def test_no_false_certificate_moves_the_device(world: World) -> None:
    for kind, forge in FORGED:
        params, good = world.next_model()
        since = len(world.device.log())
        world.announce(world.offer(params, forge(world, good)))
        world.until_said(f"model.refused.{kind}: version {world.miners.version + 1} of {LIAR}", since)
    world.check_takes_the_good_one(*world.next_model())


def test_another_artifact_is_refused(world: World) -> None:
    params, good = world.next_model()
    since = len(world.device.log())
    world.announce(world.offer(params, good, artifact_digest=Digest(bytes(32))))
    world.until_said("model.refused.artifact", since)
    world.check_takes_the_good_one(params, good)


def test_an_older_version_is_never_fetched_and_a_false_offer_gives_way(world: World) -> None:
    newest = world.miners.version
    params, good = world.next_model()
    old = world.miners.versions[1]
    world.announce(
        world.offer(old.params, old.certificate, version=1, miner_id=MINERS[2], urls=(world.server.url,)),
    )
    asked = len(world.server.requests)
    since = len(world.device.log())
    # An offer whose bytes nobody has: it is set back, and it does not stand in the way of another miner's.
    world.server.fault = Fault.TAMPERED
    world.extra_blobs[sha256(to_bytes(params))] = to_bytes(params)
    world.announce(world.offer(params, good))
    world.until_said(f"model.failed: version {newest + 1} of {LIAR}: HTTP: {world.server.url}", since)
    # A miner that takes back what it has offered says something that it cannot mean.
    world.announce(world.offer(old.params, old.certificate, version=1))
    world.until_said(f"model.refused.version: version 1 of {LIAR}", since)
    assert sha256(old.blob).hex() not in world.server.requests[asked:]
    world.check_takes_the_good_one(params, good)


@pytest.mark.parametrize("fault", [fault for fault in Fault if fault is not Fault.NONE])
def test_a_server_that_fails_or_lies_is_named_and_another_one_asked(world: World, fault: Fault) -> None:
    """The owner has configured it, so it is asked first, also for the honest offer."""
    params, good = world.next_model()
    world.server.fault = fault
    since = len(world.device.log())
    name = sha256(to_bytes(params)).hex()
    world.check_takes_the_good_one(params, good)
    assert name in world.server.requests
    world.until_said(f"/v1/blobs/sha256/{name} came from {world.miners.url}, not from {world.server.url}", since)


def _false_blobs(params: ModelParams) -> list[tuple[str, bytes]]:
    """Bytes that have the announced digest, beside a certificate that is true."""
    tensors = params.tensors
    changed = replace(tensors[0], values=bytes(len(tensors[0].values)))
    return [
        ("model root is", to_bytes(ModelParams(tensors=(changed, *tensors[1:])))),
        ("model root is", to_bytes(ModelParams(tensors=tensors[:-1]))),
        ("", os.urandom(5_000)),
        ("", to_bytes(params) + b"\0"),
        ("", b"\x5b" + b"\xff" * 8),
    ]


def test_a_blob_that_is_not_the_certified_model_is_not_installed(world: World) -> None:
    params, good = world.next_model()
    for words, blob in _false_blobs(params):
        world.extra_blobs[sha256(blob)] = blob
        since = len(world.device.log())
        world.announce(world.offer(params, good, model_digest=sha256(blob), model_bytes=len(blob)))
        world.until_said(f"model.failed: version {world.miners.version + 1} of {LIAR}: {words}", since)
    world.check_takes_the_good_one(params, good)


@pytest.mark.slow  # what HTTP does not bring is asked for in MQTT chunks, with patience
@pytest.mark.parametrize(("factor", "words"), [(0.5, "sends more than"), (2.0, "truncated after")])
def test_an_announced_size_that_is_false_is_found(world: World, factor: float, words: str) -> None:
    params, good = world.next_model()
    blob = to_bytes(params)
    world.extra_blobs[sha256(blob)] = blob
    since = len(world.device.log())
    world.announce(world.offer(params, good, model_bytes=round(factor * len(blob))))
    world.until_said(words, since)
    world.check_takes_the_good_one(params, good)


def test_who_announces_in_anothers_name_or_without_a_name_is_not_heard(world: World) -> None:
    params, good = world.next_model()
    announcement = world.offer(params, good)
    true = world.miners.chain.sign(LIAR, to_bytes(announcement), Domain.ANNOUNCEMENT)
    other_domain = world.miners.chain.sign(LIAR, to_bytes(announcement), Domain.STATUS)
    for reason, topic_of, envelope in (
        ("wrong_topic", HONEST, true),
        ("bad_signature", LIAR, true[:-1] + bytes([true[-1] ^ 1])),
        ("bad_signature", LIAR, other_domain),
        ("malformed", LIAR, true[:-1]),
    ):
        since = len(world.device.log())
        world.miners.publish_announcement(topic_of, envelope)
        world.until_said(f"message.refused.{reason}", since)
    world.check_takes_the_good_one(params, good)


def test_a_flood_of_announcements_fills_neither_memory_nor_log(world: World) -> None:
    params, good = world.next_model()
    since, rss_mib = len(world.device.log()), world.device.rss_mib()
    true = world.miners.chain.sign(LIAR, to_bytes(world.offer(params, good)), Domain.ANNOUNCEMENT)
    noise = [b"", b"\x81" * 900, b"\x5b\x7f" + b"\xff" * 7, true[:-1], true + b"\0", os.urandom(20_000)]
    _flood(world, topics.current(TASK, LIAR), (noise[number % len(noise)] for number in range(FLOOD)))
    world.check_takes_the_good_one(params, good)
    assert world.device.rss_mib() - rss_mib < MEMORY_GROWTH_MIB_MAX
    assert len(world.device.log()) - since < LOG_GROWTH_MAX


def _flood(world: World, topic: str, payloads: Iterable[bytes]) -> None:
    """Publish as fast as the broker answers."""
    slots, connected = threading.Semaphore(0), threading.Event()

    def sink(event: LinkEvent) -> None:
        if isinstance(event, Connected):
            connected.set()
            slots.release(10)
        elif isinstance(event, Published):
            slots.release()

    broker = BrokerSettings(host="127.0.0.1", port=world.broker_port)
    link = MqttLink(client_id="flood", brokers=[broker], subscriptions=["none"], will_of=lambda _: None, sink=sink)
    link.start()
    try:
        assert connected.wait(30)
        for payload in payloads:
            assert slots.acquire(timeout=30)
            link.publish(Message(topic, payload))
    finally:
        link.stop()


def test_status_and_doctor_tell_the_owner(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--config", str(world.device.config)]) == 0
    status = json.loads(capsys.readouterr().out)
    assert status["model"]["version"] == world.miners.version
    world.server.fault = Fault.BROKEN
    main(["doctor", "--config", str(world.device.config)])
    text = capsys.readouterr().out
    assert f"warn  miner: {world.server.url}" in text or f"{world.server.url}: " in text
    world.server.fault = Fault.NONE
    assert world.device.terminate() == 0
