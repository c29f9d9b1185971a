"""One miner of four is silent, or lies in scores, receipts or roots: the others go on, and it is named.

The lies are told by a real miner process, one after the other by the same one, to real devices. What names the liar is
a row of every honest miner's ledger; silence is only logged, since it may be the network's. The quick suite tells the
same lies to scripted devices, in test_miner_fleet.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Final

import pytest

from coordinator.ledger.state import EvidenceKind
from coordinator.ledger.store import LedgerStore
from tests.support.real_fleet import RealFleet

pytestmark = [pytest.mark.slow, pytest.mark.network, pytest.mark.fault, pytest.mark.usefixtures("mosquitto_path")]

LIAR: Final = "miner-4"
HONEST: Final = ("miner-1", "miner-2", "miner-3")
NAMED: Final = {
    "lying-scores": EvidenceKind.SCORE_OUTLIER,
    "lying-receipts": EvidenceKind.RECEIPT_WITHOUT_BLOB,
    "lying-roots": EvidenceKind.ROOT_DISSENT,
    "silent": EvidenceKind.ABSENT,
}


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealFleet]:
    with RealFleet(tmp_path_factory.mktemp("liars")) as running:
        yield running
    assert running.processes_left() == []


@pytest.mark.parametrize("behaviour", NAMED)
def test_the_others_go_on_and_the_liar_is_named(fleet: RealFleet, behaviour: str) -> None:
    before = {name: fleet.evidence(name) for name in HONEST}
    fleet.terminate(LIAR)
    fleet.set_behaviour(LIAR, behaviour)
    fleet.start(LIAR)
    fleet.until(lambda: fleet.is_ready(LIAR), "the liar takes part")
    words = f"evidence: {NAMED[behaviour]} by {LIAR}"
    for name in HONEST:
        fleet.until(lambda name=name: words in fleet.evidence(name)[len(before[name]) :], f"{name} logs: {words}")  # type: ignore[misc]
    fleet.until_progress(blocks=2, miners=HONEST)
    fleet.until_merged_again()


def test_the_books_are_right_after_all_of_it(fleet: RealFleet) -> None:
    fleet.terminate(LIAR)
    fleet.set_behaviour(LIAR, "")
    fleet.start(LIAR)
    fleet.until_progress()
    fleet.stop()
    assert fleet.processes_left() == []
    fleet.check_books()
    in_ledger = {kind for kind in NAMED.values() if kind is not EvidenceKind.ABSENT}
    for name in fleet.miners:
        with closing(LedgerStore.open(fleet.miners[name].folder / "ledger.sqlite3", read_only=True)) as store:
            state = store.load_state()
        assert state is not None
        assert {(found.kind, found.subject) for found in state.evidence} == {(kind, LIAR) for kind in in_ledger}
