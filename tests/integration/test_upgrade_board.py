"""A board takes a release over the air, keeps it when it is well, and keeps the old one in every bad case."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_sdk.upgrade.environments import COMMITTED, CURRENT
from tests.support.device_process import make_model
from tests.support.fake_miners import Keys, make_genesis, running_mosquitto
from tests.support.software import Publisher, RangeServer, bridge_wheel, build_client, changed_client
from tests.support.upgrade_board import Board

pytestmark = [pytest.mark.network, pytest.mark.fault]

RUN = "edge_sdk/device/app.py"


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of wheels: the client of the image, a good release, and one that crashes when it starts."""
    folder = tmp_path_factory.mktemp("wheels")
    good = build_client(folder / "0.2.0", "0.2.0")
    changed_client(good, folder / "0.1.0", "0.1.0", {})
    crash = {RUN: lambda text: text.replace("        self._worker.start()\n", "        raise SystemExit(3)\n")}
    changed_client(good, folder / "0.3.0", "0.3.0", crash)
    for version in ("0.1.0", "0.2.0", "0.3.0"):
        bridge_wheel(folder / version)
    return {path.name: path for path in folder.iterdir()}


@pytest.fixture
def board(
    mosquitto_path: Path, tmp_path: Path, free_tcp_port: int, wheels: dict[str, Path]
) -> Iterator[tuple[Board, Publisher, RangeServer]]:
    artifact, params = make_model()
    genesis = make_genesis(Keys(), artifact_digest=artifact.digest, params=params)
    publisher = Publisher(tmp_path / "operator")
    server = RangeServer(publisher.path)
    with running_mosquitto(mosquitto_path, tmp_path / "broker", free_tcp_port), server.running():
        found = Board(tmp_path / "board", genesis, wheels["0.1.0"], publisher, broker_port=free_tcp_port)
        found.configure(server.url)
        with found.running():
            found.wait_connected("0.1.0")
            yield found, publisher, server


def test_good_release_is_committed(board: tuple[Board, Publisher, RangeServer], wheels: dict[str, Path]) -> None:
    here, publisher, _ = board
    publisher.release(wheels["0.2.0"])
    done = here.upgrade()
    assert done.returncode == 0, done.stderr
    assert "committed" in done.stdout
    here.wait_connected("0.2.0")
    assert here.environments.target(CURRENT) == here.environments.target(COMMITTED) == "b"
    assert "is installed" in here.upgrade().stdout
