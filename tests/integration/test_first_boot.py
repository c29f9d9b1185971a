"""A board alone with its claim, as a real process: what it waits for, what it says, that it never enrols twice."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from starlette.applications import Starlette
from starlette.testclient import TestClient

from coordinator.broker.ports import free_port
from coordinator.enrolment.config import EnrolmentConfig
from coordinator.enrolment.records import MemberStatus, Refusal
from coordinator.enrolment.server import read_waited
from edge_sdk.adapters.durable_files import PRIVATE_MODE
from edge_sdk.adapters.enrolment import Wait, certificate_life
from edge_sdk.adapters.failpoints import VARIABLE
from edge_sdk.adapters.keys import fingerprint, load_signer
from edge_sdk.adapters.system_clock import OFFSET_VARIABLE, SystemClock
from edge_sdk.protocol import cose, wire
from edge_sdk.protocol.ids import ChainId, DeviceId
from edge_sdk.protocol.messages import Domain, Status
from tests.support.device_process import ROOT, wait_until
from tests.support.registrar import D1, Site, make_settings, running_site
from tests.support.serving import CHAIN, TASK

WAIT_S = 60.0
ENROL_POINTS = ("enrol.key_made", "enrol.answered", "enrol.certificate_written")
ROTATION_POINTS = ("rotation.key_made", "rotation.answered", "rotation.key_moved")


def slow(value: str) -> Any:
    """A case of the full suite only: each starts several processes."""
    return pytest.param(value, marks=pytest.mark.slow)


@pytest.fixture
def config(tmp_path: Path) -> EnrolmentConfig:
    return make_settings(tmp_path)


@pytest.fixture
def site(config: EnrolmentConfig, tmp_path: Path) -> Iterator[Site]:
    with running_site(config, tmp_path) as site:
        yield site


class Board:
    """A board's folder and the process of its service."""

    def __init__(self, folder: Path, *, ca_file: Path, url: str, token: str, device_id: DeviceId = D1) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        (folder / "ca.pem").write_bytes(ca_file.read_bytes())
        self.put_claim(token)
        (folder / "device.toml").write_text(
            f'[device]\nid = "{device_id}"\ntask = "{TASK}"\ndata = "data.npz"\n'
            f'[enrolment]\nurl = "{url}"\nretry_s = 0.1\nretry_max_s = 0.2\n[[broker]]\nhost = "127.0.0.1"\nport = 1\n'
        )
        self._process: subprocess.Popen[bytes] | None = None

    def put_claim(self, token: str) -> None:
        (self.folder / "claim.txt").write_text(token + "\n")
        (self.folder / "claim.txt").chmod(PRIVATE_MODE)

    def command(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a device command to its end."""
        return subprocess.run(
            self._line(*words),
            env=self._environment(environment),
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    def boot(self, **environment: str) -> None:
        """Start the device's service."""
        with (self.folder / "log.jsonl").open("ab") as log:
            self._process = subprocess.Popen(
                self._line("run"), env=self._environment(environment), stdout=log, stderr=log
            )

    def stop(self, number: int = signal.SIGTERM) -> int:
        assert self._process is not None
        self._process.send_signal(number)
        return self._process.wait(WAIT_S)

    def kill(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self.stop(signal.SIGKILL)

    def log(self) -> str:
        return (self.folder / "log.jsonl").read_text()

    def status(self) -> dict[str, Any]:
        """What ``flchain device status`` prints."""
        done = self.command("status")
        assert done.returncode == 0, done.stderr
        document: dict[str, Any] = json.loads(done.stdout)
        return document

    def until_waiting_for(self, reason: str) -> None:
        path = self.folder / "enrolment.json"
        wait_until(lambda: path.exists() and reason in path.read_text(), WAIT_S, what=f"waiting for {reason}")

    def until_member(self) -> None:
        """The claim is gone only when everything else is on the disk."""
        wait_until(lambda: not (self.folder / "claim.txt").exists(), WAIT_S, what="enrolled")
        assert (self.folder / "cert.pem").exists()

    def _line(self, *words: str) -> list[str]:
        config = ["--config", str(self.folder / "device.toml")]
        return [sys.executable, "-m", "edge_sdk.entry", "device", words[0], *config, *words[1:]]

    def _environment(self, further: dict[str, str]) -> dict[str, str]:
        return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | further


@pytest.fixture
def boards() -> Iterator[list[Board]]:
    """Boards whose processes end with the test."""
    made: list[Board] = []
    yield made
    for board in made:
        board.kill()


@pytest.fixture
def board(site: Site, boards: list[Board]) -> Board:
    boards.append(Board(site.folder / "board", ca_file=site.folder / "ca.pem", url=site.url, token=site.claim()))
    return boards[0]


def shown(site: Site) -> tuple[dict[str, Any], str]:
    """What the registrar's page says, as JSON and as HTML."""
    client = TestClient(Starlette(routes=site.service.routes))
    document: dict[str, Any] = client.get("/v1/enrolment").json()
    return document, client.get("/enrolment").text


def test_server_that_is_not_there_yet(tmp_path: Path, config: EnrolmentConfig, boards: list[Board]) -> None:
    config = replace(config, port=free_port())
    url = f"https://127.0.0.1:{config.port}"
    with running_site(replace(config, port=0), tmp_path) as early:
        token = early.claim()
    board = Board(tmp_path / "board", ca_file=tmp_path / "ca.pem", url=url, token=token)
    boards.append(board)
    board.boot()
    board.until_waiting_for("unreachable")
    assert board.status()["enrolment"]["waits_for"] == "unreachable"
    doctor = board.command("doctor").stdout
    assert "fail  enrolment: waits after" in doctor
    assert "-> check the network, [enrolment] url" in doctor
    with running_site(config, tmp_path) as site:
        board.until_member()
        document, page = shown(site)
    assert "not enrolled, next try in" in board.log()
    (device,) = document["devices"]
    assert (device["device"], device["status"], device["serial"]) == ("d1", "enrolled", 1)
    assert device["waited"].startswith("unreachable=")
    assert "unreachable" in page
    assert not (board.folder / "enrolment.json").exists()


def test_service_manager_hears_of_a_board_that_waits(tmp_path: Path, site: Site, board: Board) -> None:
    """Type=notify: without READY systemd would end a board that waits for its network, without WATCHDOG kill it."""
    board.put_claim("guess")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(WAIT_S)
        board.boot(NOTIFY_SOCKET=str(tmp_path / "notify"), WATCHDOG_USEC="200000")
        heard = [manager.recv(1_024).decode() for _ in range(4)]
    assert heard[0] == "READY=1\nSTATUS=waits for its enrolment: refused: unknown-claim"
    assert "WATCHDOG=1" in heard[1:]


def test_clock_before_the_build_waits_until_it_is_set(site: Site, board: Board) -> None:
    document, page = shown(site)
    assert document["expected"][0]["device"] == "d1"
    assert "not seen yet" in page
    board.boot(**{OFFSET_VARIABLE: str(-10 * 365 * 86_400)})
    board.until_waiting_for("clock")
    assert board.stop() == 0, "a stop while waiting is a clean one"
    assert "the clock was never set" in board.log()
    assert [claim.used_s for claim in site.service.store.claims()] == [None]
    life = certificate_life(board.folder / "ca.pem")
    assert life is not None
    behind_s = SystemClock().time_s() - life[0] + 3  # passes the authority's first second 3 s after it started
    board.boot(**{OFFSET_VARIABLE: str(-behind_s)})
    board.until_member()
    (device,) = shown(site)[0]["devices"]
    assert "clock=" in device["waited"]


@pytest.mark.parametrize("case", [Refusal.EXPIRED_CLAIM, slow(Refusal.OTHER_DEVICE), slow(Refusal.UNKNOWN_CLAIM)])
def test_refused_board_waits_for_a_new_claim(site: Site, board: Board, case: Refusal) -> None:
    store, now_s = site.service.store, SystemClock().time_s()
    match case:
        case Refusal.EXPIRED_CLAIM:
            board.put_claim(store.issue_claim(D1, now_s=now_s - 100, ttl_s=50))
        case Refusal.OTHER_DEVICE:
            board.put_claim(site.claim(DeviceId("d2")))
        case _:
            board.put_claim("guess")
    board.boot()
    board.until_waiting_for(f"refused: {case.value}")
    assert not (board.folder / "cert.pem").exists()
    assert store.member(D1) is None
    document, page = shown(site)
    (refused,) = [row for row in document["refused"] if row["device"] == "d1"]
    assert refused["reason"] == case.value
    assert case.value in page
    assert site.metrics.value("flchain_enrolment_requests_total", result=case.value) >= 1
    board.put_claim(site.claim())
    board.until_member()
    assert shown(site)[0]["refused"] == []
    assert "waited" in board.log() or case.value in board.log()


@pytest.mark.parametrize("point", [*map(slow, ENROL_POINTS[:-1]), ENROL_POINTS[-1]])
def test_power_cut_in_the_middle_of_an_enrolment(site: Site, board: Board, point: str) -> None:
    """One key, one certificate, one serial, whatever was cut off."""
    board.boot(**{VARIABLE: point})
    assert board._process is not None
    assert board._process.wait(WAIT_S) == -signal.SIGKILL
    board.boot()
    board.until_member()
    member = site.service.store.member(D1)
    assert member is not None
    assert (member.status, member.serial) == (MemberStatus.ENROLLED, 1)
    assert (board.folder / "cert.pem").read_bytes() == member.certificate_pem
    assert load_signer(board.folder / "key.pem").public_key == member.key
    assert len(site.log.transactions) == 1
    assert site.service.store.alarms() == []


def test_member_with_a_claim_left_over_works_on_without_the_registrar(
    tmp_path: Path, config: EnrolmentConfig, boards: list[Board]
) -> None:
    """The cut came between certificate and claim: once more the same answer, and no waiting where nobody answers."""
    with running_site(config, tmp_path) as site:
        token = site.claim()
        board = Board(tmp_path / "board", ca_file=tmp_path / "ca.pem", url=site.url, token=token)
        boards.append(board)
        board.boot()
        board.until_member()
        board.stop()
        certificate = (board.folder / "cert.pem").read_bytes()
        board.put_claim(token)
        board.boot()
        board.until_member()
        board.stop()
        assert (board.folder / "cert.pem").read_bytes() == certificate
        assert len(site.log.transactions) == 1
        assert site.service.store.alarms() == []
    board.put_claim(token)
    seen = len(board.log())
    board.boot()
    wait_until(lambda: "going on with the present certificate" in board.log()[seen:], WAIT_S, what="it goes on")
    wait_until(lambda: "session" in board.log()[seen:], WAIT_S, what="it looks for its broker")
    assert board.stop() == 0


def test_copied_card_holds_both_boards_until_the_operator_releases_one(
    site: Site, board: Board, boards: list[Board]
) -> None:
    """The same seed on two cards: each board makes a key of its own, and the claim comes twice."""
    claim = (board.folder / "claim.txt").read_text().strip()
    copy = Board(site.folder / "copy", ca_file=site.folder / "ca.pem", url=site.url, token=claim)
    boards.append(copy)
    board.boot()
    board.until_member()
    copy.boot()
    copy.until_waiting_for("refused: reused-claim")
    store = site.service.store
    member = store.member(D1)
    assert member is not None
    assert member.status is MemberStatus.HELD
    crl = x509.load_pem_x509_crl((site.folder / "crl.pem").read_bytes())
    assert [entry.serial_number for entry in crl] == [member.certificate_number]
    document, page = shown(site)
    assert [(row["kind"], row["device"]) for row in document["alarms"]] == [("reused-claim", "d1")]
    assert '<tr class="alarm"><td>d1</td><td>reused-claim</td>' in page
    wait_until(lambda: site.metrics.value("flchain_enrolment_alarms") == 1, WAIT_S, what="gauge of alarms")
    wait_until(lambda: site.log.devices[D1].revoked, WAIT_S, what="held on the ledger")
    assert fingerprint(member.key) == board.status()["key"]
    assert copy.status()["key"] != board.status()["key"]

    released = store.release(D1, now_s=SystemClock().time_s())
    assert released is not None
    site.loop.call_soon_threadsafe(site.service.registrar.wake)
    wait_until(lambda: not site.log.devices[D1].revoked, WAIT_S, what="back on the ledger")
    assert (site.log.devices[D1].serial, site.log.devices[D1].key) == (2, member.key)
    copy.until_waiting_for("refused: unknown-claim")  # it goes on asking, and holds nobody any more
    again = store.member(D1)
    assert again is not None
    assert again.status is MemberStatus.ENROLLED
    wait_until(lambda: site.metrics.value("flchain_enrolment_alarms") == 0, WAIT_S, what="alarm is cleared")


def test_equivocation_on_the_ledger_holds_the_device(site: Site, board: Board) -> None:
    """Two boards with one key sign different updates with one number: the ledger's evidence reaches the registrar."""
    board.boot()
    board.until_member()
    view = site.log.devices[D1]
    site.log.devices[D1] = replace(view, equivocated=True)
    wait_until(lambda: site.log.devices[D1].revoked, WAIT_S, what="held on the ledger")
    (alarm,) = site.service.store.alarms()
    assert alarm.kind is Refusal.CLONED_KEY
    board.stop()
    board.put_claim(site.claim())
    done = board.command("enrol")
    assert done.returncode == 1
    assert "cloned-key" in done.stderr
    done = board.command("enrol", "--new-key")
    assert done.returncode == 0, done.stderr
    assert site.log.devices[D1].key != view.key


def test_alternating_sessions_hold_the_device(site: Site, board: Board) -> None:
    """Two boards with one key throw each other out of the broker; their births, as the registrar's miner hears them."""
    board.boot()
    board.until_member()
    board.stop()
    signer, key = load_signer(board.folder / "key.pem"), site.log.devices[D1].key

    def hear(session: int, *, sender: str = D1, chain_id: ChainId = CHAIN) -> None:
        status = Status(sender=sender, session=session, online=True, installed_version=0, note="client <9>")
        envelope = cose.sign(
            wire.to_bytes(status), signer=signer, domain=Domain.STATUS, chain_id=chain_id, sender=sender
        )
        site.loop.call_soon_threadsafe(site.service.observe_status, D1, envelope)

    for at in range(4):  # of another chain, or in another's name: proves nothing
        hear(1_000 - at, chain_id=ChainId("another"))
        hear(1_000 - at, sender="d2")
    for at in range(4):
        hear(2**21 + at)
        hear(2**20 + at)
    wait_until(lambda: site.log.devices[D1].revoked, WAIT_S, what="held on the ledger")
    (alarm,) = site.service.store.alarms()
    assert (alarm.kind, alarm.count) == (Refusal.CLONED_KEY, 1)
    assert "began after session" in alarm.note
    document, page = shown(site)
    assert document["devices"][0]["software"] == "client <9>"  # what a staged upgrade is watched by
    assert "client &lt;9&gt;" in page
    assert site.log.devices[D1].key == key


def test_running_board_renews_at_two_thirds_of_its_certificates_life(site: Site, board: Board) -> None:
    """Sixty days: after thirty-nine it asks nobody, after forty-one for the next one - under the same key."""
    board.boot()
    board.until_member()
    board.stop()
    first = (board.folder / "cert.pem").read_bytes()
    day_s = 86_400
    board.boot(**{OFFSET_VARIABLE: str(41 * day_s)})
    wait_until(lambda: (board.folder / "cert.pem").read_bytes() != first, WAIT_S, what="renewed")
    board.stop()
    member = site.service.store.member(D1)
    assert member is not None
    assert (member.serial, member.certificate_pem) == (1, (board.folder / "cert.pem").read_bytes())
    assert len(site.log.transactions) == 1, "the ledger knows the key already"
    site.service.store.revoke(D1, now_s=SystemClock().time_s())
    seen = len(board.log())
    board.boot(**{OFFSET_VARIABLE: str(41 * day_s)})
    wait_until(lambda: "certificate not renewed" in board.log()[seen:], WAIT_S, what="a revoked board is refused")
    assert "not-enrolled" in board.log()[seen:]


@pytest.mark.parametrize("point", [slow(""), ROTATION_POINTS[0], *map(slow, ROTATION_POINTS[1:])])
def test_key_is_replaced_whatever_is_cut_off(site: Site, board: Board, point: str) -> None:
    board.boot()
    board.until_member()
    board.stop()
    old = site.log.devices[D1].key
    done = board.command("rotate-key", **{VARIABLE: point})
    assert done.returncode == (-signal.SIGKILL if point else 0), done.stderr
    if point:
        assert board.command("rotate-key").returncode == 0
    new = load_signer(board.folder / "key.pem").public_key
    assert new != old
    assert (site.log.devices[D1].key, site.log.devices[D1].serial) == (new, 2)
    certificate = x509.load_pem_x509_certificate((board.folder / "cert.pem").read_bytes())
    member = site.service.store.member(D1)
    assert member is not None
    assert certificate.serial_number == member.certificate_number
    assert not list(board.folder.glob("*.next"))
    assert board.command("rotate-key").returncode == 0, "and again"


def test_failpoints_of_this_way_are_all_tried() -> None:
    sources = [ROOT / "edge_sdk" / "adapters" / name for name in ("enrolment.py", "key_rotation.py")]
    found = [name for path in sources for name in re.findall(r'failpoints\.hit\("([^"]+)"\)', path.read_text())]
    assert sorted(found) == sorted([*ENROL_POINTS, *ROTATION_POINTS])


def test_what_a_board_says_of_itself_is_bounded() -> None:
    assert read_waited("clock=312,unreachable=40") == {Wait.CLOCK: 312, Wait.UNREACHABLE: 40}
    for text in ("", "clock=x", "battery=5", "clock=1234567890123", "<b>=1", "x" * 10_000):
        assert read_waited(text) == {}
