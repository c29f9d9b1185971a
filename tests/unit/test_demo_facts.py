"""What the report takes from run records and ledgers: the first miner's word on times, the worst device's memory."""

from pathlib import Path
from typing import Any

from coordinator.demo.facts import block_times, device_memory, newest_model
from coordinator.demo.records import RunPhase
from coordinator.ledger.rows import BlockRow
from edge_sdk.protocol.ids import ChainId, DeviceId, Digest, TaskId
from edge_sdk.protocol.messages import BlockEntry, BlockHeader, CutCause, Reason, Verdict
from edge_sdk.protocol.model import model_root
from tests.support.chain import Names
from tests.support.chain_world import World

DIGEST = Digest(bytes(32))
SECOND = 1_000_000_000


def _phase(actor: str, phase: str, start_s: float, duration_s: float = 0.0, **ids: Any) -> RunPhase:
    start_ns, duration_ns = round(start_s * SECOND), round(duration_s * SECOND)
    return RunPhase(actor, phase, start_ns, duration_ns, 0, None, "modelled", ids)


def _row(index: int, *verdicts: Verdict) -> BlockRow:
    entries = tuple(
        BlockEntry(
            update_digest=DIGEST,
            device_id=DeviceId("device-01"),
            seq=seq,
            base_version=0,
            verdict=verdict,
            reason=Reason.NONE,
            score=0,
            weight=1,
        )
        for seq, verdict in enumerate(verdicts)
    )
    header = BlockHeader(
        chain_id=ChainId("chain"),
        task=TaskId("task"),
        index=index,
        cut_height=1,
        decided_height=2,
        cause=CutCause.TAU,
        base_version=0,
        version=1,
        base_root=DIGEST,
        base_score=500,
        entry_count=len(entries),
        entries_root=DIGEST,
        previous_hash=DIGEST,
    )
    return BlockRow(header=header, entries=entries, certificate=None)


def test_a_block_is_timed_by_the_first_miner_that_saw_it() -> None:
    phases = [
        _phase("miner-1", "certify", 12.0, 1.0, block_index=1),
        _phase("miner-2", "certify", 11.5, 1.25, block_index=1),
        _phase("miner-1", "cut", 14.0, block_index=3),  # it died before the certificate
    ]
    rows = [_row(1, Verdict.MERGED, Verdict.REFUSED, Verdict.MERGED), _row(3, Verdict.MERGED)]
    first, second = block_times(rows, phases, start_ns=10 * SECOND)
    assert (first.index, first.cut_s, first.certified_s, first.merged, first.refused) == (1, 1.5, 2.75, 2, 1)
    assert (second.index, second.cut_s, second.certified_s) == (3, 4.0, None)


def test_memory_is_that_of_the_worst_device_and_idle_ends_with_the_first_session() -> None:
    def memory(actor: str, moment: str, rss_mib: int, peak_mib: int) -> RunPhase:
        return _phase(actor, "memory", 0.0, moment=moment, rss_kib=rss_mib * 1024, peak_kib=peak_mib * 1024)

    measured = device_memory(
        [
            memory("a", "connected", 38, 39),
            memory("b", "connected", 40, 41),
            memory("a", "trained", 80, 85),
            memory("a", "released", 70, 85),
            memory("a", "released", 60, 86),
            memory("a", "released", 61, 86),
            memory("b", "released", 55, 70),
            memory("a", "connected", 62, 86),  # the broker came back: numpy is loaded by now
        ]
    )
    assert (measured.idle, measured.training_peak, measured.idle_after) == (40.0, 86.0, 61.0)


def test_the_newest_model_is_the_last_that_is_certified(tmp_path: Path) -> None:
    world = World(Names(), seed=5, devices=("dev-a", "dev-b"), folder=tmp_path)
    assert newest_model(tmp_path) is None
    while world.miners[0].app.state.version < 2:
        world.step()
    state = world.miners[0].app.state
    world.close()
    newest = newest_model(tmp_path)
    assert newest is not None
    assert (newest[0], model_root(newest[1])) == (state.version, state.model_root)
