"""The auditor finds every change of a kept run, names its place and never stumbles."""

from __future__ import annotations

import shutil
import sqlite3
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coordinator.ledger.replay import verify_directory
from coordinator.ledger.rows import chain_hash, first_link, pack_txs, unpack_txs
from coordinator.ledger.store import LedgerStore
from edge_sdk.errors import CorruptLedgerError, StoreError
from edge_sdk.protocol import cose, wire
from edge_sdk.protocol.ids import ChainId, MinerId
from edge_sdk.protocol.messages import Domain, Genesis, PublicKey
from tests.support.chain import Names, Runner
from tests.support.chain_world import World

MINER = "miner-1"


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A kept run of four miners that stopped in the middle of a block."""
    root = tmp_path_factory.mktemp("kept")
    world = World(Names(), seed=3, devices=("dev-a", "dev-b", "dev-c", "evil-a"), folder=root, drop=0.1)
    while world.miners[0].app.state.version < 4:
        world.step()
    world.drop = world.duplicate = 0.0
    world.rest()
    while not any(miner.store.own_score_blocks() for miner in world.miners if miner.store):
        world.step()  # scores are stored, the commitments are on the log, nothing is revealed
    world.step()
    for miner in world.miners:
        assert miner.folder is not None
        (miner.folder / "genesis.cbor").write_bytes(wire.to_bytes(world.names.genesis))
    world.close()
    return root


@pytest.fixture
def run(kept: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(kept, tmp_path / "run"))


def change(root: Path, statement: str, *arguments: object) -> None:
    database = sqlite3.connect(root / "miners" / MINER / "ledger.sqlite3")
    with database:
        assert database.execute(statement, arguments).rowcount >= 1, statement
    database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    database.close()


def read(root: Path, query: str) -> list[tuple[Any, ...]]:
    database = sqlite3.connect(root / "miners" / MINER / "ledger.sqlite3")
    rows = database.execute(query).fetchall()
    database.close()
    return rows


def refused(root: Path) -> CorruptLedgerError:
    with pytest.raises(CorruptLedgerError) as caught:
        verify_directory(root)
    return caught.value


def flip(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


def test_a_whole_run_verifies_and_every_merge_is_computed_again(kept: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    report = verify_directory(kept, progress=lambda miner, done, last: seen.append((miner, done, last)))
    assert [miner.miner_id for miner in report.miners] == [f"miner-{i}" for i in range(4)]
    assert len({(m.state_root, m.model_root, m.version, m.heights) for m in report.miners}) == 1
    assert all((m.merges_recomputed, m.merges_skipped) == (m.version, 0) for m in report.miners)
    assert all(m.open_updates > 0 for m in report.miners)
    assert seen[-1] == ("miner-3", report.miners[0].heights, report.miners[0].heights)


def test_one_miner_verifies_alone(kept: Path) -> None:
    (report,) = verify_directory(kept / "miners" / MINER).miners
    ((newest,),) = read(kept, "SELECT max(version) FROM models")
    assert (report.miner_id, report.version) == (MINER, newest)


def test_a_signature_that_four_miners_have_is_verified_once(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    verified: Counter[tuple[bytes, Domain]] = Counter()
    genuine = cose.verify

    def counted(envelope: cose.Envelope, *, key: PublicKey, domain: Domain, chain_id: ChainId) -> bytes:
        verified[envelope.signature, domain] += 1
        return genuine(envelope, key=key, domain=domain, chain_id=chain_id)

    monkeypatch.setattr(cose, "verify", counted)
    report = verify_directory(kept / "miners" / MINER)
    alone = sum(count for (_, domain), count in verified.items() if domain is not Domain.UPDATE)
    assert alone > report.miners[0].heights
    verified.clear()
    verify_directory(kept)
    # Updates that a miner holds and the log does not have yet are verified for each miner that holds them.
    assert sum(count for (_, domain), count in verified.items() if domain is not Domain.UPDATE) == alone


def test_a_miner_that_is_behind_has_a_beginning_of_the_same_log(run: Path) -> None:
    last = int(read(run, "SELECT max(height) FROM heights")[0][0])
    names = Names()
    behind = run / "miners" / MINER / "ledger.sqlite3"
    store = LedgerStore.open(behind, read_only=True)
    heights = [row for row in store.heights() if row.height <= 3]
    store.close()
    behind.unlink()  # its blobs stay
    runner = Runner(names, LedgerStore.open(behind, genesis=names.genesis, miner_id=MinerId(MINER)))
    assert runner.store is not None
    for row in heights:
        finalized = runner.app.finalize(row.height, row.time_s, row.txs)
        runner.store.commit_height(finalized, proposer=row.proposer)
        runner.app.commit(finalized)
    runner.store.close()
    found = {miner.miner_id: miner.heights for miner in verify_directory(run).miners}
    assert found == {f"miner-{i}": 3 if f"miner-{i}" == MINER else last for i in range(4)}


def test_verifying_writes_nothing(kept: Path) -> None:
    before = {path: path.read_bytes() for path in kept.rglob("*") if path.is_file()}
    verify_directory(kept)
    assert {path: path.read_bytes() for path in kept.rglob("*") if path.is_file()} == before


def test_an_empty_folder_has_no_ledger(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="expected"):
        verify_directory(tmp_path)


CELLS = [
    ("meta", "value", "key = 'genesis'"),
    ("meta", "value", "key = 'miner'"),
    ("heights", "time_s", "height = 5"),
    ("heights", "proposer", "height = 5"),
    ("heights", "txs", "height = 5"),
    ("heights", "state_root", "height = 5"),
    ("heights", "chain_hash", "height = 5"),
    ("blocks", "header", "block_index = 2"),
    ("blocks", "entries", "block_index = 2"),
    ("blocks", "certificate", "block_index = 2"),
    ("entries", "update_digest", "block_index = 2 AND position = 0"),
    ("entries", "position", "block_index = 2 AND position = 0"),
    ("models", "version", "version = 2"),
    ("models", "model_root", "version = 2"),
    ("models", "blob_digest", "version = 2"),
    ("models", "blob_bytes", "version = 2"),
    ("snapshot_core", "record", "one = 1"),
    ("snapshot_devices", "device_id", "device_id = 'dev-a'"),
    ("snapshot_devices", "record", "device_id = 'dev-a'"),
    ("snapshot_updates", "record", "place = (SELECT max(place) FROM snapshot_updates)"),
    ("own_scores", "scores", "1 = 1"),
    ("own_scores", "salt", "1 = 1"),
    ("own_scores", "block_index", "1 = 1"),
    ("uploads", "update_digest", "rowid = (SELECT min(rowid) FROM uploads)"),
    ("uploads", "envelope", "rowid = (SELECT min(rowid) FROM uploads)"),
    ("uploads", "device_id", "rowid = (SELECT min(rowid) FROM uploads)"),
    ("uploads", "seq", "rowid = (SELECT min(rowid) FROM uploads)"),
    ("uploads", "blob_digest", "rowid = (SELECT min(rowid) FROM uploads)"),
    ("uploads", "blob_bytes", "rowid = (SELECT min(rowid) FROM uploads)"),
]


@pytest.mark.parametrize(("table", "column", "where"), CELLS, ids=[f"{t}.{c}-{i}" for i, (t, c, _) in enumerate(CELLS)])
def test_a_changed_cell_is_found_in_its_table(run: Path, table: str, column: str, where: str) -> None:
    (value,) = read(run, f"SELECT {column} FROM {table} WHERE {where}")[0]
    if isinstance(value, bytes):
        changed: object = flip(value, len(value) // 2)
    else:
        changed = value + 7 if isinstance(value, int) else f"{value}x"
    change(run, f"UPDATE {table} SET {column} = ? WHERE {where}", changed)
    if table == "meta":
        (run / "miners" / MINER / "genesis.cbor").unlink()  # else that file is named: the two differ
    place = refused(run / "miners" / MINER).place
    named = ("meta", "heights") if table == "meta" else (table.partition("_")[0],)
    assert place.startswith(tuple(f"ledger.sqlite3: {name}" for name in named)) or (
        column == "blob_digest" and place.startswith("blobs/sha256/")
    )


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM heights WHERE height = 5",
        "DELETE FROM heights WHERE height = (SELECT max(height) FROM heights)",
        "DELETE FROM heights WHERE height = 1",
        "DELETE FROM blocks WHERE block_index = 2",
        "DELETE FROM entries WHERE block_index = 2 AND position = 0",
        "DELETE FROM models WHERE version = (SELECT max(version) FROM models)",
        "DELETE FROM snapshot_core",
        "DELETE FROM snapshot_devices WHERE device_id = 'dev-a'",
        "DELETE FROM snapshot_updates",
        "DELETE FROM meta WHERE key = 'genesis'",
        "INSERT INTO blocks SELECT block_index + 90, header, entries, certificate FROM blocks WHERE block_index = 2",
        "INSERT INTO models SELECT version + 90, model_root, blob_digest, blob_bytes FROM models WHERE version = 2",
        "INSERT INTO heights SELECT height + 90, time_s, proposer, txs, state_root, chain_hash FROM heights LIMIT 1",
        "INSERT INTO entries SELECT update_digest, 77, position FROM entries LIMIT 1",
        "DROP TABLE entries",
        "UPDATE blocks SET certificate = NULL WHERE block_index = 1",
        "UPDATE blocks SET certificate = (SELECT certificate FROM blocks WHERE block_index = 1) WHERE block_index = 2",
    ],
)
def test_removed_added_and_swapped_rows_are_found(run: Path, statement: str) -> None:
    database = sqlite3.connect(run / "miners" / MINER / "ledger.sqlite3")
    with database:
        database.execute(statement)
    database.close()
    (run / "miners" / MINER / "genesis.cbor").unlink()
    assert refused(run / "miners" / MINER).place.startswith("ledger.sqlite3")


def test_a_height_rewritten_with_its_hashes_breaks_the_certificates(run: Path) -> None:
    """Whoever drops a transaction and forges the chain of hashes still cannot forge the state."""
    genesis = wire.from_bytes(Genesis, read(run, "SELECT value FROM meta WHERE key = 'genesis'")[0][0])
    link = first_link(genesis, MinerId(MINER))
    columns = "height, time_s, proposer, txs, state_root"
    for height, time_s, proposer, txs, root in read(run, f"SELECT {columns} FROM heights ORDER BY height"):
        kept = pack_txs(unpack_txs(txs)[1:]) if height == 3 else txs
        link = chain_hash(link, height=height, time_s=time_s, proposer=proposer, txs=kept, state_root=root)
        change(run, "UPDATE heights SET txs = ?, chain_hash = ? WHERE height = ?", kept, link, height)
    error = refused(run)
    assert (error.place, error.height) == (f"miners/{MINER}/ledger.sqlite3: heights", 3)


def test_a_changed_blob_is_named(run: Path) -> None:
    folder = run / "miners" / MINER / "blobs" / "sha256"
    for path in sorted(folder.iterdir())[::4]:
        data = path.read_bytes()
        path.write_bytes(flip(data, len(data) // 2))
        assert refused(run / "miners" / MINER).place == f"blobs/sha256/{path.name}"
        path.write_bytes(data)
    verify_directory(run)


def test_a_blob_that_is_needed_is_missed(run: Path) -> None:
    folder = run / "miners" / MINER / "blobs" / "sha256"
    needed = {name for (name,) in read(run, "SELECT lower(hex(blob_digest)) FROM models")}
    needed |= {name for (name,) in read(run, "SELECT lower(hex(blob_digest)) FROM uploads")}
    for name in sorted(needed)[::3]:
        path = folder / name
        data = path.read_bytes()
        path.unlink()
        assert refused(run / "miners" / MINER).place == f"blobs/sha256/{name}"
        path.write_bytes(data)
    verify_directory(run)


@pytest.mark.parametrize("name", ["stray", "ab" * 32])
def test_a_stray_file_among_the_blobs_is_found(run: Path, name: str) -> None:
    (run / "miners" / MINER / "blobs" / "sha256" / name).write_bytes(b"stray")
    assert refused(run).place.endswith(name)


def test_what_a_power_cut_leaves_is_no_corruption(run: Path) -> None:
    (run / "miners" / MINER / "blobs" / "sha256" / "half.tmp").write_bytes(b"half")
    verify_directory(run)


def test_a_changed_genesis_file_is_found(run: Path) -> None:
    path = run / "miners" / MINER / "genesis.cbor"
    path.write_bytes(flip(path.read_bytes(), 20))
    assert refused(run).place == f"miners/{MINER}/genesis.cbor"


def test_a_missing_ledger_and_a_renamed_miner_are_found(run: Path) -> None:
    (run / "miners" / "miner-2" / "ledger.sqlite3").rename(run / "gone")
    assert refused(run).place == "miners/miner-2/ledger.sqlite3"
    (run / "gone").rename(run / "miners" / "miner-2" / "ledger.sqlite3")
    (run / "miners" / "miner-2").rename(run / "miners" / "miner-9")
    assert refused(run).place.startswith("miners/miner-9/")


def test_miners_that_disagree_are_found(run: Path, tmp_path: Path) -> None:
    world = World(Names(), seed=4, devices=("dev-z",), folder=tmp_path / "other", drop=0.1)
    for _ in range(10):
        world.step()
    world.close()
    shutil.rmtree(run / "miners" / "miner-3")
    shutil.copytree(tmp_path / "other" / "miners" / "miner-3", run / "miners" / "miner-3")
    error = refused(run)
    assert (error.place, error.height) == ("miners/miner-3/ledger.sqlite3: heights", 1)


def test_any_flipped_byte_of_the_file_is_found_or_harmless_but_never_a_traceback(run: Path) -> None:
    """Free pages and unused bytes may change unnoticed; anything else is an error with a place."""
    path = run / "miners" / MINER / "ledger.sqlite3"
    data = path.read_bytes()
    places = []
    for position in np.random.default_rng(5).integers(0, len(data), 20):
        path.write_bytes(flip(data, int(position)))
        try:
            verify_directory(run / "miners" / MINER)
        except CorruptLedgerError as error:
            places.append(error.place)
    assert len(places) > 3
    assert all(place.startswith("ledger.sqlite3") for place in places)
