"""A miner serves the software repository of its operator: what a board asks for, in ranges, and nothing else."""

import asyncio
import http.client
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tuf.api.metadata import TargetFile

from coordinator.serving.http import create_app
from coordinator.serving.metrics import MinerMetrics
from coordinator.serving.service import HttpService
from coordinator.serving.software import PREFIX, Software
from coordinator.upgrades.keys import KeyRing
from coordinator.upgrades.repository import Repository
from edge_sdk.adapters.http_files import HttpFiles
from edge_sdk.adapters.system_clock import SystemClock
from edge_sdk.upgrade.mirror import Mirror
from tests.support.serving import FakeView, Log
from tests.support.software import Publisher

WAIT_S = 20.0
WHEEL = bytes(range(256)) * 2_000


@pytest.fixture
def publisher(tmp_path: Path) -> Publisher:
    publisher = Publisher(tmp_path)
    info = TargetFile.from_data("wheel-1-py3-none-any.whl", WHEEL, ["sha256"])
    (publisher.path / "targets" / f"{info.hashes['sha256']}.{info.path}").write_bytes(WHEEL)
    (publisher.path / "metadata" / "root-1.pem").write_text("left here by a careless operator\n")
    Repository(publisher.path).publish(KeyRing([publisher.keys]), publisher.times, {info.path: info})
    return publisher


@pytest.fixture
def service(publisher: Publisher, tmp_path: Path) -> Iterator[HttpService]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    metrics = MinerMetrics()
    routes = Software(publisher.path, count=metrics.count_blob_bytes).routes
    service = HttpService(create_app(FakeView(tmp_path / "view"), Log(), metrics, further=routes))
    asyncio.run_coroutine_threadsafe(service.start(), loop).result(WAIT_S)
    yield service
    asyncio.run_coroutine_threadsafe(service.stop(), loop).result(WAIT_S)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def test_board_refreshes_and_resumes_from_a_miner(publisher: Publisher, service: HttpService, tmp_path: Path) -> None:
    url = f"http://{service.host}:{service.port}{PREFIX}"
    anchor, time_s = publisher.anchor.read_bytes(), SystemClock().time_s()
    mirror = Mirror(tmp_path / "board", anchor, HttpFiles(), [url], time_s=time_s)
    mirror.refresh()
    target = mirror.trusted.target("wheel-1-py3-none-any.whl")
    assert mirror.missing_bytes([target]) == len(WHEEL)
    mirror.path(target).write_bytes(WHEEL[:300_001])
    assert mirror.missing_bytes([target]) == len(WHEEL) - 300_001
    assert mirror.fetch(target, timeout_s=WAIT_S).read_bytes() == WHEEL
    mirror.keep_only([])
    assert not mirror.path(target).exists()
    at_hand = tmp_path / "board" / "wheels" / target.name
    at_hand.parent.mkdir()
    at_hand.write_bytes(WHEEL[::-1])  # the name and the length of the wheel, not its content
    assert mirror.fetch(target, timeout_s=WAIT_S).read_bytes() == WHEEL
    mirror.keep_only([])
    at_hand.write_bytes(WHEEL)
    (publisher.path / "targets").rename(tmp_path / "gone")
    assert mirror.fetch(target, timeout_s=WAIT_S).read_bytes() == WHEEL


@pytest.mark.parametrize(
    "name",
    [
        "metadata/root-1.pem",
        "metadata/9.root.json",
        "metadata/..%2F..%2Fkeys%2Froot-1.pem",
        "metadata/01.root.json",
        "targets/..%2Fmetadata%2Froot-1.pem",
        f"targets/{'0' * 64}.wheel.whl",
        "targets/wheel.whl",
        "staged.json",
    ],
)
def test_nothing_else_is_served(service: HttpService, name: str) -> None:
    connection = http.client.HTTPConnection(service.host, service.port, timeout=WAIT_S)
    connection.request("GET", f"{PREFIX}/{name}")
    assert connection.getresponse().status == 404
    connection.close()
