"""The store of a miner: one transaction per height, promises before messages, read-only means untouched."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from coordinator.ledger.blobs import BlobStore
from coordinator.ledger.rows import ModelRow, OwnScores, UploadRow
from coordinator.ledger.state import State
from coordinator.ledger.store import LedgerStore
from coordinator.rounds import MergeBlock, duties
from edge_sdk.errors import CorruptLedgerError, CorruptStoreError, DecodeError, StoreError
from edge_sdk.protocol.certificate import verify_outcome
from edge_sdk.protocol.digest import sha256, update_digest
from edge_sdk.protocol.ids import DeviceId, Digest, MinerId
from edge_sdk.protocol.messages import Reason, Verdict
from tests.support.chain import SALT, Names, Runner, scores
from tests.support.disks import allow_writes, forbid_writes


@pytest.fixture
def names() -> Names:
    return Names()


@pytest.fixture
def store(names: Names, tmp_path: Path) -> Iterator[LedgerStore]:
    store = LedgerStore.open(tmp_path / "ledger.sqlite3", genesis=names.genesis, miner_id=names.miners[0])
    yield store
    store.close()


@pytest.fixture
def runner(names: Names, store: LedgerStore) -> Runner:
    runner = Runner(names, store)
    runner.ok(*(names.enrol(f"dev-{i}") for i in range(3)))
    return runner


def certify(runner: Runner, root: Digest) -> None:
    (duty,) = duties(runner.app.state, runner.names.miners[0], runner.names.genesis)
    assert isinstance(duty, MergeBlock)
    runner.ok(*(runner.names.vote(miner, duty.statement(root)) for miner in runner.names.miners))


def one_block(runner: Runner, *values: int) -> list[Digest]:
    digests = [runner.publish(f"dev-{i}", 1)[1] for i in range(3)]
    runner.score({miner: scores(500, *values) for miner in runner.names.miners})
    certify(runner, sha256(b"root"))
    return digests


def upload_row(names: Names, device: str = "dev-0") -> UploadRow:
    envelope, manifest = names.update(device, 1), names.manifest(device, 1)
    return UploadRow(
        update_digest=update_digest(envelope),
        device_id=DeviceId(device),
        seq=1,
        envelope=envelope,
        blob_digest=manifest.blob_digest,
        blob_bytes=manifest.blob_bytes,
        received_s=5,
    )


def test_an_empty_ledger_has_no_state(store: LedgerStore) -> None:
    assert (store.height(), store.load_state(), list(store.heights())) == (0, None, [])


def test_the_state_of_every_height_comes_back_equal(names: Names, store: LedgerStore, runner: Runner) -> None:
    digests = [runner.publish(f"dev-{i}", 1)[1] for i in range(3)]
    for _ in range(2):
        assert store.load_state() == runner.app.state
        runner.height()
    runner.score({miner: scores(500, 500, 500, 100) for miner in names.miners})
    assert store.load_state() == runner.app.state
    certify(runner, sha256(b"root"))
    assert store.load_state() == runner.app.state
    assert [row.height for row in store.heights()] == list(range(1, runner.app.state.height + 1))
    assert store.heights(3).__next__().proposer == names.miners[3]
    (block,) = store.blocks()
    assert block == store.block(1)
    assert [entry.update_digest for entry in block.entries] == digests
    assert store.block(2) is None


def test_every_update_of_a_certified_block_has_a_verifiable_outcome(
    names: Names, store: LedgerStore, runner: Runner
) -> None:
    for digest, verdict in zip(
        one_block(runner, 500, 500, 100), (Verdict.MERGED, Verdict.MERGED, Verdict.REFUSED), strict=True
    ):
        outcome = store.outcome(digest)
        assert outcome is not None
        entry = verify_outcome(outcome, names.genesis)
        assert (entry.update_digest, entry.verdict) == (digest, verdict)
    assert store.outcome(sha256(b"unknown")) is None


def test_there_is_no_outcome_before_the_certificate(names: Names, store: LedgerStore, runner: Runner) -> None:
    digest = runner.publish("dev-0", 1)[1]
    runner.publish("dev-1", 1)
    runner.publish("dev-2", 1)
    runner.score({miner: scores(500, 500, 500, 500) for miner in names.miners})
    block = store.block(1)
    assert block is not None
    assert block.certificate is None
    assert store.outcome(digest) is None


def test_a_height_is_written_once_and_in_order(names: Names, store: LedgerStore) -> None:
    runner = Runner(names)
    first = runner.height(names.enrol("dev-0"))
    second = runner.height(names.enrol("dev-1"))
    with pytest.raises(StoreError, match="height 2 after 0"):
        store.commit_height(second, proposer="miner-0")
    assert store.height() == 0
    row = store.commit_height(first, proposer="miner-0")
    assert row == store.height_row(1)
    with pytest.raises(StoreError, match="height 1 after 1"):
        store.commit_height(first, proposer="miner-0")
    assert store.load_state() == first.state


def test_a_failed_height_leaves_nothing(names: Names, store: LedgerStore, monkeypatch: pytest.MonkeyPatch) -> None:
    finalized = Runner(names).height(names.enrol("dev-0"))

    def fail(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(store, "_write_snapshot", fail)
        with pytest.raises(StoreError, match="disk is full"):
            store.commit_height(finalized, proposer="miner-0")
    assert (store.height(), store.load_state()) == (0, None)
    store.commit_height(finalized, proposer="miner-0")
    assert store.load_state() == finalized.state


def test_the_first_scores_of_a_block_stay(store: LedgerStore) -> None:
    first = OwnScores(block_index=1, scores=scores(500, 1), salt=SALT)
    assert store.put_own_scores(first) == first
    assert store.put_own_scores(replace(first, scores=scores(1, 2))) == first
    assert store.own_scores(1) == first
    assert store.own_scores(2) is None


def test_promises_end_with_the_certificate(names: Names, store: LedgerStore, runner: Runner) -> None:
    kept = upload_row(names)
    store.put_upload(kept)
    store.put_upload(replace(kept, received_s=9))
    assert store.uploads() == (kept,)
    assert store.upload(kept.update_digest) == kept
    store.put_own_scores(OwnScores(block_index=1, scores=scores(500, 1, 1, 1), salt=SALT))
    one_block(runner, 500, 500, 500)
    assert (store.uploads(), store.own_score_blocks()) == ((), ())
    store.put_upload(kept)
    store.drop_upload(kept.update_digest)
    assert store.upload(kept.update_digest) is None


def test_models_are_recorded_once(store: LedgerStore) -> None:
    row = ModelRow(version=1, model_root=sha256(b"r"), blob_digest=sha256(b"b"), blob_bytes=3)
    store.put_model(row)
    store.put_model(replace(row, blob_bytes=9))
    assert (store.model(1), store.models(), store.model(2)) == (row, (row,), None)
    store.drop_model(1)
    assert store.models() == ()


def test_a_ledger_belongs_to_one_chain_and_one_miner(names: Names, store: LedgerStore) -> None:
    other = Names(7)
    with pytest.raises(StoreError, match="another chain"):
        LedgerStore.open(store.path, genesis=other.genesis, miner_id=names.miners[0])
    with pytest.raises(StoreError, match="another miner"):
        LedgerStore.open(store.path, genesis=names.genesis, miner_id=names.miners[1])


def test_a_restart_goes_on_where_the_log_ended(names: Names, store: LedgerStore, runner: Runner) -> None:
    runner.publish("dev-0", 1)
    state = runner.app.state
    again = LedgerStore.open(store.path, genesis=names.genesis, miner_id=names.miners[0])
    assert again.load_state() == state
    assert isinstance(again.load_state(), State)
    again.close()


def test_read_only_leaves_no_trace(names: Names, store: LedgerStore, runner: Runner, tmp_path: Path) -> None:
    store.close()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(before) == {"ledger.sqlite3"}  # a clean stop leaves no write-ahead log
    reader = LedgerStore.open(store.path, read_only=True)
    assert reader.load_state() == runner.app.state
    with pytest.raises(StoreError):
        reader.put_own_scores(OwnScores(block_index=1, scores=scores(1), salt=SALT))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    reader.close()
    store._database = sqlite3.connect(store.path)  # the fixture closes it again


def test_a_reader_sees_what_the_write_ahead_log_holds(store: LedgerStore, runner: Runner) -> None:
    reader = LedgerStore.open(store.path, read_only=True)
    before = runner.app.state
    runner.ok(runner.names.enrol("dev-9"))
    assert reader.load_state() == before  # one view, also while the miner goes on
    reader.close()


@pytest.mark.parametrize("content", [b"", b"not a database, but long enough to be looked at" * 40])
def test_what_is_no_ledger_cannot_be_opened(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "ledger.sqlite3"
    path.write_bytes(content)
    with pytest.raises(StoreError):
        LedgerStore.open(path, read_only=True)
    with pytest.raises(StoreError, match="no such ledger"):
        LedgerStore.open(tmp_path / "nowhere.sqlite3", read_only=True)


def test_a_changed_snapshot_does_not_load(store: LedgerStore, runner: Runner) -> None:
    store._database.execute("DELETE FROM snapshot_devices WHERE device_id = 'dev-0'")
    with pytest.raises(CorruptLedgerError) as caught:
        store.load_state()
    assert caught.value.place == "ledger.sqlite3: snapshot"
    store._database.execute("UPDATE snapshot_devices SET record = x'ff'")
    with pytest.raises(CorruptLedgerError):
        store.load_state()
    store._database.execute("DELETE FROM snapshot_core")
    with pytest.raises(CorruptLedgerError):
        store.load_state()


def test_blobs_are_whole_or_absent(tmp_path: Path) -> None:
    blobs = BlobStore(tmp_path / "blobs")
    digest = blobs.put(b"content")
    assert digest == sha256(b"content") == blobs.put(b"content")
    assert (blobs.get(digest), blobs.has(digest)) == (b"content", True)
    assert blobs.path(digest) == tmp_path / "blobs" / "sha256" / digest.hex()
    with blobs.open(digest) as file:
        file.seek(3)
        assert file.read(2) == b"te"
    assert [path.name for path in blobs.files()] == [digest.hex()]
    blobs.delete(digest)
    blobs.delete(digest)
    assert not blobs.has(digest)
    with pytest.raises(StoreError):
        blobs.get(digest)
    with pytest.raises(StoreError):
        blobs.open(digest)


def test_half_written_blobs_are_removed_at_the_start(tmp_path: Path) -> None:
    folder = tmp_path / "blobs" / "sha256"
    folder.mkdir(parents=True)
    (folder / "abc.tmp").write_bytes(b"half")
    BlobStore(tmp_path / "blobs", read_only=True)
    assert (folder / "abc.tmp").exists()
    BlobStore(tmp_path / "blobs")
    assert list(folder.iterdir()) == []


def test_a_state_comes_back_from_its_bytes_and_no_other_bytes_make_one(names: Names) -> None:
    runner = Runner(names)
    runner.ok(*(names.enrol(f"dev-{i}") for i in range(3)))
    for i in range(3):
        runner.publish(f"dev-{i}", 1)
    runner.score({miner: scores(500, 500, 500, 100) for miner in names.miners})
    state = runner.app.state
    data = state.to_bytes()
    back = State.from_bytes(data)
    assert (back, back.root, back.to_bytes()) == (state, state.root, data)
    for cut in range(0, len(data), 97):
        with pytest.raises(DecodeError):
            State.from_bytes(data[:cut])
    with pytest.raises(DecodeError):
        State.from_bytes(data + bytes(4))


def test_the_root_covers_every_part_of_the_state(names: Names) -> None:
    runner = Runner(names)
    runner.ok(names.enrol("dev-0"))
    runner.ok(names.update("dev-0", 1))
    state = runner.app.state
    device = next(iter(state.registry.values()))
    update = next(iter(state.updates.values()))
    others = [
        replace(state, core=replace(state.core, time_s=1)),
        replace(state, registry={device.device_id: replace(device, revoked=True)}),
        replace(state, updates={update.update_digest: replace(update, blob_bytes=1)}),
        replace(state, registry={}),
        replace(state, updates={}),
    ]
    assert len({state.root, *(other.root for other in others)}) == 6


def test_an_update_may_be_refused_twice_and_merged_once(names: Names, store: LedgerStore) -> None:
    """A device that is enrolled anew may send an old update again, signed by its new key."""
    runner = Runner(names, store)
    runner.ok(*(names.enrol(f"dev-{i}") for i in range(3)))
    digests = one_block(runner, 100, 500, 500)
    runner.ok(names.enrol("dev-0", serial=2, key="new"), names.enrol("dev-1", serial=2, key="new"))
    refused, merged = names.update("dev-0", 1, key="new"), names.update("dev-1", 1, key="new")
    assert [update_digest(refused), update_digest(merged)] == digests[:2]
    assert runner.app.admit(merged) is Reason.BASE_REUSED
    runner.ok(refused, merged)
    for update, device in ((refused, "dev-0"), (merged, "dev-1")):
        runner.ok(*(names.receipt(miner, update, device, 1) for miner in names.miners))
    fresh = {"base_version": 1, "base_root": runner.app.state.model_root}
    runner.publish("dev-2", 2, **fresh)
    assert [entry.reason for entry in runner.round().refused] == [Reason.BASE_REUSED]
    runner.score({miner: scores(500, 500, 500) for miner in names.miners})
    certify(runner, sha256(b"second"))
    outcomes = [store.outcome(digest) for digest in digests[:2]]
    assert [outcome.entry.verdict for outcome in outcomes if outcome] == [Verdict.MERGED, Verdict.MERGED]
    assert [outcome.header.index for outcome in outcomes if outcome] == [2, 1]


def test_errors_tell_disk_from_corruption(tmp_path: Path, names: Names) -> None:
    path = tmp_path / "ledger.sqlite3"
    store = LedgerStore.open(path, genesis=names.genesis, miner_id=MinerId("miner-0"))
    runner = Runner(names, store)
    runner.ok(*(names.enrol(f"dev-{i:03}") for i in range(200)))
    store.close()
    data = bytearray(path.read_bytes())
    data[4096:] = b"\xa5" * (len(data) - 4096)
    path.write_bytes(data)
    with pytest.raises((CorruptStoreError, CorruptLedgerError)):
        LedgerStore.open(path, read_only=True).load_state()


def test_a_full_disk_at_the_end_is_a_store_error_and_loses_nothing(names: Names, tmp_path: Path) -> None:
    path = tmp_path / "full.sqlite3"
    store = LedgerStore.open(path, genesis=names.genesis, miner_id=names.miners[0])
    own = store.put_own_scores(OwnScores(block_index=1, scores=scores(5, 6), salt=SALT))
    forbid_writes(os.getpid())
    try:
        with pytest.raises(StoreError, match=r"full\.sqlite3"):
            store.close()
    finally:
        allow_writes(os.getpid())
    store = LedgerStore.open(path, genesis=names.genesis, miner_id=names.miners[0])
    assert store.own_scores(1) == own
    store.close()
