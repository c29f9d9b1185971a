"""Models over MQTT: one miner answers, the others when it does not; nobody gets what is not public."""

from __future__ import annotations

from typing import Final

import pytest

from coordinator.application import Application
from coordinator.downlink import ANSWER_BYTES_MAX, PAUSE_S, Downlink, Ranges
from edge_sdk.errors import RemoteProtocolError
from edge_sdk.protocol.digest import sha256
from edge_sdk.protocol.ids import DeviceId, Digest
from edge_sdk.protocol.messages import Domain, Fetch, Reason
from tests.support.chain import CREATED_S, Names

BLOB: Final = bytes(3 * ANSWER_BYTES_MAX)
DIGEST: Final = sha256(BLOB)
DEVICE: Final = DeviceId("device-1")


class Miners:
    """The downlinks of all miners of a chain, and what they sent."""

    def __init__(self) -> None:
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
                send=self.send,
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
