"""A board takes a release over the air, keeps it when it is well, and keeps the old one in every bad case.

Real processes throughout: device, service manager, updater, broker, web server; the releases are wheels of this client.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from edge_sdk.upgrade.environments import COMMITTED, CURRENT
from edge_sdk.upgrade.journal import Phase
from tests.support.software import RangeServer
from tests.support.upgrade_board import Site, Wheels

pytestmark = [pytest.mark.network, pytest.mark.fault]

DAY_S = 86_400
READ_ONLY_ROOT = """
set -eu
mkdir -p "$1/root"
mount --rbind / "$1/root"
mount -o remount,bind,ro "$1/root"
mount --bind "$1" "$1/root$1"
root=$1/root
shift
echo inside
if touch "$root/written" 2>/dev/null; then echo writable; fi
exec chroot "$root" "$@"
"""


def check_old_runs(site: Site, version: str = "0.1.0") -> None:
    """The software from before runs, is connected, and would also start after a power cut."""
    site.board.wait_connected(version)
    links = {site.board.environments.target(link) for link in (CURRENT, COMMITTED)}
    assert len(links) == 1
    assert site.board.journal().phase is Phase.IDLE


def test_release_over_a_bad_link_is_committed(site: Site, wheels: Wheels) -> None:
    """The link breaks every 100 kB: each pass goes on where the last one stopped, and the last one commits."""
    site.publisher.release(wheels["0.2.0"])
    site.server.break_after_bytes = 100_000
    passes = [site.board.upgrade()]
    while passes[-1].returncode and len(passes) < 20:
        assert "truncated after" in passes[-1].stderr
        passes.append(site.board.upgrade())
    assert "release 1 (0.2.0) is committed" in passes[-1].stdout
    assert len(passes) >= 3
    wheel = next(wheels["0.2.0"].glob("edge_flchain*"))
    ranges = [header for path, header in site.server.requests if path.endswith(wheel.name)]
    assert ranges == [None, *(f"bytes={100_000 * number}-" for number in range(1, len(ranges)))]
    site.board.wait_connected("0.2.0")
    assert site.board.environments.target(CURRENT) == site.board.environments.target(COMMITTED) == "b"
    assert "is installed" in site.board.upgrade().stdout


def test_release_that_crashes_at_its_start_is_taken_back(site: Site, wheels: Wheels) -> None:
    site.publisher.release(wheels["crash"])
    done = site.board.upgrade()
    assert done.returncode == 1
    assert "is rolled back: it " in done.stdout
    check_old_runs(site)
    assert "failed here before" in site.board.upgrade().stdout


@pytest.mark.slow
def test_release_that_fails_its_self_test_never_runs(site: Site, wheels: Wheels) -> None:
    site.publisher.release(wheels["no-import"])
    before = site.board.health()
    for _ in range(3):
        done = site.board.upgrade()
        assert done.returncode == 1
        assert "failed its self-test: ImportError" in done.stdout
    assert site.board.health() == before  # the same process, never stopped
    assert "failed here before" in site.board.upgrade().stdout


@pytest.mark.slow
def test_release_that_never_connects_is_taken_back(site: Site, wheels: Wheels) -> None:
    site.board.configure(site.server.url, limit_s=8)
    site.publisher.release(wheels["deaf"])
    done = site.board.upgrade()
    assert done.returncode == 1
    assert "did not connect within 8 s" in done.stdout
    check_old_runs(site)


def old_repository(site: Site, wheels: Wheels) -> str:
    """The server shows release 1 again after release 2 was installed."""
    kept = site.publisher.path.with_name("kept")
    shutil.copytree(site.publisher.path, kept)
    site.publisher.release(wheels["0.2.0"])
    assert site.board.upgrade().returncode == 0
    shutil.rmtree(site.publisher.path)
    kept.rename(site.publisher.path)
    return "timestamp: version"


def old_number(site: Site, wheels: Wheels) -> str:
    """The operator's own targets key signs a release with a number that was there before."""
    site.publisher.release(wheels["0.2.0"])
    assert site.board.upgrade().returncode == 0
    site.publisher.renumber(1)
    return "older than release 2"


def wrong_hash(site: Site, wheels: Wheels) -> str:
    """One byte of the client's wheel is another one on the server."""
    site.publisher.release(wheels["0.2.0"])
    path = next((site.publisher.path / "targets").glob(f"*{next(wheels['0.2.0'].glob('edge*')).name}"))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    return "digest does not match"


def wrong_size(site: Site, wheels: Wheels) -> str:
    site.publisher.release(wheels["0.2.0"])
    path = next((site.publisher.path / "targets").glob(f"*{next(wheels['0.2.0'].glob('edge*')).name}"))
    path.write_bytes(path.read_bytes() + b"more")
    return "sends more than"


def unsigned_metadata(site: Site, wheels: Wheels) -> str:
    site.publisher.release(wheels["0.2.0"])
    path = site.publisher.path / "metadata" / "timestamp.json"
    path.write_text(path.read_text().replace('"version": ', '"version": 1'))
    return "0 valid signatures"


@pytest.mark.slow
@pytest.mark.parametrize("spoil", [old_repository, old_number, wrong_hash, wrong_size, unsigned_metadata])
def test_bad_offer_changes_nothing(site: Site, wheels: Wheels, spoil: Callable[[Site, Wheels], str]) -> None:
    site.publisher.release(wheels["0.1.0"])
    assert site.board.upgrade().returncode == 0
    why = spoil(site, wheels)
    before = site.board.health()
    done = site.board.upgrade()
    assert done.returncode == 1
    assert why in done.stderr
    assert before is not None
    check_old_runs(site, before.version)
    assert site.board.health() == before


@pytest.mark.slow
@pytest.mark.parametrize(("offset_s", "why"), [(8 * DAY_S, "expired"), (-30 * DAY_S, "clock: ")])
def test_expired_metadata_or_a_clock_that_is_wrong(site: Site, wheels: Wheels, offset_s: int, why: str) -> None:
    site.publisher.release(wheels["0.2.0"])
    done = site.board.upgrade(clock_offset_s=offset_s)
    assert done.returncode == 1
    assert why in done.stderr
    check_old_runs(site)
    assert site.board.upgrade().returncode == 0


@pytest.mark.slow
def test_staged_release_reaches_a_board_when_its_turn_comes(site: Site, wheels: Wheels) -> None:
    assert "nothing is published yet" in site.board.upgrade().stdout
    site.publisher.release(wheels["0.2.0"], percent=0)
    assert "0 % of the fleet" in site.board.upgrade().stdout
    check_old_runs(site)
    site.publisher.publish(percent=100)
    assert "release 1 (0.2.0) is committed" in site.board.upgrade().stdout


@pytest.mark.slow
def test_rotated_keys_and_a_second_server(site: Site, wheels: Wheels, tmp_path: Path) -> None:
    """Every key is replaced; the first server still shows what it showed before, a second one the truth."""
    site.publisher.release(wheels["0.1.0"])
    assert site.board.upgrade().returncode == 0
    stale = RangeServer(tmp_path / "stale")
    shutil.copytree(site.publisher.path, stale.folder)
    site.publisher.rotate_all()
    site.publisher.release(wheels["0.2.0"])
    assert site.board.upgrade().returncode == 0
    check_old_runs(site, "0.2.0")
    assert sum("zz_bridge" in path for path, _ in site.server.requests) == 1  # the same wheel in both releases
    with stale.running():
        site.board.configure(stale.url, more_urls=(site.server.url,))
        done = site.board.upgrade()
    assert "is installed" in done.stdout
    assert "valid signatures" in done.stderr


@pytest.mark.slow
def test_root_that_is_read_only(site: Site, wheels: Wheels) -> None:
    """The updater, and the device that it starts, in a system where only the board's own folder can be written."""
    if os.geteuid():
        pytest.skip("not root: no mount namespace")
    site.publisher.release(wheels["0.2.0"])
    prefix = ("unshare", "-m", "sh", "-c", READ_ONLY_ROOT, "sh", str(site.board.folder))
    done = site.board.upgrade(prefix=prefix)
    if not done.stdout.startswith("inside\n"):
        pytest.skip(f"no mount namespace: {done.stderr[-200:]}")
    assert "writable" not in done.stdout
    assert "release 1 (0.2.0) is committed" in done.stdout, done.stderr
    site.board.wait_connected("0.2.0")
