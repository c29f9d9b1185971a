"""A board with a device that runs, and an operator who publishes software for it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.device_process import make_model
from tests.support.fake_miners import FakeMiners, Keys, make_genesis, running_mosquitto, task_params
from tests.support.software import Publisher, RangeServer, bridge_wheel, build_client, changed_client
from tests.support.upgrade_board import Board, Site, Wheels


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Wheels:
    """Folders of wheels: the client of the image, a good release, and three bad ones."""
    folder = tmp_path_factory.mktemp("wheels")
    good = build_client(folder / "0.2.0", "0.2.0")
    changed_client(good, folder / "0.1.0", "0.1.0", {})
    app, trainer = "edge_sdk/device/app.py", "edge_sdk/training/trainer.py"
    start = "        self._worker.start()\n"
    changed_client(
        good, folder / "crash", "0.3.0", {app: lambda text: text.replace(start, "        raise SystemExit(3)\n")}
    )
    changed_client(good, folder / "deaf", "0.4.0", {app: lambda text: text.replace("        self._link.start()\n", "")})
    changed_client(
        good, folder / "no-import", "0.5.0", {trainer: lambda _: "raise ImportError('built for another board')\n"}
    )
    found = {path.name: path for path in folder.iterdir()}
    for path in found.values():
        bridge_wheel(path)
    return found


@pytest.fixture
def site(mosquitto_path: Path, tmp_path: Path, free_tcp_port: int, wheels: Wheels) -> Iterator[Site]:
    """Version 0.1.0 runs and is connected; nothing is published."""
    artifact, params = make_model()
    keys = Keys()
    genesis = make_genesis(keys, artifact_digest=artifact.digest, params=params, rules=task_params(local_steps=6))
    publisher = Publisher(tmp_path / "operator")
    server = RangeServer(publisher.path)
    with running_mosquitto(mosquitto_path, tmp_path / "broker", free_tcp_port), server.running():
        board = Board(tmp_path / "board", genesis, wheels["0.1.0"], publisher, broker_port=free_tcp_port)
        board.configure(server.url)
        with board.running():
            board.wait_connected("0.1.0")
            yield Site(
                board,
                publisher,
                server,
                lambda: FakeMiners(genesis, keys, params, artifact.data, broker_port=free_tcp_port),
            )
