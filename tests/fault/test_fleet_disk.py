"""The disk of a device, and of a miner, is full: nothing is lost, the others go on, and space alone mends it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import pytest

from tests.support.disks import allow_writes, can_mount, forbid_writes
from tests.support.real_fleet import RealFleet, Setting

pytestmark = [pytest.mark.network, pytest.mark.fault, pytest.mark.usefixtures("mosquitto_path")]

DEVICE: Final = "device-01"
MINER: Final = "miner-2"
OTHERS: Final = ("miner-1", "miner-3", "miner-4")


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealFleet]:
    folder = tmp_path_factory.mktemp("disk")
    small = (DEVICE, MINER) if can_mount(folder) else ()
    with RealFleet(folder, Setting(small_disks=small)) as running:
        yield running
    assert running.processes_left() == []


@pytest.fixture
def mounted(fleet: RealFleet) -> RealFleet:
    """The fleet, where the disks are real ones."""
    if not fleet.disks:
        pytest.skip("skipped: no right to mount a tmpfs")
    return fleet


def test_device_may_write_nothing(fleet: RealFleet) -> None:
    pid = fleet.child(DEVICE).pid
    forbid_writes(pid)
    kept = fleet.installed(DEVICE)
    fleet.until_progress(blocks=4)  # of the other device's updates
    assert fleet.child(DEVICE).status is None
    assert fleet.installed(DEVICE) <= kept + 1
    allow_writes(pid)
    fleet.until(lambda: fleet.installed(DEVICE) > kept + 1, "the device installs again")
    fleet.until_merged_again(DEVICE)


def test_disk_of_a_device_is_full(mounted: RealFleet) -> None:
    """It goes on with what it has; one that is started then cannot, and says why."""
    fleet = mounted
    before = len(fleet.log(DEVICE))
    fleet.disks[DEVICE].fill()
    fleet.until(lambda: "failed" in fleet.log(DEVICE)[before:], "the device says that something failed")
    fleet.until_progress(blocks=3)
    assert "No space left" in fleet.log(DEVICE)[before:] or "full" in fleet.log(DEVICE)[before:]
    assert fleet.child(DEVICE).status is None
    status, findings = fleet.doctor(DEVICE)
    assert status == 1
    assert "fail  disk: 0 bytes free" in findings

    fleet.terminate(DEVICE)  # in order, although it can write nothing
    before = len(fleet.log(DEVICE))
    fleet.start(DEVICE)
    fleet.until(lambda: fleet.child(DEVICE).status is not None, "the device gives up")
    assert fleet.child(DEVICE).status == 1
    words = fleet.log(DEVICE)[before:]
    assert "flchain device run: " in words
    assert "Traceback" not in words
    fleet.disks[DEVICE].free()
    fleet.start(DEVICE)
    fleet.until_merged_again(DEVICE)


def test_disk_of_a_miner_is_full(mounted: RealFleet) -> None:
    """A miner that cannot keep a height must not go on; its service manager starts it again until there is space."""
    fleet = mounted
    fleet.disks[MINER].fill()
    fleet.until(lambda: fleet.child(MINER).status is not None, "the miner ends")
    assert fleet.child(MINER).status == 1
    fleet.until_progress(blocks=2, miners=OTHERS)
    fleet.start(MINER)
    fleet.until(lambda: fleet.child(MINER).status is not None, "it ends again")
    assert fleet.child(MINER).status == 1
    assert "flchain miner: " in fleet.child(MINER).log_tail()
    assert "Traceback" not in fleet.log(MINER)
    fleet.disks[MINER].free()
    fleet.start(MINER)
    fleet.until_progress()
    fleet.until_merged_again()


@pytest.mark.slow
def test_miner_may_write_nothing(fleet: RealFleet) -> None:
    forbid_writes(fleet.child(MINER).pid)
    fleet.until(lambda: fleet.child(MINER).status is not None, "the miner ends")
    assert fleet.child(MINER).status != 0
    fleet.until_progress(blocks=2, miners=OTHERS)
    fleet.start(MINER)
    fleet.until_progress()


def test_the_books_are_right_after_all_of_it(fleet: RealFleet) -> None:
    fleet.stop()
    assert fleet.processes_left() == []
    fleet.check_books()
