"""From a claim to a merged update, and what a copied card does to it: the real processes, mosquitto with mutual TLS.

The commands of the board are those of its units (``ExecStart``), with its own folder in place of /var/lib/flchain.
"""

from __future__ import annotations

import configparser
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import firmware_profiles
from tests.support.deployment import WAIT_S, Deployment, rows
from tests.support.device_process import ROOT, wait_until

pytestmark = [pytest.mark.network, pytest.mark.slow, pytest.mark.timeout(1800)]

UNITS = Path(firmware_profiles.__file__).parent / "systemd"
PROGRAM = "/opt/flchain/current/bin/flchain"
STATE = "/var/lib/flchain"


def exec_start(unit: str, state: Path) -> list[str]:
    """Command line of a unit, with this interpreter and that folder."""
    parser = configparser.ConfigParser(strict=False, interpolation=None, delimiters=("=",))
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(UNITS / unit, encoding="utf-8")
    words = shlex.split(parser["Service"]["ExecStart"])
    assert words[0] == PROGRAM
    return [sys.executable, "-m", "edge_sdk.entry", *(word.replace(STATE, str(state)) for word in words[1:])]


class Card:
    """A board's state folder, and the process of its unit."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with (self.folder / "service.log").open("ab") as log:
            environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
            line = exec_start("flchain-device.service", self.folder)
            self._process = subprocess.Popen(line, env=environment, stdout=log, stderr=log)

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(60)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def log(self) -> str:
        return (self.folder / "service.log").read_text()

    def installed(self) -> int:
        found = rows(self.folder / "state.sqlite3", "SELECT coalesce(max(version), -1) FROM installs")
        return int(found[0][0]) if found else -1

    def merged(self) -> int:
        found = rows(self.folder / "state.sqlite3", "SELECT count(*) FROM updates WHERE verdict = 1")
        return int(found[0][0]) if found else 0


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory, mosquitto_path: Path) -> Iterator[Deployment]:
    running = Deployment(tmp_path_factory.mktemp("d") / "fleet", mosquitto_path)
    try:
        running.start()
        yield running
    finally:
        running.stop()


@pytest.fixture
def cards() -> Iterator[list[Card]]:
    made: list[Card] = []
    yield made
    for card in made:
        card.stop()


def boot(deployment: Deployment, cards: list[Card], folder: Path, name: str) -> Card:
    """A new board with a claim, switched on."""
    deployment.claim(name, folder)
    card = Card(folder)
    cards.append(card)
    card.start()
    return card


def until_merged(card: Card, count: int) -> None:
    def is_done() -> bool:
        assert card.is_running(), card.log()[-3_000:]
        return card.merged() >= count

    wait_until(is_done, WAIT_S, what=f"{count} updates are merged: {card.log()[-1_500:]}")


def test_first_boot_leads_to_a_merged_update_and_a_copied_card_holds_both_boards(
    deployment: Deployment, cards: list[Card], tmp_path: Path
) -> None:
    assert deployment.page()["devices"] == []
    board = boot(deployment, cards, tmp_path / "board", "board-1")
    until_merged(board, 1)
    assert not (board.folder / "claim.txt").exists()
    assert (board.folder / "key.pem").stat().st_mode & 0o777 == 0o600
    wait_until(lambda: board.installed() >= 1, WAIT_S, what="the next certified model is installed")
    assert deployment.status_of("board-1") == "enrolled"
    assert deployment.metric("flchain_enrolment_alarms") == 0

    # Somebody copies the card of the enrolled board: one key, one certificate, two boards.
    board.stop()
    copy = Card(tmp_path / "copy")
    shutil.copytree(board.folder, copy.folder)
    cards.append(copy)
    board.start()
    copy.start()
    wait_until(lambda: deployment.status_of("board-1") == "held", WAIT_S, what="the copy is found")
    (alarm,) = deployment.page()["alarms"]
    assert (alarm["device"], alarm["kind"]) == ("board-1", "cloned-key")
    assert "cloned-key" in deployment.page_text()
    assert "two boards with one key: device held" in deployment.log("miner")
    wait_until(lambda: deployment.metric("flchain_enrolment_alarms") == 1, WAIT_S, what="the gauge of alarms")
    listed = deployment.registry("list")
    assert "ALARM" in listed.stdout
    wait_until(lambda: deployment.page()["devices"][0]["on_ledger"], WAIT_S, what="the ledger shows the revocation")
    board.stop()
    copy.stop()
    seen = len(copy.log())
    copy.start()  # the one that the broker let in last held an open session, silenced by the access list
    wait_until(lambda: " ended: " in copy.log()[seen:], WAIT_S, what="the broker shuts it out")
    assert "connected to" not in copy.log()[seen:]
    copy.stop()
    released = deployment.registry("release", "board-1", "--key", "00000000")
    assert released.returncode == 2, "a key on two boards comes back on none"

    # The operator finds the true board and gives it a new claim: it makes a new key and goes on.
    claim = tmp_path / "again.claim"
    assert deployment.registry("claim", "board-1", "--out", str(claim)).returncode == 0
    shutil.copy(claim, board.folder / "claim.txt")
    refused = deployment.command("device", "enrol", "--config", str(board.folder / "device.toml"))
    assert refused.returncode == 1
    assert "cloned-key" in refused.stderr
    done = deployment.command("device", "enrol", "--new-key", "--config", str(board.folder / "device.toml"))
    assert done.returncode == 0, done.stderr
    before = board.merged()
    board.start()
    until_merged(board, before + 1)
    assert deployment.status_of("board-1") == "enrolled"
    assert deployment.page()["alarms"] == []


def test_copied_claim_holds_the_first_board_until_it_is_released(
    deployment: Deployment, cards: list[Card], tmp_path: Path
) -> None:
    """The seed itself was copied before the first boot: the second board brings another key."""
    deployment.claim("board-2", tmp_path / "board")
    shutil.copytree(tmp_path / "board", tmp_path / "copy")
    board, copy = Card(tmp_path / "board"), Card(tmp_path / "copy")
    cards += [board, copy]
    board.start()
    until_merged(board, 1)
    copy.start()
    wait_until(lambda: deployment.status_of("board-2") == "held", WAIT_S, what="the second use of the claim is found")
    wait_until((copy.folder / "enrolment.json").exists, WAIT_S, what="the copy says why it waits")
    assert "reused-claim" in (copy.folder / "enrolment.json").read_text()
    copy.stop()
    status = deployment.command("device", "status", "--config", str(board.folder / "device.toml"))
    key = json.loads(status.stdout)["key"]
    wrong = deployment.registry("release", "board-2", "--key", "0" * 16)
    assert wrong.returncode == 2
    released = deployment.registry("release", "board-2", "--key", key[:12])
    assert released.returncode == 0, released.stderr
    before = board.merged()
    until_merged(board, before + 1)
    assert deployment.status_of("board-2") == "enrolled"
