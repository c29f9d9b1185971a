"""A miner dies at every arrow of the way and comes back: nothing receipted is lost, nothing is merged twice."""

from __future__ import annotations

import asyncio
import signal
import sqlite3

import pytest

from coordinator.ledger.replay import verify_directory
from edge_sdk.protocol import wire
from edge_sdk.protocol.ids import Digest
from edge_sdk.protocol.messages import Verdict
from tests.support.fleet import Fleet, Rules, until_same_height
from tests.support.scripted_device import ScriptedDevice

pytestmark = [pytest.mark.network, pytest.mark.fault, pytest.mark.usefixtures("mosquitto_path")]

VICTIM = "miner-1"
POINTS = (
    "miner.after_blob",
    "miner.after_row",
    "miner.after_receipt",
    "miner.after_score",
    "miner.before_commit_tx",
    "miner.after_commit_tx",
    "miner.before_reveal_tx",
    "miner.after_merge",
    "miner.after_model",
    "miner.before_vote_tx",
    "miner.before_height:3",
    "miner.after_height:3",
)
QUICK = ("miner.after_row", "miner.after_height:3")
"""The other arrows of the way have their quick case in test_fleet_kills."""


@pytest.mark.parametrize(
    "point", [point if point in QUICK else pytest.param(point, marks=pytest.mark.slow) for point in POINTS]
)
def test_killed_at_a_failpoint_and_restarted(point: str) -> None:
    async def scenario() -> None:
        async with Fleet(Rules(devices=2, block_size=2)) as fleet:
            assert fleet.kill(VICTIM, number=signal.SIGTERM) == 0
            fleet.start(VICTIM, failpoint=point)
            await fleet.until_ready(VICTIM)
            devices = [ScriptedDevice(fleet, device) for device in fleet.device_ids]
            async with devices[0], devices[1]:
                digests = [
                    device.publish(wire.to_bytes(device.train(fleet.model, seed=n)), seq=0)
                    for n, device in enumerate(devices)
                ]
                assert await fleet.died(VICTIM) == -signal.SIGKILL
                entries = [await device.until_outcome(digest) for device, digest in zip(devices, digests, strict=True)]
                assert [entry.verdict for entry in entries] == [Verdict.MERGED] * 2
                fleet.start(VICTIM)
                await until_same_height(fleet, version=1)
                for device, digest in zip(devices, digests, strict=True):
                    # The device asks again: the same end, also from the miner that was dead.
                    device.outcomes.clear()
                    device.publish_manifest(device.sealed[digest])
                    assert (await device.until_outcome(digest)).verdict is Verdict.MERGED
                for miner in (*fleet.miner_ids, "sequencer"):
                    assert fleet.kill(miner, number=signal.SIGTERM) == 0
            report = await asyncio.to_thread(verify_directory, fleet.root)
            assert [miner.version for miner in report.miners] == [1] * 4
            merged = {miner: merged_updates(fleet, miner) for miner in fleet.miner_ids}
            assert all(sorted(found) == sorted(digests) for found in merged.values())

    asyncio.run(scenario())


def merged_updates(fleet: Fleet, miner: str) -> list[Digest]:
    """Digests of all decided updates of a miner's ledger, with repetitions."""
    with sqlite3.connect(f"file:{fleet.ledger_dir(miner)}/ledger.sqlite3?mode=ro", uri=True) as database:
        return [Digest(row[0]) for row in database.execute("SELECT update_digest FROM entries")]
