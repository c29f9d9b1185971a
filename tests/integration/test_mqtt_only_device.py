"""A board behind a firewall that lets MQTT through and nothing else, in a fleet of real miners.

No URL that the board is configured with answers, and the miners announce none that does. The artifact and the models
come in MQTT chunks, of which some are lost on the way.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import pytest

from edge_sdk.protocol.limits import CHUNK_DATA_BYTES_MAX
from tests.support.lossy_link import LossyLink
from tests.support.real_fleet import RealFleet, Setting

pytestmark = [pytest.mark.network, pytest.mark.usefixtures("mosquitto_path")]

DEVICE: Final = "device-01"
CLOSED: Final = "http://127.0.0.1:1"
LOST: Final = frozenset({1, 4})
"""Of all chunks that come to the board, counted from 0: in the middle of the first model, and in the next ones."""


def is_lost(topic: str, number: int) -> bool:
    return topic.endswith(f"/down/{DEVICE}/chunk") and number in LOST


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RealFleet, LossyLink]]:
    """A fleet whose only board reaches nothing but the broker; it has had updates merged."""
    fleet = RealFleet(tmp_path_factory.mktemp("mqtt-only"), Setting(devices=1))
    (device,) = fleet.devices.values()
    for miner in fleet.miners.values():
        change(miner.config, "[http]\n", f'[http]\npublic_url = "{CLOSED}"\n')
    change(device.config, json.dumps([miner.url for miner in fleet.miners.values()]), f'["{CLOSED}"]')
    link = LossyLink(fleet.fleet.broker.port, is_lost=is_lost)
    change(device.config, f"port = {fleet.fleet.broker.port}\n", f"port = {link.port}\n")
    with ExitStack() as stack:
        stack.enter_context(link.running())
        stack.enter_context(fleet)
        yield fleet, link
    assert fleet.processes_left() == []


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) == 1, (path, old)
    path.write_text(text.replace(old, new))


def phases(fleet: RealFleet, name: str) -> list[dict[str, Any]]:
    lines = (fleet.devices[DEVICE].folder / "run.jsonl").read_text().splitlines()
    return [phase for line in lines if line.endswith("}") and (phase := json.loads(line))["phase"] == name]


def test_models_come_in_chunks_and_updates_are_merged(site: tuple[RealFleet, LossyLink]) -> None:
    fleet, link = site
    fleet.until_merged_again(DEVICE)
    fleet.until(lambda: fleet.installed(DEVICE) >= 2, "certified models are installed")
    fleet.until(lambda: sum(link.lost.values()) == len(LOST), "chunks were lost")
    fleet.until_merged_again(DEVICE)  # and the models of the lost chunks came all the same
    fetched = phases(fleet, "fetch")
    assert min(line["bytes"] for line in fetched if "failed" not in line) > CHUNK_DATA_BYTES_MAX
    assert not any("failed" in line for line in fetched), fetched


def test_the_artifact_comes_in_chunks_before_the_first_model(site: tuple[RealFleet, LossyLink]) -> None:
    fleet, _ = site
    fleet.until_merged_again(DEVICE)
    arrived = phases(fleet, "fetch_artifact")[0]
    here = fleet.devices[DEVICE].folder / "artifact.flm"
    theirs = next(iter(fleet.miners.values())).folder / "artifact.flm"
    assert here.read_bytes() == theirs.read_bytes()
    assert "failed" not in arrived
    assert arrived["bytes"] == here.stat().st_size


def test_each_byte_of_a_model_comes_once(site: tuple[RealFleet, LossyLink]) -> None:
    """One miner answers, not four; what was lost is asked for again, alone."""
    fleet, link = site
    fleet.until_merged_again(DEVICE)
    fetched = phases(fleet, "fetch")
    chunks_per_model = -(-fetched[0]["bytes"] // CHUNK_DATA_BYTES_MAX)
    (arrived,) = (count for topic, count in link.arrived.items() if topic.endswith("/chunk"))
    # Of a lost chunk the responsible miner sends the rest again; a model that is on its way is not in the record yet.
    # One more is the artifact's.
    assert arrived <= (len(fetched) + 1 + len(LOST)) * chunks_per_model + 1


@pytest.mark.parametrize("is_damaged", [False, True], ids=["lost", "damaged"])
def test_an_artifact_that_is_not_there_comes_again(site: tuple[RealFleet, LossyLink], *, is_damaged: bool) -> None:
    fleet, _ = site
    fleet.until_merged_again(DEVICE)
    path = fleet.devices[DEVICE].folder / "artifact.flm"
    before = path.read_bytes()
    if is_damaged:
        path.write_bytes(before[:-1] + b"!")
    else:
        path.unlink()
    fleet.until(lambda: path.exists() and path.read_bytes() == before, "the artifact is there again")
    status, findings = fleet.doctor(DEVICE)
    assert f"ok    artifact: {path}, signed by nobody" in findings
    assert status == 0, findings


def test_an_artifact_lost_while_the_board_was_off_comes_before_the_job(site: tuple[RealFleet, LossyLink]) -> None:
    """Nothing is on its way and the newest model is installed: no newer one comes that the artifact could come with."""
    fleet, _ = site
    fleet.die_at(DEVICE, "device.after_switch")
    path = fleet.devices[DEVICE].folder / "artifact.flm"
    path.unlink()
    fleet.start(DEVICE)
    fleet.until(path.exists, "the artifact is there again")
    fleet.until_merged_again(DEVICE)


def test_the_books_balance(site: tuple[RealFleet, LossyLink]) -> None:
    fleet, _ = site
    fleet.stop()
    books = fleet.check_books()
    assert books.audit.merged >= 3
    assert books.audit.certificates_verified >= 2
