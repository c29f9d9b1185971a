"""An upgrade and a job on one board: the upgrade waits, no step is lost, the new client goes on with the old state."""

import re
import threading
from collections.abc import Iterator

import pytest

from tests.support.device_process import wait_until
from tests.support.fake_miners import FakeMiners
from tests.support.upgrade_board import Site, Wheels

pytestmark = [pytest.mark.network, pytest.mark.fault]

WAIT_S = 90.0


@pytest.fixture
def miners(site: Site) -> Iterator[FakeMiners]:
    miners = site.open_miners()
    with miners.running():
        yield miners


def slow_down(site: Site, *, steps: int) -> None:
    """Jobs of this length from the next start on."""
    device = site.board.device
    site.board.service("stop")
    text = re.sub(r"\n\[training\].*", "", device.config.read_text())
    device.config.write_text(f"{text}\n[training]\nsteps = {steps}\ncheckpoint_s = 1.0\n")
    site.board.service("start")


def jobs(site: Site) -> list[dict[str, int]]:
    return [phase for phase in site.board.device.phases() if phase["phase"] == "train" and "steps" in phase]


@pytest.mark.slow
def test_running_job_is_waited_for(site: Site, wheels: Wheels, miners: FakeMiners) -> None:
    device = site.board.device
    slow_down(site, steps=30_000)
    wait_until((device.folder / "base" / "state.cbor").exists, WAIT_S, what="a job that runs")
    site.publisher.release(wheels["0.2.0"])
    site.board.configure(site.server.url, quiet_wait_s=1)
    before = site.board.health()
    done = site.board.upgrade()
    assert done.returncode == 0
    assert "a job still runs after 1 s" in done.stdout
    assert site.board.health() == before  # the same process: nothing was stopped
    site.board.service("stop")


def test_every_job_of_a_board_that_always_trains_is_whole(site: Site, wheels: Wheels, miners: FakeMiners) -> None:
    """The device begins a job as soon as it may; the upgrade still finds its moment, and breaks none of them."""
    device = site.board.device
    steps = 400
    slow_down(site, steps=steps)
    wait_until(lambda: miners.version >= 2, WAIT_S, what="two updates of the old client")
    site.publisher.release(wheels["0.2.0"])
    passes: list[str] = []
    updater = threading.Thread(target=lambda: passes.append(site.board.upgrade().stdout))
    updater.start()
    updater.join(WAIT_S)
    assert "is committed" in passes[0]
    site.board.wait_connected("0.2.0")
    version = miners.version
    wait_until(lambda: miners.version >= version + 2, WAIT_S, what="two updates of the new client")
    site.board.service("stop")
    assert {job["steps"] for job in jobs(site)[:-1]} == {steps}  # the last one may be the stop of this test
    seqs = [row[0] for row in device.query("SELECT seq FROM updates ORDER BY seq")]
    assert seqs == list(range(1, len(seqs) + 1))
    assert len(set(miners.merged)) == len(miners.merged)
