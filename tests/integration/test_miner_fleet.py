"""Four miner processes, a sequencer and a real broker: the way of an update from manifest to certified outcome."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from edge_sdk.protocol import wire
from edge_sdk.protocol.messages import Reason, Verdict
from tests.support.fleet import Fleet, Rules
from tests.support.scripted_device import ScriptedDevice

pytestmark = [pytest.mark.network, pytest.mark.usefixtures("mosquitto_path")]


def test_a_block_is_merged_certified_and_served() -> None:
    async def scenario() -> None:
        async with Fleet(Rules(devices=3, block_size=3)) as fleet:
            first, second, third = (ScriptedDevice(fleet, device) for device in fleet.device_ids)
            async with first, second, third:
                honest = [wire.to_bytes(device.train(fleet.model, seed=n)) for n, device in enumerate((first, second))]
                hostile = wire.to_bytes(third.train(fleet.model, seed=9, scale=-1.0))
                digests = [
                    first.publish(honest[0], seq=0),
                    second.publish(honest[1], seq=0),
                    third.publish(hostile, seq=0),
                ]
                await first.until_stored(digests[0], 4)
                entries = [
                    await device.until_outcome(digest)
                    for device, digest in zip((first, second, third), digests, strict=True)
                ]
            assert [entry.verdict for entry in entries] == [Verdict.MERGED, Verdict.MERGED, Verdict.REFUSED]
            assert entries[2].reason is Reason.QUALITY
            await until_version(fleet, 1)

    asyncio.run(scenario())


async def until_version(fleet: Fleet, version: int) -> None:
    """Wait until every miner serves the same certified model."""
    async with httpx.AsyncClient(trust_env=False) as http:
        for _ in range(200):
            answers = [(await http.get(f"{fleet.url(miner)}/v1/models/latest")).json() for miner in fleet.miner_ids]
            if all(answer["version"] >= version for answer in answers):
                assert len({answer["model_root"] for answer in answers}) == 1
                assert all(answer["certificate"] for answer in answers)
                return
            await asyncio.sleep(0.05)
    raise TimeoutError(f"version {version}")
