"""Time Flower's server on fp32 updates: deserialize the message and aggregate. Runs in an environment of its own.

Usage: python flower_peer.py PARAMETERS UPDATES ROUNDS; prints one JSON line, milliseconds per update for each round.
Imports nothing of ours, so that the peer's environment holds only the peer. Transport (gRPC, TLS) is left out on both
sides.
"""

from __future__ import annotations

import json
import sys
import time

import flwr
import numpy as np
from flwr.common import ArrayRecord, MetricRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as RecordDictMessage
from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords


def make_message(parameters: int, seed: int) -> bytes:
    """One client's reply as it comes off the wire, fp32, shape (parameters,)."""
    values = np.random.default_rng(seed).normal(size=parameters).astype(np.float32)
    content = {"arrays": ArrayRecord([values]), "metrics": MetricRecord({"num-examples": 10 + seed})}
    message: bytes = recorddict_to_proto(RecordDict(content)).SerializeToString()
    return message


def main() -> None:
    """Print the timings."""
    parameters, updates, rounds = (int(argument) for argument in sys.argv[1:4])
    messages = [make_message(parameters, seed) for seed in range(updates)]
    timings = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        records = [recorddict_from_proto(RecordDictMessage.FromString(message)) for message in messages]
        aggregate_arrayrecords(records, "num-examples")
        timings.append(1e3 * (time.perf_counter() - start) / updates)
    print(json.dumps({"version": flwr.__version__, "ms_per_update": timings[1:]}))  # the first round warms up


if __name__ == "__main__":
    main()
