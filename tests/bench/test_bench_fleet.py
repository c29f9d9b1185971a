"""Latencies of four miner processes, a sequencer and mosquitto on this machine, while blocks go on.

Devices publish updates of 100 kB one after the other, ``PAUSE_S`` apart, as a fleet of twelve does; every update is
based on the newest certified model, so that the miners score, merge and certify all the time. Publishing is timed in
the device's process from the first publication to the first signed receipt that verifies; blocks are timed by the
miners' own run records, less the scoring of the slowest miner.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, Final

import httpx
import numpy as np
import pytest

from coordinator.demo.records import NS_PER_MS, RunPhase, read_runs
from coordinator.serving.metrics import MinerPhase
from edge_sdk.protocol import wire
from edge_sdk.protocol.ids import Digest
from edge_sdk.protocol.messages import UpdatePayload
from tests.support.fleet import Fleet, Rules
from tests.support.measurements import Row, of_values, record
from tests.support.scripted_device import ScriptedDevice

pytestmark = [pytest.mark.bench, pytest.mark.network, pytest.mark.usefixtures("mosquitto_path")]

DEVICES: Final = 12
BLOCK_SIZE: Final = 8
WIDTH: Final = 760
"""Inputs of the network that make an update of 100 kB."""
UPDATES: Final = 240
WARM_UP: Final = 24
PAUSE_S: Final = 0.25
INTAKE: Final = MinerPhase.INTAKE


@dataclass(slots=True)
class Seen:
    """What one update met on its way."""

    published_s: float
    first_ms: float
    quorum_ms: float
    bytes_count: int


@dataclass(slots=True)
class Published:
    """What the run has shown."""

    seen: list[Seen] = field(default_factory=list)
    phases: list[RunPhase] = field(default_factory=list)


def vary(payload: UpdatePayload, rng: np.random.Generator) -> bytes:
    """The same update with other low bits: another blob, hardly another model."""
    tensors = []
    for tensor in payload.tensors:
        values = np.frombuffer(tensor.values, np.int8)
        noise = rng.integers(0, 2, values.size, dtype=np.int8)
        tensors.append(type(tensor)(name=tensor.name, exponent=tensor.exponent, values=(values ^ noise).tobytes()))
    return wire.to_bytes(UpdatePayload(codec=payload.codec, tensors=tuple(tensors)))


async def newest_base(http: httpx.AsyncClient, fleet: Fleet) -> dict[str, Any]:
    """Version and root of the newest certified model, as arguments of a manifest."""
    answer = (await http.get(f"{fleet.url('miner-0')}/v1/models/latest")).json()
    return {"base_version": answer["version"], "base_root": Digest(bytes.fromhex(answer["model_root"]))}


async def publish_one(device: ScriptedDevice, blob: bytes, seq: int, base: dict[str, Any], miners: int) -> Seen:
    """Publish as a device does and wait for the receipts."""
    envelope = device.seal(device.manifest(blob, seq=seq, **base))
    start_s = time.monotonic()
    digest = device.publish_manifest(envelope)
    device.publish_chunks(digest, blob)
    await device.until_stored(digest, miners)
    times_ms = sorted(
        1e3 * (received_s - start_s) for (update, _), received_s in device.receipt_times_s.items() if update == digest
    )
    return Seen(start_s, times_ms[0], times_ms[2 * miners // 3], len(blob))


async def run_fleet() -> Published:
    published = Published()
    rules = Rules(devices=DEVICES, block_size=BLOCK_SIZE, width=WIDTH, tau_ms=4_000)
    async with Fleet(rules) as fleet, AsyncExitStack() as stack:
        devices = [await stack.enter_async_context(ScriptedDevice(fleet, name)) for name in fleet.device_ids]
        http = await stack.enter_async_context(httpx.AsyncClient(trust_env=False))
        payload = devices[0].train(fleet.model, seed=1, steps=3)
        rng = np.random.default_rng(2)
        for index in range(WARM_UP + UPDATES):
            blob, base = vary(payload, rng), await newest_base(http, fleet)
            device = devices[index % DEVICES]
            await asyncio.sleep(PAUSE_S)
            seen = await publish_one(device, blob, index // DEVICES, base, len(fleet.miner_ids))
            if index >= WARM_UP:
                published.seen.append(seen)
        published.phases = read_runs(fleet.root / "miners")
    return published


def net_certify_ms(phases: list[RunPhase]) -> tuple[list[float], list[float], list[float]]:
    """For each block, at its fastest miner: cut to certificate less scoring, with scoring, and scoring alone."""
    scoring: defaultdict[int, float] = defaultdict(float)
    whole: dict[int, float] = {}
    for phase in phases:
        duration_ms = phase.duration_ns / NS_PER_MS
        if phase.phase == MinerPhase.SCORE:
            index = int(phase.ids["block_index"])
            scoring[index] = max(scoring[index], duration_ms)
        elif phase.phase == MinerPhase.CERTIFY:
            index = int(phase.ids["block_index"])
            whole[index] = min(whole.get(index, duration_ms), duration_ms)
    indices = sorted(whole)[2:]  # the first blocks warm up
    return (
        [max(0.0, whole[index] - scoring[index]) for index in indices],
        [whole[index] for index in indices],
        [scoring[index] for index in indices],
    )


@pytest.mark.timeout(600)
def test_publish_to_receipt_and_cut_to_certificate() -> None:
    published = asyncio.run(run_fleet())
    first_ms = [seen.first_ms for seen in published.seen]
    quorum_ms = [seen.quorum_ms for seen in published.seen]
    size = published.seen[0].bytes_count
    note = f"updates of {size} bytes, {PAUSE_S} s apart, 4 miners, mosquitto, blocks of {BLOCK_SIZE} going on"
    what = "publish to first signed receipt"
    record(Row(key="2-receipt-1-p50", what=f"{what}, p50", unit="ms", bar=25, **of_values(first_ms), note=note))
    record(Row(key="2-receipt-2-p99", what=f"{what}, p99", unit="ms", bar=150, **of_values(first_ms, 0.99), note=note))
    what = "publish to receipts of more than 2/3"
    record(Row(key="2-receipt-3-quorum-p50", what=f"{what}, p50", unit="ms", **of_values(quorum_ms), note=note))
    intake = [phase.duration_ns / NS_PER_MS for phase in published.phases if phase.phase == INTAKE]
    text = "of each miner: manifest seen to receipt sent"
    record(Row(key="2-receipt-4-intake-p50", what="intake, p50", unit="ms", **of_values(intake), note=text))
    net, whole, scoring = net_certify_ms(published.phases)
    note = f"blocks of {BLOCK_SIZE} updates of {size} bytes, 4 miners, local engine, fastest miner of each block"
    what = "cut to certificate"
    record(
        Row(key="3-certify-1-net", what=f"{what} less scoring, p50", unit="ms", bar=150, **of_values(net), note=note)
    )
    p99 = of_values(net, 0.99)
    record(Row(key="3-certify-2-net-p99", what=f"{what} less scoring, p99", unit="ms", **p99, note=note))
    record(Row(key="3-certify-3-whole", what=f"{what}, p50", unit="ms", **of_values(whole), note=note))
    record(Row(key="3-certify-4-scoring", what="scoring, slowest miner, p50", unit="ms", **of_values(scoring)))
    assert len(first_ms) == UPDATES
    assert net
