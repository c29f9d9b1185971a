"""Topics: one builder and one parser, and nothing that a broker could deliver beside them."""

import pytest

from edge_sdk.errors import DecodeError, LocalProtocolError
from edge_sdk.protocol import topics
from edge_sdk.protocol.ids import DeviceId, MinerId, TaskId
from edge_sdk.protocol.topics import Kind, Topic

TASK, DEVICE, MINER = TaskId("digits"), DeviceId("rpi-17"), MinerId("miner-0")
BUILT = [
    (topics.update(TASK, 3, DEVICE), "fl/v1/digits/up/3/rpi-17/update", Topic(Kind.UPDATE, TASK, DEVICE, shard=3)),
    (topics.chunk(TASK, 0, DEVICE), "fl/v1/digits/up/0/rpi-17/chunk", Topic(Kind.CHUNK, TASK, DEVICE, shard=0)),
    (topics.fetch(TASK, 0, DEVICE), "fl/v1/digits/up/0/rpi-17/fetch", Topic(Kind.FETCH, TASK, DEVICE, shard=0)),
    (
        topics.status(TASK, 1023, DEVICE),
        "fl/v1/digits/up/1023/rpi-17/status",
        Topic(Kind.STATUS, TASK, DEVICE, shard=1023),
    ),
    (topics.receipt(TASK, DEVICE), "fl/v1/digits/down/rpi-17/receipt", Topic(Kind.RECEIPT, TASK, DEVICE)),
    (topics.outcome(TASK, DEVICE), "fl/v1/digits/down/rpi-17/outcome", Topic(Kind.OUTCOME, TASK, DEVICE)),
    (topics.resume(TASK, DEVICE), "fl/v1/digits/down/rpi-17/resume", Topic(Kind.RESUME, TASK, DEVICE)),
    (topics.down_chunk(TASK, DEVICE), "fl/v1/digits/down/rpi-17/chunk", Topic(Kind.DOWN_CHUNK, TASK, DEVICE)),
    (topics.cmd(TASK, DEVICE), "fl/v1/digits/down/rpi-17/cmd", Topic(Kind.CMD, TASK, DEVICE)),
    (topics.current(TASK, MINER), "fl/v1/digits/model/miner-0/current", Topic(Kind.CURRENT, TASK, miner=MINER)),
    (
        topics.miner_status(TASK, MINER),
        "fl/v1/digits/miner/miner-0/status",
        Topic(Kind.MINER_STATUS, TASK, miner=MINER),
    ),
]


@pytest.mark.parametrize(("built", "text", "parsed"), BUILT, ids=[text for _, text, _ in BUILT])
def test_built_and_parsed(built: str, text: str, parsed: Topic) -> None:
    assert built == text
    assert topics.parse(text) == parsed


def test_every_kind_has_a_builder() -> None:
    assert {topics.parse(text).kind for _, text, _ in BUILT} == set(Kind)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "fl/v1",
        "fl/v2/digits/down/rpi-17/cmd",
        "/fl/v1/digits/down/rpi-17/cmd",
        "fl/v1/digits/down/rpi-17/cmd/",
        "fl/v1/digits/down/rpi-17/update",
        "fl/v1/digits/down/rpi-17/status",
        "fl/v1/digits/up/0/rpi-17/receipt",
        "fl/v1/digits/up/rpi-17/update",
        "fl/v1/digits/up/00/rpi-17/update",
        "fl/v1/digits/up/-1/rpi-17/update",
        "fl/v1/digits/up/1024/rpi-17/update",
        "fl/v1/digits/up/٣/rpi-17/update",
        "fl/v1/digits/up/0/rpi_17/update",
        "fl/v1/digits/up/0/+/update",
        "fl/v1/digits/up/0/#",
        "fl/v1/Digits/up/0/rpi-17/update",
        "fl/v1/digits/model/miner-0/status",
        "fl/v1/digits/miner/miner-0/current",
        "fl/v1/digits/model//current",
        "fl/v1/digits/down/rpi-17/cmd" + "x" * 1000,
    ],
)
def test_other_topics_are_refused(text: str) -> None:
    with pytest.raises(DecodeError):
        topics.parse(text)


def test_filters_cover_exactly_the_own_direction() -> None:
    def matches(pattern: str, topic: str) -> bool:
        parts = zip(pattern.split("/"), topic.split("/"), strict=False)
        return pattern.count("/") == topic.count("/") and all(p in ("+", t) for p, t in parts)

    for _, text, parsed in BUILT:
        upward = parsed.shard is not None
        assert any(matches(pattern, text) for pattern in topics.miner_filters(TASK)) is upward
        assert any(matches(pattern, text) for pattern in topics.device_filters(TASK, DEVICE)) is not upward
        stranger = text.replace("/down/rpi-17/", "/down/rpi-18/")
        assert any(matches(pattern, stranger) for pattern in topics.device_filters(TASK, DEVICE)) is (
            parsed.miner is not None
        )


def test_shards_spread_devices() -> None:
    counts = [0] * 8
    for number in range(800):
        counts[topics.shard_of(DeviceId(f"rpi-{number}"), 8)] += 1
    assert min(counts) > 70
    for shards in (0, 1025):
        with pytest.raises(LocalProtocolError):
            topics.shard_of(DEVICE, shards)
