"""MQTT topics.

The segment of a device or miner is its name in the broker's access list, so a pattern ACL can hold everybody to their
own.

::

    fl/v1/{task}/up/{shard}/{device}/update    signed UPDATE                         device -> miners
    fl/v1/{task}/up/{shard}/{device}/chunk     Chunk of an update's blob
    fl/v1/{task}/up/{shard}/{device}/fetch     signed FETCH: chunks of a blob wanted
    fl/v1/{task}/up/{shard}/{device}/status    signed STATUS, retained; Last Will
    fl/v1/{task}/down/{device}/receipt         signed RECEIPT                        miner -> device
    fl/v1/{task}/down/{device}/outcome         Outcome, which proves itself
    fl/v1/{task}/down/{device}/resume          signed RESUME
    fl/v1/{task}/down/{device}/chunk           Chunk of a fetched blob
    fl/v1/{task}/down/{device}/cmd             request to the device
    fl/v1/{task}/model/{miner}/current         signed ANNOUNCEMENT, retained
    fl/v1/{task}/miner/{miner}/status          signed STATUS, retained; Last Will
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from edge_sdk.errors import DecodeError, LocalProtocolError
from edge_sdk.protocol.ids import DeviceId, MinerId, TaskId, check_name
from edge_sdk.protocol.limits import NAME_CHARS_MAX, SHARDS_MAX
from edge_sdk.protocol.messages import Reason

_ROOT: Final = "fl/v1"
_TOPIC_CHARS_MAX: Final = 2 * NAME_CHARS_MAX + 64


class Kind(StrEnum):
    """What a topic carries: direction and last segment."""

    UPDATE = "up/update"
    CHUNK = "up/chunk"
    FETCH = "up/fetch"
    STATUS = "up/status"
    RECEIPT = "down/receipt"
    OUTCOME = "down/outcome"
    RESUME = "down/resume"
    DOWN_CHUNK = "down/chunk"
    CMD = "down/cmd"
    CURRENT = "model/current"
    MINER_STATUS = "miner/status"


@dataclass(frozen=True, slots=True)
class Topic:
    """A parsed topic; ``device`` and ``shard``, or ``miner``, as its kind has them."""

    kind: Kind
    task: TaskId
    device: DeviceId | None = None
    miner: MinerId | None = None
    shard: int | None = None


def shard_of(device_id: DeviceId, shards: int) -> int:
    """Shard of a device, in ``0..shards - 1``: the same on every machine.

    Raises:
        LocalProtocolError: not 1 <= shards <= ``SHARDS_MAX``.
    """
    if not 1 <= shards <= SHARDS_MAX:
        raise LocalProtocolError(f"{shards} shards, expected 1..{SHARDS_MAX}")
    return int.from_bytes(hashlib.sha256(device_id.encode()).digest()[:8]) % shards


def update(task: TaskId, shard: int, device: DeviceId) -> str:
    """Topic of a device's manifests."""
    return _up(task, shard, device, "update")


def chunk(task: TaskId, shard: int, device: DeviceId) -> str:
    """Topic of the chunks of a device's updates."""
    return _up(task, shard, device, "chunk")


def fetch(task: TaskId, shard: int, device: DeviceId) -> str:
    """Topic of a device's requests for chunks of a blob."""
    return _up(task, shard, device, "fetch")


def status(task: TaskId, shard: int, device: DeviceId) -> str:
    """Topic of a device's birth and death."""
    return _up(task, shard, device, "status")


def receipt(task: TaskId, device: DeviceId) -> str:
    """Topic of the miners' receipts for a device."""
    return _down(task, device, "receipt")


def outcome(task: TaskId, device: DeviceId) -> str:
    """Topic of the certified outcomes of a device's updates."""
    return _down(task, device, "outcome")


def resume(task: TaskId, device: DeviceId) -> str:
    """Topic of the miners' requests for missing chunks."""
    return _down(task, device, "resume")


def down_chunk(task: TaskId, device: DeviceId) -> str:
    """Topic of the chunks that a device fetches."""
    return _down(task, device, "chunk")


def cmd(task: TaskId, device: DeviceId) -> str:
    """Topic of requests to a device."""
    return _down(task, device, "cmd")


def current(task: TaskId, miner: MinerId) -> str:
    """Topic of a miner's announcement."""
    return f"{_ROOT}/{task}/model/{miner}/current"


def miner_status(task: TaskId, miner: MinerId) -> str:
    """Topic of a miner's birth and death."""
    return f"{_ROOT}/{task}/miner/{miner}/status"


def miner_filters(task: TaskId) -> tuple[str, ...]:
    """Filters that a miner subscribes to: everything from devices, one filter per kind."""
    return tuple(f"{_ROOT}/{task}/up/+/+/{leaf}" for leaf in ("update", "chunk", "fetch", "status"))


def device_filters(task: TaskId, device: DeviceId) -> tuple[str, ...]:
    """Filters that a device subscribes to: everything to it, and every miner's announcement and status."""
    return f"{_ROOT}/{task}/down/{device}/+", f"{_ROOT}/{task}/model/+/current", f"{_ROOT}/{task}/miner/+/status"


def parse(topic: str) -> Topic:
    """Read a topic as a broker delivers it.

    Raises:
        DecodeError: it is none of the contract's.
    """
    if len(topic) > _TOPIC_CHARS_MAX:
        raise _unknown(topic)
    match topic.split("/"):
        case ["fl", "v1", task, "up", shard, device, leaf]:
            return Topic(
                _kind(f"up/{leaf}", topic), _task(task), device=DeviceId(_name(device)), shard=_shard(shard, topic)
            )
        case ["fl", "v1", task, "down", device, leaf]:
            return Topic(_kind(f"down/{leaf}", topic), _task(task), device=DeviceId(_name(device)))
        case ["fl", "v1", task, "model" | "miner" as part, miner, leaf]:
            return Topic(_kind(f"{part}/{leaf}", topic), _task(task), miner=MinerId(_name(miner)))
        case _:
            raise _unknown(topic)


def _up(task: TaskId, shard: int, device: DeviceId, leaf: str) -> str:
    return f"{_ROOT}/{task}/up/{shard}/{device}/{leaf}"


def _down(task: TaskId, device: DeviceId, leaf: str) -> str:
    return f"{_ROOT}/{task}/down/{device}/{leaf}"


def _kind(text: str, topic: str) -> Kind:
    try:
        return Kind(text)
    except ValueError as error:
        raise _unknown(topic) from error


def _task(segment: str) -> TaskId:
    return TaskId(_name(segment))


def _name(segment: str) -> str:
    try:
        return check_name(segment, what="topic segment")
    except DecodeError as error:
        raise DecodeError(str(error), reason=Reason.MALFORMED) from error


def _shard(segment: str, topic: str) -> int:
    if segment.isascii() and segment.isdecimal() and len(segment) <= len(str(SHARDS_MAX)):
        shard = int(segment)
        if shard < SHARDS_MAX and str(shard) == segment:
            return shard
    raise _unknown(topic)


def _unknown(topic: str) -> DecodeError:
    return DecodeError(f"unknown topic {topic[:_TOPIC_CHARS_MAX]!r}", reason=Reason.MALFORMED)
