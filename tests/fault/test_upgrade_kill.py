"""The power goes at every step of an upgrade: the board starts old or new software, and the next pass decides."""

import signal

import pytest

from edge_sdk.upgrade.environments import COMMITTED, CURRENT
from edge_sdk.upgrade.journal import Phase
from tests.support.upgrade_board import Site, Wheels

pytestmark = [pytest.mark.network, pytest.mark.fault]

BEFORE_THE_TRIAL = (
    "upgrade.after_document:1",  # timestamp, snapshot, targets
    "upgrade.after_document:2",
    "upgrade.after_document:3",
    "upgrade.after_metadata",
    "http.mid_file:3",
    "upgrade.after_fetch",
    "upgrade.after_fetch:3",
    "upgrade.mid_build",
    "upgrade.after_build",
    "upgrade.after_self_test",
    "upgrade.before_trial",
)
IN_THE_TRIAL = (
    "upgrade.after_trial",
    "upgrade.after_stop",
    "upgrade.after_link",
    "upgrade.after_start",
    "upgrade.mid_trial",
    "upgrade.after_commit_decision",
    "upgrade.after_commit_link",
    "upgrade.after_commit",
)
AT_THE_ROLLBACK = (
    "upgrade.after_rollback_decision",
    "upgrade.after_stop:2",
    "upgrade.after_link:2",
    "upgrade.after_start:2",
    "upgrade.after_rollback",
)
QUICK = "upgrade.after_link"


def cut(site: Site, failpoint: str) -> None:
    """Kill the updater at a step, and with it everything else on the board; then the board boots."""
    done = site.board.upgrade(failpoint=failpoint)
    assert done.returncode == -signal.SIGKILL, (failpoint, done.stdout, done.stderr)
    site.board.power_cut()
    site.board.service("start")


def check_decided(site: Site, version: str) -> None:
    site.board.wait_connected(version)
    assert site.board.journal().phase is Phase.IDLE
    assert site.board.environments.target(CURRENT) == site.board.environments.target(COMMITTED)


def cut_good_release(site: Site, wheels: Wheels, failpoint: str) -> None:
    site.publisher.release(wheels["0.2.0"])
    cut(site, failpoint)
    site.board.wait_connected("0.1.0", "0.2.0")
    done = site.board.upgrade()
    assert done.returncode == 0, done.stderr
    check_decided(site, "0.2.0")


def test_good_release_after_a_power_cut(site: Site, wheels: Wheels) -> None:
    cut_good_release(site, wheels, QUICK)


@pytest.mark.slow
@pytest.mark.parametrize("failpoint", [*BEFORE_THE_TRIAL, *(name for name in IN_THE_TRIAL if name != QUICK)])
def test_good_release_after_a_power_cut_elsewhere(site: Site, wheels: Wheels, failpoint: str) -> None:
    cut_good_release(site, wheels, failpoint)


@pytest.mark.slow
@pytest.mark.parametrize("failpoint", [*IN_THE_TRIAL[:5], *AT_THE_ROLLBACK])
def test_crashing_release_after_a_power_cut(site: Site, wheels: Wheels, failpoint: str) -> None:
    """Also where the board boots into the release that crashes: the updater is the old one, and takes it back."""
    site.publisher.release(wheels["crash"])
    cut(site, failpoint)
    done = site.board.upgrade()
    assert "rolled back" in done.stdout or "failed here before" in done.stdout, done.stderr
    check_decided(site, "0.1.0")


@pytest.mark.slow
def test_release_that_takes_the_power_with_it_is_given_up(site: Site, wheels: Wheels) -> None:
    site.publisher.release(wheels["0.2.0"])
    cut(site, "upgrade.mid_trial")
    cut(site, "upgrade.mid_trial")
    cut(site, "upgrade.mid_trial")
    done = site.board.upgrade()
    assert "its trial was cut off 3 times" in done.stdout
    check_decided(site, "0.1.0")


@pytest.mark.slow
def test_root_of_the_repository_is_kept_over_a_power_cut(site: Site, wheels: Wheels) -> None:
    site.publisher.rotate_all()
    site.publisher.release(wheels["0.2.0"])
    cut(site, "upgrade.after_document:2")
    assert site.board.upgrade().returncode == 0
    check_decided(site, "0.2.0")
