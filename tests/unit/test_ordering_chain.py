from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from coordinator.ordering import chain as module
from coordinator.ordering.chain import Chain, DissentError
from coordinator.ordering.log import OrderedLog

EQUAL = {"a": 1, "b": 1, "c": 1, "d": 1}


@contextmanager
def opened(folder: Path, powers: Mapping[str, int] = EQUAL) -> Iterator[Chain]:
    chain = Chain(OrderedLog.open(folder / "log.sqlite3", chain_id="c", genesis_digest=b"g"), powers)
    try:
        yield chain
    finally:
        chain.close()


def outcome(chain: Chain) -> tuple[bytes | None, str]:
    """Agreed app hash, and why there can be none."""
    return chain.agreed, chain.stalemate


async def extend(chain: Chain, app_hash: bytes, *, time_s: int = 1) -> None:
    """Let all agree on an app hash, then decide one more height."""
    for miner_id in EQUAL:
        chain.report(miner_id, chain.height, app_hash)
    await chain.append(chain.propose(proposer="a", time_s=time_s, txs=[b"tx"]))


def test_agreement_needs_more_than_two_thirds(tmp_path: Path) -> None:
    with opened(tmp_path) as chain:
        chain.report("a", 0, b"x")
        chain.report("a", 0, b"x")  # again
        chain.report("b", 0, b"x")
        assert outcome(chain) == (None, "")
        chain.report("c", 0, b"x", (0, 3))
        assert outcome(chain) == (b"x", "")
        assert chain.codes == (0, 3)


def test_power_counts_not_heads(tmp_path: Path) -> None:
    with opened(tmp_path, {"a": 4, "b": 1, "c": 1}) as chain:
        chain.report("a", 0, b"x")
        assert outcome(chain) == (None, "")  # 4 of 6 are exactly 2/3
        chain.report("b", 0, b"x")
        assert outcome(chain) == (b"x", "")


def test_a_report_for_another_height_does_not_count(tmp_path: Path) -> None:
    with opened(tmp_path) as chain:
        for miner_id in EQUAL:
            chain.report(miner_id, 1, b"x")
        assert chain.agreed is None


def test_time_never_runs_backwards(tmp_path: Path) -> None:
    async def scenario() -> None:
        with opened(tmp_path) as chain:
            await extend(chain, b"0", time_s=100)
            await extend(chain, b"1", time_s=50)
            assert [(await chain.read(height)).time_s for height in (1, 2)] == [100, 100]

    asyncio.run(scenario())


def test_a_split_without_quorum_is_named_once_it_is_certain(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with opened(tmp_path) as chain:
        chain.report("a", 0, b"x")
        chain.report("b", 0, b"y")
        chain.report("c", 0, b"y")
        assert outcome(chain) == (None, "")  # d may still join b and c
        chain.report("d", 0, b"x")
        assert outcome(chain) == (None, "no quorum for an app hash at height 0: a 78, b 79, c 79, d 78")
        assert [record.levelno for record in caplog.records] == [logging.CRITICAL]
        chain.report("d", 0, b"y")  # repaired and back
        assert outcome(chain) == (b"y", "")


def test_who_has_another_app_hash_gets_no_further_height(tmp_path: Path) -> None:
    async def scenario() -> None:
        with opened(tmp_path) as chain:
            await extend(chain, b"0")
            await extend(chain, b"1")
            assert (await chain.next_of("a", 0, b"0")).height == 1
            assert (await chain.next_of("a", 1, b"1")).height == 2
            with pytest.raises(DissentError, match="d has app hash 39 at height 1, the quorum has 31"):
                await chain.next_of("d", 1, b"9")
            assert chain.dissents["d"].height == 1
            for miner_id in ("a", "b", "c"):
                chain.report(miner_id, 2, b"2")
            with pytest.raises(DissentError):  # at once, although no height follows yet
                await chain.next_of("d", 2, b"9")

    asyncio.run(scenario())


def test_a_lagging_miner_reads_what_memory_no_longer_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DECIDED_HEIGHTS_KEPT", 2)

    async def scenario() -> None:
        with opened(tmp_path) as chain:
            for number in range(5):
                await extend(chain, b"%d" % number)
            assert len(chain._recent) == 2
            assert [(await chain.next_of("a", number, b"%d" % number)).height for number in range(5)] == [1, 2, 3, 4, 5]

    asyncio.run(scenario())


def test_a_restart_continues_the_chain_and_asks_again_for_the_last_app_hash(tmp_path: Path) -> None:
    async def scenario() -> None:
        with opened(tmp_path) as chain:
            await extend(chain, b"0", time_s=7)
            head_hash = chain.head_hash
        with opened(tmp_path) as chain:
            assert (chain.height, chain.time_s, chain.head_hash, chain.agreed) == (1, 7, head_hash, None)
            await extend(chain, b"1")
            assert (await chain.read(2)).previous_app_hash == b"1"

    asyncio.run(scenario())
