"""Models over MQTT: one miner answers, the others when it does not; nobody gets what is not public."""

from __future__ import annotations

import hashlib
import threading
import time
from pathlib import Path
from typing import Final

import pytest

from coordinator.application import Application
from coordinator.downlink import ANSWER_BYTES_MAX, PAUSE_S, Downlink, Ranges, Send
from edge_sdk.adapters.http_blobs import HttpBlobs
from edge_sdk.device import downloads
from edge_sdk.errors import RemoteProtocolError
from edge_sdk.protocol.chunks import split
from edge_sdk.protocol.digest import sha256
from edge_sdk.protocol.ids import DeviceId, Digest
from edge_sdk.protocol.messages import Domain, Fetch, Reason
from tests.support.chain import CREATED_S, Names

BLOB: Final = hashlib.shake_256(b"model").digest(3 * ANSWER_BYTES_MAX)
DIGEST: Final = sha256(BLOB)
DEVICE: Final = DeviceId("device-1")


class Miners:
    """The downlinks of all miners of a chain, and what they sent."""

    def __init__(self, send: Send | None = None) -> None:
        self.names = Names()
        self.application = Application(self.names.genesis)
        self.advance(self.names.enrol(DEVICE))
        self.sent: list[tuple[DeviceId, Ranges]] = []
        self.links = [
            Downlink(
                self.names.genesis,
                miner,
                state=lambda: self.application.state,
                public_blob=lambda digest: BLOB if digest == DIGEST else None,
                send=send or self.send,
            )
            for miner in self.names.miners
        ]

    def advance(self, *txs: bytes) -> None:
        height = self.application.state.height + 1
        self.application.commit(self.application.finalize(height, CREATED_S, txs))

    def send(self, device: DeviceId, blob: bytes, digest: Digest, ranges: Ranges) -> int:
        assert (blob, digest) == (BLOB, DIGEST)
        self.sent.append((device, ranges))
        return sum(stop - start for start, stop in ranges)

    def request(
        self, ranges: Ranges, *, digest: Digest = DIGEST, device: str = DEVICE, key: str | None = None
    ) -> bytes:
        fetch = Fetch(device_id=DeviceId(device), blob_digest=digest, ranges=ranges)
        return self.names.sign(fetch, Domain.FETCH, device, key=key)

    def take(self, envelope: bytes, now_s: float) -> list[int]:
        return [link.take(DEVICE, envelope, now_s) for link in self.links]


def test_one_of_four_answers_and_all_when_asked_again() -> None:
    miners = Miners()
    request = miners.request(((0, 1_000), (5_000, 6_000)))
    assert sorted(miners.take(request, 0.0)) == [0, 0, 0, 2_000]
    assert miners.take(request, 3.0) == [2_000] * 4
    assert miners.sent[0] == (DEVICE, ((0, 1_000), (5_000, 6_000)))


def test_an_answer_has_a_bound_and_stays_inside_the_blob() -> None:
    miners = Miners()
    assert sum(miners.take(miners.request(((0, len(BLOB)),)), 0.0)) == ANSWER_BYTES_MAX
    assert sum(miners.take(miners.request(((len(BLOB) - 10, len(BLOB) + 500),)), 1.0)) == 10


def test_a_device_that_asks_too_often_waits() -> None:
    miners = Miners()
    assert sum(miners.take(miners.request(((0, 10),)), 0.0)) == 10
    assert sum(miners.take(miners.request(((10, 20),)), PAUSE_S / 2)) == 0
    assert sum(miners.take(miners.request(((10, 20),)), 1.0)) == 10


@pytest.mark.parametrize("is_dead", [False, True], ids=["all alive", "the responsible miner dead"])
def test_a_device_fetches_a_model_of_several_requests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_dead: bool
) -> None:
    """Both sides of the way: a dead miner costs one pause per request, a living fleet costs none."""
    patience_s = 1.0
    monkeypatch.setattr(downloads, "ASK_AGAIN_S", patience_s)
    asked: list[Ranges] = []

    def send(_: DeviceId, blob: bytes, digest: Digest, ranges: Ranges) -> int:
        for chunk in split(blob, digest, ranges=ranges):
            device.offer_chunk(chunk)
        return sum(stop - start for start, stop in ranges)

    miners = Miners(send)

    def ask(digest: Digest, ranges: Ranges) -> None:
        asked.append(ranges)
        for link in miners.links:
            link.take(DEVICE, miners.request(ranges, digest=digest), time.monotonic())

    device = downloads.Downloads(HttpBlobs(), ask=ask, stopping=threading.Event())
    if is_dead:
        (dead,) = (link for link in miners.links if link.take(DEVICE, miners.request(((0, 1),)), 0.0))
        miners.links.remove(dead)
    start_s = time.monotonic()
    device.fetch([], DIGEST, len(BLOB), tmp_path / "model")
    took_s = time.monotonic() - start_s
    assert (tmp_path / "model").read_bytes() == BLOB
    pieces = [(start, start + ANSWER_BYTES_MAX) for start in range(0, len(BLOB), ANSWER_BYTES_MAX)]
    assert asked == [(piece,) for piece in pieces for _ in range(2 if is_dead else 1)]
    assert took_s >= (len(pieces) * patience_s if is_dead else 0)


def test_an_update_is_not_public() -> None:
    miners = Miners()
    request = miners.request(((0, 10),), digest=sha256(b"an update"))
    assert miners.take(request, 0.0) == miners.take(request, 1.0) == [0] * 4


def test_requests_that_are_refused() -> None:
    miners = Miners()
    requests = {
        Reason.BAD_SIGNATURE: miners.request(((0, 10),), key="device-2"),
        Reason.MALFORMED: b"\xff",
        Reason.OVERSIZE: bytes(100_000),
    }
    for reason, request in requests.items():
        with pytest.raises(RemoteProtocolError) as caught:
            miners.take(request, 0.0)
        assert caught.value.reason is reason
    miners.advance(miners.names.enrol("device-2"))
    with pytest.raises(RemoteProtocolError) as caught:
        miners.links[0].take(DEVICE, miners.request(((0, 10),), device="device-2", key=DEVICE), 0.0)
    assert caught.value.reason is Reason.WRONG_TOPIC
    miners.advance(miners.names.revoke(DEVICE))
    with pytest.raises(RemoteProtocolError) as caught:
        miners.take(miners.request(((0, 10),)), 0.0)
    assert caught.value.reason is Reason.REVOKED_DEVICE
