"""Models over MQTT, for boards that can open no other port: signed requests in, chunks of a blob out.

A request reaches all miners and names none. One of them is responsible for a device and a blob and answers the first
request; when the same ranges are asked for again the others answer too, so that a dead miner costs one pause and a
living fleet sends every byte once.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from coordinator.ledger.state import State
from edge_sdk.errors import RemoteProtocolError
from edge_sdk.protocol import cose, wire
from edge_sdk.protocol.ids import DeviceId, Digest, MinerId
from edge_sdk.protocol.limits import CHUNK_DATA_BYTES_MAX, UPDATE_ENVELOPE_BYTES_MAX
from edge_sdk.protocol.messages import Domain, Fetch, Genesis, Reason

ANSWER_BYTES_MAX: Final = 16 * CHUNK_DATA_BYTES_MAX
"""Of one request; the device asks again for the rest."""
PAUSE_S: Final = 0.05
"""A device that asks more often is not answered: its link is no faster."""
REQUESTS_REMEMBERED: Final = 1_024
FETCH_BYTES_MAX: Final = 2 * UPDATE_ENVELOPE_BYTES_MAX

Ranges = tuple[tuple[int, int], ...]
Send = Callable[[DeviceId, bytes, Digest, Ranges], int]


class Downlink:
    """Answers requests for blobs that everybody may have: models and the artifact."""

    def __init__(
        self,
        genesis: Genesis,
        miner_id: MinerId,
        *,
        state: Callable[[], State],
        public_blob: Callable[[Digest], bytes | None],
        send: Send,
    ) -> None:
        """Take a look at the registry, at the blobs that may leave, and the way to devices."""
        self._genesis = genesis
        self._state = state
        self._public_blob = public_blob
        self._send = send
        self._place = sorted(miner.miner_id for miner in genesis.miners).index(miner_id)
        self._last: OrderedDict[DeviceId, tuple[float, Fetch]] = OrderedDict()

    def take(self, device_id: DeviceId, envelope: bytes, now_s: float) -> int:
        """Answer a request.

        Args:
            device_id: Of the topic.
            envelope: Untrusted bytes.
            now_s: Monotonic time.

        Returns:
            Bytes of the blob that were sent, 0 where another miner is to answer or there is nothing to send.

        Raises:
            RemoteProtocolError: not a request of this device; ``reason`` says why.
        """
        fetch = self._open(device_id, envelope)
        then = self._last.get(device_id)
        if then is not None and now_s - then[0] < PAUSE_S:
            return 0
        self._last[device_id] = (now_s, fetch)
        self._last.move_to_end(device_id)
        if len(self._last) > REQUESTS_REMEMBERED:
            self._last.popitem(last=False)
        is_repeated = then is not None and then[1] == fetch
        if not is_repeated and not self._is_responsible(fetch):
            return 0
        blob = self._public_blob(fetch.blob_digest)
        if blob is None:
            return 0
        return self._send(device_id, blob, fetch.blob_digest, _bounded(fetch.ranges, len(blob)))

    def _open(self, device_id: DeviceId, envelope: bytes) -> Fetch:
        parts = cose.peek(envelope, bytes_max=FETCH_BYTES_MAX)
        record = self._state().registry.get(device_id)
        if record is None:
            raise RemoteProtocolError(f"{device_id} is not enrolled", reason=Reason.UNKNOWN_DEVICE)
        if record.revoked:
            raise RemoteProtocolError(f"{device_id} is revoked", reason=Reason.REVOKED_DEVICE)
        payload = cose.verify(parts, key=record.key, domain=Domain.FETCH, chain_id=self._genesis.chain_id)
        fetch = wire.from_bytes(Fetch, payload)
        if not device_id == parts.sender == fetch.device_id:
            raise RemoteProtocolError(f"request of {parts.sender} on a topic of {device_id}", reason=Reason.WRONG_TOPIC)
        return fetch

    def _is_responsible(self, fetch: Fetch) -> bool:
        digest = hashlib.sha256(fetch.device_id.encode() + fetch.blob_digest).digest()
        return int.from_bytes(digest[:8]) % len(self._genesis.miners) == self._place


def _bounded(ranges: Ranges, blob_bytes: int) -> Ranges:
    """The first ``ANSWER_BYTES_MAX`` bytes of what was asked for, inside the blob."""
    left, taken = ANSWER_BYTES_MAX, []
    for start, stop in ranges:
        end = min(stop, blob_bytes, start + left)
        if start < end:
            taken.append((start, end))
            left -= end - start
    return tuple(taken)
