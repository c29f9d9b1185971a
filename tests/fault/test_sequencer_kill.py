"""SIGKILL of the sequencer or of an application at each arrow of a height; real processes, real sockets."""

from __future__ import annotations

import asyncio
import signal

import pytest

from tests.support.ordering import Cluster, until

pytestmark = pytest.mark.fault

SEQUENCER_FAILPOINTS = [
    "sequencer.before_log:3",
    "sequencer.after_log",
    "sequencer.after_log:3",
    "sequencer.after_finalize:2",
    "sequencer.after_finalize:9",
    "sequencer.after_commit:10",
]
APPLICATION_FAILPOINTS = ["app.before_commit", "app.before_commit:3", "app.after_commit:3"]
TXS = [f"tx{index}".encode() for index in range(8)]


@pytest.mark.parametrize("failpoint", SEQUENCER_FAILPOINTS)
def test_sequencer_killed_at_a_failpoint_continues(failpoint: str) -> None:
    async def scenario() -> None:
        async with Cluster() as cluster:
            cluster.start()
            cluster.start("sequencer", failpoint=failpoint)
            await cluster.until_live()
            submitting = asyncio.ensure_future(submit_until_executed(cluster, TXS))
            assert await asyncio.to_thread(cluster.died, "sequencer") == -signal.SIGKILL
            cluster.start("sequencer")
            await submitting
            await cluster.until_executed(set(TXS))
            cluster.check_agreement()

    asyncio.run(scenario())


@pytest.mark.parametrize("failpoint", APPLICATION_FAILPOINTS)
def test_application_killed_around_its_commit_comes_back_and_agrees(failpoint: str) -> None:
    async def scenario() -> None:
        async with Cluster() as cluster:
            cluster.start("m0", "m1", "m2")
            cluster.start("m3", failpoint=failpoint)
            cluster.start("sequencer")
            await cluster.until_live()
            for tx in TXS:
                await cluster.submit(tx, miner_id="m0")
                await cluster.until_executed({tx}, "m0", "m1", "m2")
            assert await asyncio.to_thread(cluster.died, "m3") == -signal.SIGKILL
            cluster.start("m3")
            await cluster.until_executed(set(TXS))
            cluster.check_agreement()

    asyncio.run(scenario())


def test_everything_killed_at_once_comes_back() -> None:
    async def scenario() -> None:
        async with Cluster() as cluster:
            for attempt in range(3):
                cluster.start()
                cluster.start("sequencer")
                await cluster.until_live()
                txs = [f"{attempt}/{index}".encode() for index in range(5)]
                await cluster.submit(*txs[:3])
                await cluster.until_executed(set(txs[:3]), "m0")
                await cluster.submit(*txs[3:])
                for name in ("sequencer", *cluster.names):
                    cluster.kill(name)
            cluster.start()
            cluster.start("sequencer")
            await cluster.until_live()
            await cluster.submit(b"last")
            await cluster.until_executed({b"last"})
            cluster.check_agreement()

    asyncio.run(scenario())


def test_a_wiped_application_replays_the_whole_log() -> None:
    async def scenario() -> None:
        async with Cluster() as cluster:
            cluster.start()
            cluster.start("sequencer")
            await cluster.until_live()
            for tx in TXS:
                await cluster.submit(tx)
                await cluster.until_executed({tx})
            cluster.kill("m2")
            for file in cluster.root.glob("m2.sqlite3*"):
                file.unlink()
            cluster.kill("sequencer")  # so that the replay comes from the file, not from memory
            cluster.start("sequencer")
            cluster.start("m2")
            await cluster.until_live()
            cluster.check_agreement()

    asyncio.run(scenario())


def test_a_lost_log_is_not_papered_over() -> None:
    """Applications ahead of the log are refused by name: the log is the order, and cannot be guessed."""

    async def scenario() -> None:
        async with Cluster() as cluster:
            cluster.start()
            cluster.start("sequencer")
            await cluster.until_live()
            await cluster.submit(b"tx")
            await cluster.until_executed({b"tx"})
            cluster.kill("sequencer")
            for file in cluster.root.glob("log.sqlite3*"):
                file.unlink()
            cluster.start("sequencer")

            async def are_refused() -> bool:
                members = (await cluster.members()).values()
                return all("the log ends at 0" in str(member["problem"]) for member in members)

            await until(are_refused)

    asyncio.run(scenario())


async def submit_until_executed(cluster: Cluster, txs: list[bytes]) -> None:
    """As a miner does: send again whatever has not been executed, through restarts of the sequencer."""
    for tx in txs:

        async def is_executed(tx: bytes = tx) -> bool:
            async with cluster.client() as client:
                await client.submit(tx)
            return tx in {found for _, found in cluster.executed("m0")}

        await until(is_executed)
