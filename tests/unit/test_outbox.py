"""The outbox: one transaction per step, a durable sequence, and no silent repair."""

import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from edge_sdk.adapters.outbox import SCHEMA_VERSION, NewUpdate, Outbox
from edge_sdk.errors import CorruptStoreError, LocalProtocolError, NewerStateError, StoreError
from edge_sdk.protocol.ids import ChainId, DeviceId, Digest, MinerId
from edge_sdk.protocol.messages import Reason, Receipt, ReceiptStatus, Verdict


def open_outbox(path: Path, device: str = "d1") -> Outbox:
    return Outbox.open(path, device_id=DeviceId(device), chain_id=ChainId("c"), task="t")


def update(seq: int, *, base: int = 0, residual: bytes = b"r", blob: bytes = b"0123456789") -> NewUpdate:
    return NewUpdate(
        digest=Digest(bytes([seq]) * 32),
        seq=seq,
        base_version=base,
        expiry_height=100,
        envelope=b"envelope%d" % seq,
        blob=blob,
        created_s=1_000,
        residual=residual,
    )


def receipt(seq: int, miner: str, status: ReceiptStatus, reason: Reason = Reason.NONE) -> Receipt:
    return Receipt(
        miner_id=MinerId(miner),
        device_id=DeviceId("d1"),
        seq=seq,
        update_digest=Digest(bytes([seq]) * 32),
        status=status,
        reason=reason,
        height=7,
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.sqlite3"


def test_everything_survives_reopening(path: Path) -> None:
    outbox = open_outbox(path)
    outbox.store(update(1, base=4, residual=b"one"))
    outbox.store(update(2, base=5, residual=b"two"))
    outbox.save_receipt(receipt(1, "m1", ReceiptStatus.STORED), b"e")
    outbox.save_receipt(receipt(1, "m2", ReceiptStatus.REFUSED, Reason.QUOTA), b"e")
    outbox.record_install(5, Digest(b"\5" * 32), b"cert", now_s=1)
    outbox.close()
    outbox = open_outbox(path)
    first, second = outbox.rows()
    assert (first.seq, first.base_version, first.blob_bytes, first.envelope) == (1, 4, 10, b"envelope1")
    assert first.stored_by == {"m1"}
    assert first.refused_by == (("m2", Reason.QUOTA),)
    assert second.stored_by == frozenset()
    assert (outbox.next_seq, outbox.last_trained, outbox.version_floor) == (3, 5, 5)
    assert outbox.residual() == b"two"
    assert outbox.blob(first.digest, offset=3, size=4) == b"3456"
    assert outbox.blob(first.digest, offset=8, size=4) == b"89"
    outbox.close()


def test_wal_is_empty_after_a_clean_close(path: Path) -> None:
    outbox = open_outbox(path)
    outbox.store(update(1))
    wal = path.with_name(path.name + "-wal")
    assert wal.stat().st_size > 0
    outbox.close()
    assert not wal.exists() or wal.stat().st_size == 0


def test_store_is_one_transaction(path: Path) -> None:
    outbox = open_outbox(path)
    outbox.store(update(1, residual=b"one"))
    with pytest.raises(LocalProtocolError):
        outbox.store(update(3, residual=b"gap"))
    same_digest = update(1)
    with pytest.raises(StoreError):  # the row is refused after seq was read: nothing of it may stay
        outbox.store(
            NewUpdate(
                digest=same_digest.digest,
                seq=2,
                base_version=9,
                expiry_height=1,
                envelope=b"",
                blob=b"",
                created_s=0,
                residual=b"bad",
            )
        )
    assert (outbox.next_seq, outbox.last_trained, outbox.residual()) == (2, 0, b"one")
    outbox.close()


def test_settle_keeps_the_outcome_and_moves_the_residual_once(path: Path) -> None:
    outbox = open_outbox(path)
    outbox.store(update(1, residual=b"one"))
    digest = update(1).digest
    outbox.settle(digest, Verdict.REFUSED, Reason.STALE, outcome=b"proof", residual=b"back", now_s=9)
    assert outbox.rows() == ()
    assert outbox.residual() == b"back"
    assert outbox.summary() == {"open": 0, "merged": 0, "refused": 1}
    outbox.settle(digest, Verdict.MERGED, Reason.NONE, outcome=None, residual=b"twice", now_s=9)
    assert outbox.residual() == b"back"
    assert outbox.summary() == {"open": 0, "merged": 0, "refused": 1}
    with pytest.raises(LocalProtocolError):
        outbox.blob(digest)
    outbox.close()


def test_stored_receipt_is_not_taken_back(path: Path) -> None:
    outbox = open_outbox(path)
    outbox.store(update(1))
    outbox.save_receipt(receipt(1, "m1", ReceiptStatus.REFUSED, Reason.FUTURE_BASE), b"a")
    outbox.save_receipt(receipt(1, "m1", ReceiptStatus.STORED), b"b")
    outbox.save_receipt(receipt(1, "m1", ReceiptStatus.REFUSED, Reason.QUOTA), b"c")
    (row,) = outbox.rows()
    assert row.stored_by == {"m1"}
    assert row.refused_by == ()
    outbox.close()


def test_runs_rise(path: Path) -> None:
    for expected in (1, 2, 3):
        outbox = open_outbox(path)
        assert outbox.begin_run() == expected
        outbox.close()


def test_another_devices_file_is_refused(path: Path) -> None:
    open_outbox(path).close()
    with pytest.raises(CorruptStoreError, match="belongs to"):
        open_outbox(path, device="d2")


def test_damage_stops_with_advice(path: Path) -> None:
    outbox = open_outbox(path)
    for seq in range(1, 40):
        outbox.store(update(seq, blob=b"x" * 4_000))
    outbox.close()
    data = bytearray(path.read_bytes())
    for offset in range(8_192, len(data), 4_096):
        data[offset : offset + 64] = b"\xff" * 64
    path.write_bytes(data)
    with pytest.raises(CorruptStoreError, match="move it away and enrol"):
        open_outbox(path)


def test_garbage_is_no_database(path: Path) -> None:
    path.write_bytes(b"not a database at all" * 100)
    with pytest.raises(CorruptStoreError):
        open_outbox(path)


def test_sequence_behind_its_rows_is_corrupt(path: Path) -> None:
    outbox = open_outbox(path)
    outbox.store(update(1))
    outbox.close()
    with sqlite3.connect(path) as db:
        db.execute("UPDATE meta SET number = 1 WHERE key = 'next_seq'")
    db.close()
    with pytest.raises(CorruptStoreError, match="seq 1"):
        open_outbox(path)


def test_full_disk_changes_nothing(path: Path) -> None:
    outbox = open_outbox(path)
    outbox.store(update(1, residual=b"one"))
    pages = outbox._db.execute("PRAGMA page_count").fetchone()[0]
    outbox._db.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StoreError, match="full"):
        outbox.store(update(2, residual=b"two", blob=b"x" * 100_000))
    outbox._db.execute("PRAGMA max_page_count = 100000")
    assert (outbox.next_seq, outbox.residual()) == (2, b"one")
    outbox.store(update(2, residual=b"two", blob=b"x" * 100_000))
    outbox.close()


@pytest.mark.parametrize(
    ("failpoint", "kept"), [("device.before_outbox_commit", False), ("device.after_outbox_commit", True)]
)
def test_power_cut_at_the_commit(path: Path, failpoint: str, *, kept: bool) -> None:
    outbox = open_outbox(path)
    outbox.store(update(1, residual=b"old"))
    outbox.close()
    code = (
        "import sys, importlib.util\n"
        f"spec = importlib.util.spec_from_file_location('unit_outbox', {__file__!r})\n"
        "module = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(module)\n"
        "from pathlib import Path\n"
        f"outbox = module.open_outbox(Path({str(path)!r}))\n"
        "outbox.store(module.update(2, base=3, residual=b'new'))\n"
    )
    environment = os.environ | {"FLCHAIN_FAILPOINT": failpoint, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    outbox = open_outbox(path)
    expected = (3, 3, b"new", 2) if kept else (2, 0, b"old", 1)
    assert (outbox.next_seq, outbox.last_trained, outbox.residual(), len(outbox.rows())) == expected
    outbox.close()


def test_state_of_a_newer_version_is_left_alone(path: Path) -> None:
    """After a rollback the older client must neither use nor condemn what the newer one wrote."""
    open_outbox(path).close()
    with closing(sqlite3.connect(path)) as db:
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    before = path.read_bytes()
    with pytest.raises(NewerStateError, match="newer version"):
        open_outbox(path)
    assert path.read_bytes() == before
