"""A board behind a firewall that lets MQTT through and nothing else, in a fleet of real miners.

No URL that the board is configured with answers, and the miners announce none that does. Models come in MQTT chunks,
of which some are lost on the way; the artifact is on the board from the beginning.
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
    artifact = next(iter(fleet.miners.values())).folder / "artifact.flm"
    (device.folder / artifact.name).write_bytes(artifact.read_bytes())
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
    assert not phases(fleet, "fetch_artifact")


def test_each_byte_of_a_model_comes_once(site: tuple[RealFleet, LossyLink]) -> None:
    """One miner answers, not four; what was lost is asked for again, alone."""
    fleet, link = site
    fleet.until_merged_again(DEVICE)
    fetched = phases(fleet, "fetch")
    chunks_per_model = -(-fetched[0]["bytes"] // CHUNK_DATA_BYTES_MAX)
    (arrived,) = (count for topic, count in link.arrived.items() if topic.endswith("/chunk"))
    # Of a lost chunk the responsible miner sends the rest again; a model that is on its way is not in the record yet.
    assert arrived <= (len(fetched) + 1 + len(LOST)) * chunks_per_model


def test_doctor_tells_a_board_without_an_artifact_how_to_get_one(site: tuple[RealFleet, LossyLink]) -> None:
    fleet, _ = site
    status, findings = fleet.doctor(DEVICE)
    path = fleet.devices[DEVICE].folder / "artifact.flm"
    assert f"ok    artifact: {path}" in findings
    assert status == 0, findings
    away = path.rename(path.with_suffix(".away"))
    try:
        status, findings = fleet.doctor(DEVICE)
    finally:
        away.rename(path)
    assert status == 1
    assert f"fail  artifact: {path} is not there, and no configured miner answers over HTTP" in findings
    assert f"copy artifact.flm from the operator of a miner to {path}" in findings


def test_the_books_balance(site: tuple[RealFleet, LossyLink]) -> None:
    fleet, _ = site
    fleet.stop()
    books = fleet.check_books()
    assert books.audit.merged >= 3
    assert books.audit.certificates_verified >= 2
