"""SIGKILL of every part of a running fleet at every arrow of an update's way; restart; the books must be right.

One fleet of real processes lives through all cases of a broker, one after the other: what a case breaks and the next
one hides would still be found by the audit at the end.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Final

import pytest

from coordinator.broker.local import BrokerKind
from tests.support.real_fleet import SEQUENCER, RealFleet, Setting, failpoints_of_the_tree

pytestmark = [pytest.mark.network, pytest.mark.fault, pytest.mark.usefixtures("mosquitto_path")]

DEVICE: Final = "device-01"
MINER: Final = "miner-2"
TRIES: Final = 10
HOLD_S: Final = 3.0

# One per arrow of the way; the steps are those of the design.
ELSEWHERE: Final = (
    "enrol.",  # tests/integration/test_first_boot.py
    "rotation.",
    "upgrade.",  # test_upgrade_kill.py
    "http.mid_file",
    "device.replay_before_commit",  # tests/unit/test_replay_buffer.py
)
"""Of boards outside a running fleet."""
QUICK: Final = (
    "device.before_switch",  # 1 get
    "device.mid_training:4",  # 2 train
    "device.mid_chunks:2",  # 3 publish
    "miner.after_receipt",  # 4 admit
    "sequencer.after_log:5",  # 5 cut
    "miner.before_reveal_tx",  # 6 cross-validate
    "miner.after_model",  # 7 merge
    "device.before_settle_commit",  # 8 outcome
)
ALL: Final = (
    *QUICK,
    "device.after_fetch",
    "device.mid_stage",
    "device.after_switch",
    "device.after_checkpoint",
    "device.after_training",
    "device.before_outbox_commit",
    "device.after_manifest",
    "device.after_outbox_commit",
    "device.after_receipt",
    "device.after_receipt:3",
    "device.after_settle_commit",
    "miner.after_blob",
    "miner.after_row",
    "miner.after_score",
    "miner.before_commit_tx",
    "miner.after_commit_tx",
    "miner.before_vote_tx",
    "miner.after_merge",
    "miner.before_height:4",
    "miner.after_height:4",
    "sequencer.before_log:5",
    "sequencer.after_finalize:9",
    "sequencer.after_commit:9",
)


def _name(point: str) -> str:
    return point.partition(":")[0]


def _victim(point: str) -> str:
    return {"device": DEVICE, "miner": MINER, "sequencer": SEQUENCER}[point.partition(".")[0]]


@pytest.fixture(scope="module", params=[BrokerKind.MOSQUITTO, pytest.param(BrokerKind.AMQTT, marks=pytest.mark.slow)])
def fleet(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealFleet]:
    folder = tmp_path_factory.mktemp("kills")
    with RealFleet(folder, Setting(broker=request.param)) as running:
        yield running
    assert running.processes_left() == []


def test_every_failpoint_of_the_tree_is_in_the_matrix() -> None:
    """A new failpoint is a new arrow: it needs a case here, and a name of its own."""
    found = failpoints_of_the_tree()
    assert {name for name in found if not name.startswith(ELSEWHERE)} == set(map(_name, ALL))
    assert [name for name, count in found.items() if count > 1] == []
    assert {_name(point).partition(".")[0] for point in QUICK} == {"device", "miner", "sequencer"}


@pytest.mark.parametrize(
    "point", [point if point in QUICK else pytest.param(point, marks=pytest.mark.slow) for point in ALL]
)
def test_killed_at_a_failpoint(fleet: RealFleet, point: str) -> None:
    victim = _victim(point)
    fleet.die_at(victim, point)
    if victim == MINER:
        fleet.until_progress(miners=tuple(set(fleet.miners) - {MINER}))  # three of four go on
    fleet.start(victim)
    fleet.until_progress()
    if victim == DEVICE:
        fleet.until_merged_again(DEVICE)


def test_broker_killed_in_the_middle_of_uploads(fleet: RealFleet) -> None:
    """Two miners are silent, so no update can find its quorum: whatever the broker holds then is lost with it."""
    silent = ("miner-3", "miner-4")
    fleet.pause(*silent)
    fleet.until(lambda: bool(_open_updates(fleet)), "an update waits for its quorum of receipts")
    fleet.kill_broker()
    hanging = _open_updates(fleet)
    assert hanging
    fleet.wake(*silent)
    fleet.start_broker()
    fleet.until(lambda: not hanging & _open_updates(fleet), "the updates of that moment are stored by a quorum")
    fleet.until_merged_again()


def test_power_cut_of_everything(fleet: RealFleet) -> None:
    """Nothing is ordered for a moment, so what miners have confirmed is nowhere but on their disks; then all die."""
    names = (*fleet.devices, *fleet.miners, SEQUENCER)
    held = _hold_back_confirmed(fleet)
    fleet.kill(*names)
    fleet.kill_broker()
    fleet.start_broker()
    fleet.start(*reversed(names))
    fleet.until(lambda: not held & fleet.undecided(), "what was confirmed before the power cut is decided")
    fleet.until_merged_again()
    fleet.until_progress()


def test_the_books_are_right_after_all_of_it(fleet: RealFleet) -> None:
    fleet.until_progress(blocks=2)
    fleet.stop()
    assert fleet.processes_left() == []
    books = fleet.check_books()
    assert books.audit.merged > len(fleet.devices)
    assert books.audit.certificates_verified > 0


def _open_updates(fleet: RealFleet) -> set[bytes]:
    """Updates without outcome of which their devices hold receipts of no quorum."""
    query = (
        "SELECT digest FROM updates WHERE verdict IS NULL AND"
        " (SELECT count(*) FROM receipts WHERE receipts.digest = updates.digest AND receipts.status = 1) < 3"
    )
    return {digest for device in fleet.devices for (digest,) in fleet.outbox(device, query)}


def _hold_back_confirmed(fleet: RealFleet) -> set[bytes]:
    """Pause the ordering; updates that a quorum has confirmed since and that no ledger shows."""
    query = "SELECT update_digest FROM snapshot_updates"
    for _ in range(TRIES):
        fleet.until_progress()  # every device begins a new update after it
        fleet.pause(SEQUENCER)
        end_s = time.monotonic() + HOLD_S
        while time.monotonic() < end_s:
            listed = {digest for name in fleet.miners for (digest,) in fleet.ledger(name, query)}
            if held := fleet.undecided() - listed:
                return set(held)
        fleet.wake(SEQUENCER)
    raise AssertionError("no update was confirmed while the ordering was paused")
