"""Time Flower's server on fp32 updates. Runs in an environment of its own and imports nothing of ours.

Usage: python flower_peer.py PARAMETERS UPDATES; each line on standard input runs one round and prints one JSON line,
[wall, processor] milliseconds per update for each of three ways, all from bytes as they come off the wire, transport
left out:

- ``recorddict``: parse the RecordDict message, aggregate. The least that Flower's own functions can do it with.
- ``grid``: what a ServerApp does with a reply: parse the pulled objects, inflate them (``HttpGrid.pull_messages``),
  aggregate.
- ``server``: the same, and before it the check of content against SHA-256 with which the SuperLink stores an object.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

import flwr
import numpy as np
from flwr.common import ArrayRecord, MetricRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.message_pb2 import PullObjectResponse
from flwr.proto.recorddict_pb2 import RecordDict as RecordDictMessage
from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_id
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents, validate_object_content

WEIGHT: Final = "num-examples"
WARM_UP_ROUNDS: Final = 2

Objects: TypeAlias = tuple[str, dict[str, bytes]]
"""Identifier of the reply's content, and every object of it as a pull response."""


def make_record(parameters: int, seed: int) -> RecordDict:
    """One client's reply, fp32, shape (parameters,)."""
    values = np.random.default_rng(seed).normal(size=parameters).astype(np.float32)
    return RecordDict({"arrays": ArrayRecord([values]), "metrics": MetricRecord({WEIGHT: 10 + seed})})


def as_message(record: RecordDict) -> bytes:
    """The reply as one message."""
    message: bytes = recorddict_to_proto(record).SerializeToString()
    return message


def as_objects(record: RecordDict) -> Objects:
    """The reply as the objects that a ServerApp pulls."""
    objects = {
        name: PullObjectResponse(
            object_found=True, object_available=True, object_content=part.deflate()
        ).SerializeToString()
        for name, part in get_all_nested_objects(record).items()
    }
    return record.object_id, objects


def run_recorddict(messages: Sequence[bytes]) -> None:
    """Parse and aggregate."""
    records = [recorddict_from_proto(RecordDictMessage.FromString(message)) for message in messages]
    aggregate_arrayrecords(records, WEIGHT)


def run_grid(replies: Sequence[Objects], *, is_checked: bool = False) -> None:
    """Parse, check if asked for, inflate and aggregate."""
    records = []
    for identifier, responses in replies:
        contents = {name: PullObjectResponse.FromString(data).object_content for name, data in responses.items()}
        if is_checked:
            for name, content in contents.items():
                assert get_object_id(content) == name
                validate_object_content(content)
        records.append(inflate_object_from_contents(identifier, contents))
    aggregate_arrayrecords(records, WEIGHT)


def time_ms(job: Callable[[], None], updates: int) -> tuple[float, float]:
    """Milliseconds per update, by the wall clock and of the processor."""
    start_s, start_cpu_s = time.perf_counter(), time.process_time()
    job()
    wall_s, cpu_s = time.perf_counter() - start_s, time.process_time() - start_cpu_s
    return 1e3 * wall_s / updates, 1e3 * cpu_s / updates


def main() -> None:
    """Answer each line of input with the times of one round."""
    parameters, updates = (int(argument) for argument in sys.argv[1:3])
    records = [make_record(parameters, seed) for seed in range(updates)]
    messages = [as_message(record) for record in records]
    replies = [as_objects(record) for record in records]
    ways: dict[str, Callable[[], None]] = {
        "recorddict": lambda: run_recorddict(messages),
        "grid": lambda: run_grid(replies),
        "server": lambda: run_grid(replies, is_checked=True),
    }
    for _ in range(WARM_UP_ROUNDS):
        for job in ways.values():
            job()
    print(json.dumps({"version": flwr.__version__}), flush=True)
    for _ in sys.stdin:
        print(json.dumps({name: time_ms(job, updates) for name, job in ways.items()}), flush=True)


if __name__ == "__main__":
    main()
