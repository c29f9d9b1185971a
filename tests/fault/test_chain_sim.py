"""Seeded simulation of whole chains: loss, duplicates, crashes, silent and lying miners, hostile devices.

The application, the store and the merge are the product's; only network and clock are simulated. One seed repeats a
failure.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from coordinator.ledger.replay import verify_directory
from coordinator.ledger.state import EvidenceKind
from edge_sdk.protocol.messages import Verdict
from tests.support.chain import PARAMS, Names
from tests.support.chain_world import Behaviour, World

DEVICES = ("dev-a", "dev-b", "dev-c", "dev-d", "evil-a", "evil-twoface")


def run(world: World, steps: int) -> None:
    for _ in range(steps):
        world.step()
        world.check_nothing_lost()
    world.drain()
    world.rest()


def named(world: World) -> set[tuple[EvidenceKind, str]]:
    return {(e.kind, e.subject) for e in world.miners[0].app.state.evidence}


def check_entries(world: World) -> None:
    """Every hostile update is refused, no honest one is refused for quality."""
    assert world.miners[0].app.state.version >= 3
    for entry in world.entries:
        if entry.device_id.startswith("evil"):
            assert entry.verdict is Verdict.REFUSED
        else:
            assert entry.verdict is Verdict.MERGED or entry.reason.returns_delta


@pytest.mark.parametrize("seed", range(3))
def test_four_miners_over_a_lossy_network(seed: int) -> None:
    world = World(Names(4), seed=seed, devices=DEVICES, drop=0.3)
    run(world, 40)
    check_entries(world)
    assert named(world) <= {(EvidenceKind.DEVICE_EQUIVOCATION, "evil-twoface")}


@pytest.mark.parametrize(
    ("behaviour", "kind"),
    [
        (Behaviour.SILENT, None),
        (Behaviour.LYING_SCORES, EvidenceKind.SCORE_OUTLIER),
        (Behaviour.LYING_ROOTS, EvidenceKind.ROOT_DISSENT),
        (Behaviour.LYING_RECEIPTS, None),  # the blobs are had from the others in time
    ],
)
def test_one_of_four_is_silent_or_lies_and_the_others_go_on(behaviour: Behaviour, kind: EvidenceKind | None) -> None:
    world = World(Names(4), seed=11, devices=DEVICES[:5], behaviours={3: behaviour}, drop=0.1)
    run(world, 60)
    check_entries(world)
    assert named(world) == (set() if kind is None else {(kind, "miner-3")})


def test_two_of_seven_lie_in_different_ways() -> None:
    behaviours = {2: Behaviour.LYING_SCORES, 5: Behaviour.LYING_ROOTS}
    world = World(Names(7), seed=12, devices=DEVICES, behaviours=behaviours, drop=0.2)
    run(world, 40)
    check_entries(world)
    assert {subject for _, subject in named(world)} >= {"miner-2", "miner-5"}
    assert {subject for _, subject in named(world)} <= {"miner-2", "miner-5", "evil-twoface"}


def test_rounds_that_are_void_lose_nothing() -> None:
    params = replace(PARAMS, reveal_extensions_max=0)
    world = World(Names(4, params=params), seed=13, devices=DEVICES[:3], drop=0.75, duplicate=0.0)
    for _ in range(120):
        world.step()
        world.check_nothing_lost()
    assert world.void_count > 0
    world.drain()


def test_miners_crash_restart_and_catch_up_and_their_ledgers_verify(tmp_path: Path) -> None:
    world = World(Names(4), seed=14, devices=DEVICES[:5], folder=tmp_path, drop=0.1)
    for round_number in range(4):
        victim = world.miners[round_number]
        victim.is_down = True
        for _ in range(8):
            world.step()
        victim.restart()
        victim.is_down = False
        for _ in range(4):
            world.step()
            world.check_nothing_lost()
    world.drain()
    check_entries(world)
    world.close()
    report = verify_directory(tmp_path)
    assert len({miner.state_root for miner in report.miners}) == 1
    assert all(miner.merges_recomputed + miner.merges_skipped == miner.version for miner in report.miners)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 140))
def test_many_seeds(seed: int) -> None:
    kinds = list(Behaviour)
    behaviours = {seed % 4: kinds[seed % len(kinds)]}
    world = World(Names(4), seed=seed, devices=DEVICES, behaviours=behaviours, drop=(seed % 5) / 10)
    run(world, 80)
    check_entries(world)
