"""Small adapters: keys, run record, durable files, notifications, inbox."""

import json
import os
import socket
import stat
from pathlib import Path

import pytest

from edge_sdk.adapters.durable_files import read_file, write_file
from edge_sdk.adapters.keys import create_key, load_signer
from edge_sdk.adapters.mqtt import Arrived
from edge_sdk.adapters.run_record import RunRecord
from edge_sdk.adapters.system_clock import OFFSET_VARIABLE, SystemClock
from edge_sdk.adapters.watchdog import Watchdog
from edge_sdk.device.inbox import MAILBOX_BYTES_MAX, Inbox, Mailbox, Stop
from edge_sdk.errors import ConfigError, RemoteProtocolError, StoreError
from edge_sdk.protocol import cose, topics
from edge_sdk.protocol.ids import ChainId
from edge_sdk.protocol.messages import Algorithm, Domain, Reason
from edge_sdk.protocol.wire import to_bytes
from tests.support.disks import allow_writes, forbid_writes
from tests.support.fake_miners import CHAIN, MINERS, TASK
from tests.support.participant import CHAIN_OF, DEVICE, GENESIS, KEYS, announcement, outcome, receipt, resume, root


@pytest.mark.parametrize("algorithm", list(Algorithm))
def test_key_survives_its_file(tmp_path: Path, algorithm: Algorithm) -> None:
    path = tmp_path / "key.pem"
    made = create_key(path, algorithm)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    loaded = load_signer(path)
    assert loaded.public_key == made.public_key
    envelope = cose.sign(b"x", signer=loaded, domain=Domain.STATUS, chain_id=ChainId("c"), sender="d1")
    assert cose.verify(envelope, key=made.public_key, domain=Domain.STATUS, chain_id=ChainId("c")) == b"x"
    with pytest.raises(StoreError, match="never overwritten"):
        create_key(path, algorithm)


def test_key_that_others_may_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    create_key(path, Algorithm.EDDSA)
    path.chmod(0o640)
    with pytest.raises(StoreError, match="chmod 600"):
        load_signer(path)
    path.chmod(0o600)
    path.write_text("-----BEGIN NONSENSE-----")
    with pytest.raises(StoreError, match="PEM"):
        load_signer(path)
    with pytest.raises(StoreError, match="no key"):
        load_signer(tmp_path / "other.pem")


def test_durable_file_replaces_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_file(path, b"one")
    write_file(path, b"two", mode=0o600)
    assert read_file(path, bytes_max=3) == b"two"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
    with pytest.raises(StoreError, match="longer"):
        read_file(path, bytes_max=2)
    assert read_file(tmp_path / "none", bytes_max=2) is None
    with pytest.raises(StoreError):
        write_file(tmp_path / "none" / "file", b"")


class HalfJoule:
    """A meter that gains half a joule at each look."""

    from edge_sdk.ports import Scope
    from edge_sdk.protocol.messages import EnergyQuality

    scope = Scope.BOARD
    quality = EnergyQuality.MEASURED

    def __init__(self) -> None:
        self.value_j = 0.0

    def energy_j(self) -> float:
        self.value_j += 0.5
        return self.value_j


def test_run_record_lines(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    record = RunRecord(path, clock=SystemClock(), meter=HalfJoule())
    with record.measure("train", base_version=3) as span:
        span.bytes_count = 7
        span.ids["steps"] = 4
    with pytest.raises(KeyError), record.measure("fetch"):
        raise KeyError
    record.mark("publish", bytes_count=2, update="ab")
    record.close()
    record.mark("late")
    assert record.lost_lines == 1
    train, fetch, publish = map(json.loads, path.read_text().splitlines())
    assert train["duration_ns"] >= 0
    assert {key: train[key] for key in ("phase", "bytes", "energy_mj", "energy_quality", "base_version", "steps")} == {
        "phase": "train",
        "bytes": 7,
        "energy_mj": 500,
        "energy_quality": "measured",
        "base_version": 3,
        "steps": 4,
    }
    assert fetch["failed"] is True
    assert publish["energy_mj"] is None


def test_run_record_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    record = RunRecord(path, clock=SystemClock(), bytes_max=1_000)
    for number in range(100):
        record.mark("x", number=number)
    record.close()
    assert path.stat().st_size <= 1_000
    assert sum(entry.stat().st_size for entry in tmp_path.iterdir()) <= 2_000
    assert json.loads(path.read_text().splitlines()[-1])["number"] == 99


def test_notifications_reach_systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address)
        manager.settimeout(2)
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        monkeypatch.setenv("WATCHDOG_USEC", "60000000")
        monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
        watchdog = Watchdog()
        assert watchdog.interval_s == 30.0
        watchdog.ready("up")
        watchdog.alive()
        watchdog.stopping()
        assert [manager.recv(100) for _ in range(3)] == [b"READY=1\nSTATUS=up", b"WATCHDOG=1", b"STOPPING=1"]
    watchdog.alive()  # the manager is gone: no error


def test_no_systemd_no_watchdog(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"):
        monkeypatch.delenv(name, raising=False)
    watchdog = Watchdog()
    watchdog.ready("up")
    assert watchdog.interval_s is None


def test_mailbox_is_bounded_by_bytes() -> None:
    mailbox = Mailbox()
    message = Arrived("t", bytes(MAILBOX_BYTES_MAX // 2), is_retained=False)
    for _ in range(3):
        mailbox.put(message)
    mailbox.put(Stop())
    assert mailbox.dropped == 1
    assert [mailbox.get(0) for _ in range(4)] == [message, message, Stop(), None]
    mailbox.put(message)  # what was taken makes room
    assert mailbox.dropped == 1


# --- inbox ---


def arrived(topic: str, payload: bytes) -> Arrived:
    return Arrived(topic, payload, is_retained=False)


RECEIPT = receipt(root(1), 1, MINERS[0])


@pytest.fixture
def inbox() -> Inbox:
    return Inbox(GENESIS, DEVICE)


def signed(payload: bytes, domain: Domain, miner: int = 0) -> bytes:
    return CHAIN_OF.sign(MINERS[miner], payload, domain)


def test_every_kind_of_message(inbox: Inbox) -> None:
    ours = announcement(1)
    asked = resume(root(1), (0, 1))
    ended = outcome(root(1), 1, 0)
    cases = [
        (topics.receipt(TASK, DEVICE), signed(to_bytes(RECEIPT), Domain.RECEIPT), RECEIPT),
        (topics.resume(TASK, DEVICE), signed(to_bytes(asked), Domain.RESUME), asked),
        (topics.current(TASK, MINERS[0]), signed(to_bytes(ours), Domain.ANNOUNCEMENT), ours),
        (topics.outcome(TASK, DEVICE), to_bytes(ended), ended),
    ]
    for topic, payload, content in cases:
        incoming = inbox.read(arrived(topic, payload))
        assert incoming is not None
        assert incoming.content == content
    assert inbox.read(arrived(topics.cmd(TASK, DEVICE), b"anything")) is None


@pytest.mark.parametrize(
    ("topic", "payload", "reason"),
    [
        (topics.receipt(TASK, DEVICE), b"", Reason.MALFORMED),
        (topics.receipt(TASK, DEVICE), b"\xd2" * 1_000, Reason.MALFORMED),
        ("fl/v1/other/down/d1/receipt", signed(to_bytes(RECEIPT), Domain.RECEIPT), Reason.WRONG_TOPIC),
        ("fl/v1/digits/down/d2/receipt", signed(to_bytes(RECEIPT), Domain.RECEIPT), Reason.WRONG_TOPIC),
        ("no/topic", b"", Reason.MALFORMED),
        # A resume cannot be replayed as a receipt, nor one miner's word be sent as another's.
        (topics.receipt(TASK, DEVICE), signed(to_bytes(RECEIPT), Domain.RESUME), Reason.BAD_SIGNATURE),
        (topics.receipt(TASK, DEVICE), signed(to_bytes(RECEIPT), Domain.RECEIPT, miner=1), Reason.WRONG_TOPIC),
        (
            topics.current(TASK, MINERS[1]),
            signed(to_bytes(announcement(1)), Domain.ANNOUNCEMENT),
            Reason.WRONG_TOPIC,
        ),
        (
            topics.receipt(TASK, DEVICE),
            cose.sign(
                to_bytes(RECEIPT),
                signer=KEYS.registrar,
                domain=Domain.RECEIPT,
                chain_id=CHAIN,
                sender=MINERS[0],
            ),
            Reason.BAD_SIGNATURE,
        ),
        (
            topics.receipt(TASK, DEVICE),
            cose.sign(
                to_bytes(RECEIPT), signer=KEYS.registrar, domain=Domain.RECEIPT, chain_id=CHAIN, sender="stranger"
            ),
            Reason.UNKNOWN_MINER,
        ),
        (
            topics.receipt(TASK, DEVICE),
            cose.sign(
                to_bytes(RECEIPT),
                signer=KEYS.signers[MINERS[0]],
                domain=Domain.RECEIPT,
                chain_id=ChainId("other"),
                sender=MINERS[0],
            ),
            Reason.BAD_SIGNATURE,
        ),
    ],
)
def test_refused_messages(inbox: Inbox, topic: str, payload: bytes, reason: Reason) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        inbox.read(arrived(topic, payload))
    assert caught.value.reason is reason


def test_a_shifted_clock_moves_the_calendar_only(monkeypatch: pytest.MonkeyPatch) -> None:
    right = SystemClock()
    monkeypatch.setenv(OFFSET_VARIABLE, "-3600")
    shifted = SystemClock()
    assert -3601 <= shifted.time_s() - right.time_s() <= -3599
    assert abs(shifted.monotonic_ns() - right.monotonic_ns()) < 10**9
    monkeypatch.setenv(OFFSET_VARIABLE, "an hour")
    with pytest.raises(ConfigError, match="FLCHAIN_CLOCK_OFFSET_S = 'an hour': expected whole seconds"):
        SystemClock()


def test_a_full_disk_costs_lines_of_the_record_and_nothing_else(tmp_path: Path) -> None:
    record = RunRecord(tmp_path / "run.jsonl", clock=SystemClock())
    forbid_writes(os.getpid())
    try:
        record.mark("lost")
        record.close()
    finally:
        allow_writes(os.getpid())
    assert record.lost_lines == 2
    assert (tmp_path / "run.jsonl").read_text() == ""
