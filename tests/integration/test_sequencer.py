"""The local engine and real applications in real processes, over real Unix sockets."""

from __future__ import annotations

import asyncio
import hashlib
import socket
import stat
import sys

import pytest

from coordinator.ordering.log import OrderedLog
from coordinator.ordering.sequencer import Sequencer
from coordinator.ordering.sequencer_config import SequencerConfig
from edge_sdk.adapters.system_clock import SystemClock
from edge_sdk.errors import StoreError, TransportError
from tests.support.ordering import ROOT, SEQUENCER, Cluster, until


def run_until_agreed(*txs: bytes) -> None:
    async def scenario() -> None:
        async with Cluster() as cluster:
            cluster.start()
            cluster.start("sequencer")
            await cluster.until_live()
            await cluster.submit(*txs)
            await cluster.until_executed(set(txs))
            cluster.check_agreement()

    asyncio.run(scenario())


def test_all_miners_execute_the_same_transactions_in_the_same_order() -> None:
    run_until_agreed(*(f"tx{index}".encode() for index in range(20)))


def test_a_duplicate_is_told_so_and_executed_once() -> None:
    async def scenario() -> None:
        async with Cluster() as cluster, cluster.client() as client:
            cluster.start()
            cluster.start("sequencer")
            await cluster.until_live()
            first = await client.submit(b"once")
            again = await client.submit(b"once")
            await cluster.until_executed({b"once"})
            later = await client.submit(b"once")
            await cluster.submit(b"next")
            await cluster.until_executed({b"next"})
            assert (first.code, first.is_known, again.is_known, later.is_known) == (0, False, True, True)
            assert first.digest == hashlib.sha256(b"once").digest()
            cluster.check_agreement()

    asyncio.run(scenario())


def test_what_a_miner_refuses_is_not_ordered_and_what_no_proposer_wants_goes() -> None:
    async def scenario() -> None:
        async with Cluster() as cluster, cluster.client("m1") as client:
            cluster.start()
            cluster.start("sequencer")
            await cluster.until_live()
            refused = await client.submit(b"bad:1")
            assert (refused.code, refused.info) == (3, "bad tx")
            assert (await client.submit(b"late:1")).code == 0

            async def is_dropped() -> bool:
                local = (await client.status())["local"]
                assert isinstance(local, dict)
                return (local["dropped_txs"], local["waiting_txs"]) == (1, 0)

            await until(is_dropped)
            assert await client.height() == 0  # no empty heights
            assert not (await client.submit(b"late:1")).is_known  # it may be sent again

    asyncio.run(scenario())


def test_a_transaction_without_effect_may_be_sent_again() -> None:
    async def scenario() -> None:
        async with Cluster() as cluster, cluster.client() as client:
            cluster.start()
            cluster.start("sequencer")
            await cluster.until_live()
            await client.submit(b"fail:1")
            await cluster.until_executed({b"fail:1"})

            async def is_forgotten() -> bool:
                return not (await client.submit(b"fail:1")).is_known

            await until(is_forgotten)

    asyncio.run(scenario())


def test_three_of_four_go_on_and_the_fourth_catches_up() -> None:
    async def scenario() -> None:
        async with Cluster() as cluster:
            cluster.start("m0", "m1", "m2")
            cluster.start("sequencer")
            await cluster.until_live("m0", "m1", "m2")
            early = {f"tx{index}".encode() for index in range(10)}
            for tx in early:  # one height each
                await cluster.submit(tx)
                await cluster.until_executed({tx}, "m0", "m1", "m2")
            cluster.start("m3")
            await cluster.until_executed(early)
            cluster.kill("m0")
            await cluster.submit(b"late joiner counts")
            await cluster.until_executed({b"late joiner counts"}, "m1", "m2", "m3")
            cluster.check_agreement("m1", "m2", "m3")

    asyncio.run(scenario())


def test_half_of_the_power_orders_nothing() -> None:
    async def scenario() -> None:
        async with Cluster() as cluster, cluster.client() as client:
            cluster.start("m0", "m1")
            cluster.start("sequencer")
            await cluster.until_live("m0", "m1")
            await client.submit(b"tx")
            await asyncio.sleep(0.5)
            assert await client.height() == 0
            cluster.start("m2")
            await cluster.until_executed({b"tx"}, "m0", "m1", "m2")

    asyncio.run(scenario())


@pytest.mark.parametrize("behaviour", ["hang:3", "mute", "greedy", "refuse", "error"])
def test_one_misbehaving_miner_stops_nobody(behaviour: str) -> None:
    async def scenario() -> None:
        async with Cluster(call_timeout_s=0.5) as cluster:
            cluster.start("m0", "m1", "m2")
            cluster.start("m3", behaviour=behaviour)
            cluster.start("sequencer")
            await cluster.until_live()
            for index in range(12):
                await cluster.submit(f"tx{index}".encode())
                await cluster.until_executed({f"tx{index}".encode()}, "m0", "m1", "m2")
            cluster.check_agreement("m0", "m1", "m2")

    asyncio.run(scenario())


def test_a_hung_miner_does_not_slow_the_others() -> None:
    async def scenario() -> None:
        async with Cluster(call_timeout_s=5, execute_timeout_s=30) as cluster:
            cluster.start("m0", "m1", "m2")
            cluster.start("m3", behaviour="hang:2")
            cluster.start("sequencer")
            await cluster.until_live()
            start = asyncio.get_running_loop().time()
            for index in range(10):
                await cluster.submit(f"tx{index}".encode())
                await cluster.until_executed({f"tx{index}".encode()}, "m0", "m1", "m2")
            assert asyncio.get_running_loop().time() - start < 5  # less than one timeout

    asyncio.run(scenario())


def test_a_lie_about_the_app_hash_is_named_and_left_behind() -> None:
    async def scenario() -> None:
        async with Cluster() as cluster:
            cluster.start("m0", "m1", "m2")
            cluster.start("m3", behaviour="lie:2")
            cluster.start("sequencer")
            await cluster.until_live()
            for index in range(6):
                await cluster.submit(f"tx{index}".encode())
                await cluster.until_executed({f"tx{index}".encode()}, "m0", "m1", "m2")

            async def is_named() -> bool:
                liar = (await cluster.members())["m3"]
                return liar["state"] == "dissenting" and liar["dissent_height"] == 2

            await until(is_named)
            assert "ERROR" in cluster.log_text("sequencer")
            assert "m3 has app hash" in cluster.log_text("sequencer")
            assert max(height for height, _ in cluster.executed("m3")) == 2
            cluster.check_agreement("m0", "m1", "m2")

    asyncio.run(scenario())


def test_two_against_two_is_a_named_stalemate() -> None:
    async def scenario() -> None:
        async with Cluster() as cluster, cluster.client() as client:
            cluster.start("m0", "m1")
            cluster.start("m2", "m3", behaviour="lie:1")
            cluster.start("sequencer")
            await cluster.until_live()
            await client.submit(b"tx")

            async def is_named() -> bool:
                local = (await client.status())["local"]
                assert isinstance(local, dict)
                return "no quorum for an app hash at height 1" in local["stalemate"]

            await until(is_named)
            await client.submit(b"more")
            await asyncio.sleep(0.3)
            assert await client.height() == 1

    asyncio.run(scenario())


def test_a_clean_stop_truncates_the_log_and_frees_the_socket() -> None:
    async def scenario() -> None:
        async with Cluster() as cluster:
            cluster.start()
            cluster.start("sequencer")
            await cluster.until_live()
            assert stat.S_IMODE((cluster.root / "rpc.sock").stat().st_mode) == 0o600
            await cluster.submit(b"tx")
            await cluster.until_executed({b"tx"})
            assert cluster.kill("sequencer", number=15) == 0
            assert not (cluster.root / "rpc.sock").exists()
            wal = cluster.root / "log.sqlite3-wal"
            assert not wal.exists() or wal.stat().st_size == 0
            with pytest.raises(TransportError):
                async with cluster.client() as client:
                    await client.submit(b"tx")

    asyncio.run(scenario())


HOSTILE_BODIES = [
    b"",
    b"null",
    b"[]",
    b"[" * 50_000,
    b'{"a":' * 10_000,
    b"\xff\xfe",
    b'{"jsonrpc": "2.0", "id": 1}',
    b'{"jsonrpc": "2.0", "id": {}, "method": "status"}',
    b'{"jsonrpc": "2.0", "id": "\\ud800", "method": "\\ud800"}',
    b'{"jsonrpc": "2.0", "id": 1, "method": "broadcast_tx_sync", "params": [1]}',
    b'{"jsonrpc": "2.0", "id": 1, "method": "broadcast_tx_sync", "params": {"tx": "%%%"}}',
    b'{"jsonrpc": "2.0", "id": 1, "method": "broadcast_tx_sync", "params": {"tx": "\xc3\xa4"}}',
    b'{"jsonrpc": "2.0", "id": 1, "method": "broadcast_tx_sync", "params": {"tx": ""}}',
    b'{"jsonrpc": "2.0", "id": 1, "method": "broadcast_tx_sync", "params": {"tx": "AAAA", "miner": "nobody"}}',
    b'{"jsonrpc": "2.0", "id": 1, "method": "broadcast_tx_sync", "params": {"tx": "AAAA", "miner": 7}}',
    b'{"jsonrpc": "2.0", "id": ' + b"9" * 5_000 + b', "method": "status"}',
    b'{"jsonrpc": "2.0", "id": 1, "method": "unsafe_flush_mempool"}',
    b" " * 200_000,
]


def test_hostile_rpc_input_gets_an_error_and_the_engine_goes_on() -> None:
    async def post(path: str, body: bytes) -> bytes:
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n")
        writer.write(b"Content-Length: %d\r\n\r\n" % len(body) + body)
        async with asyncio.timeout(5):
            answer = await reader.read()
        writer.close()
        return answer

    async def scenario() -> None:
        async with Cluster() as cluster:
            cluster.start()
            cluster.start("sequencer")
            await cluster.until_live()
            path = str(cluster.root / "rpc.sock")
            for body in HOSTILE_BODIES:
                answer = await post(path, body)
                assert answer.startswith(b"HTTP/1.1 200 OK"), (body[:40], answer)
                assert b'"error": {"code": -32' in answer, (body[:40], answer)
            with socket.socket(socket.AF_UNIX) as raw:
                raw.connect(path)
                raw.sendall(b"\x00\xff not http\r\n\r\n")
            await cluster.submit(b"still here")
            await cluster.until_executed({b"still here"})
            assert "Traceback" not in cluster.log_text("sequencer")

    asyncio.run(scenario())


def test_a_second_sequencer_on_the_same_log_ends_with_one_line() -> None:
    async def scenario() -> None:
        async with Cluster() as cluster:
            cluster.start()
            cluster.start("sequencer")
            await cluster.until_live()
            config = cluster.root / "sequencer.toml"
            second = await asyncio.create_subprocess_exec(
                sys.executable, "-c", SEQUENCER, str(config), cwd=ROOT, stderr=asyncio.subprocess.PIPE
            )
            async with asyncio.timeout(10):
                _, text = await second.communicate()
            assert second.returncode == 1
            assert text.decode().splitlines()[-1].startswith("edge_sdk.errors.ConfigError: ")
            await cluster.submit(b"tx")
            await cluster.until_executed({b"tx"})

    asyncio.run(scenario())


def test_a_log_that_cannot_be_written_stops_the_engine_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_log: OrderedLog, _decided: object) -> None:
        raise StoreError("database or disk is full")

    async def scenario() -> None:
        async with Cluster() as cluster:
            cluster.start()
            with monkeypatch.context() as patch:
                patch.setattr(OrderedLog, "append", full)
                engine = Sequencer(SequencerConfig.load(cluster.root / "sequencer.toml"), clock=SystemClock())
                running = asyncio.create_task(engine.run(asyncio.Event()))
                await cluster.until_live()
                await cluster.submit(b"tx")
                with pytest.raises(StoreError, match="full"):
                    async with asyncio.timeout(5):
                        await running
            cluster.start("sequencer")
            await cluster.until_live()
            await cluster.submit(b"tx")
            await cluster.until_executed({b"tx"})
            cluster.check_agreement()

    asyncio.run(scenario())
