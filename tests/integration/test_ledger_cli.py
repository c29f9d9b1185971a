"""``flchain ledger`` on a recorded chain, whole and tampered with: one line with the place, never a traceback."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

from edge_sdk import entry
from edge_sdk.protocol import wire
from edge_sdk.protocol.digest import genesis_digest
from tests.support.chain import Names
from tests.support.chain_world import World

MINER: Final = "miner-1"
VERSIONS: Final = 3


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A kept run of four miners with merged and refused updates, stopped between two blocks."""
    root = tmp_path_factory.mktemp("kept")
    world = World(Names(), seed=3, devices=("dev-a", "dev-b", "dev-c", "evil-a"), folder=root)
    while world.miners[0].app.state.version < VERSIONS:
        world.step()
    for miner in world.miners:
        assert miner.folder is not None
        (miner.folder / "genesis.cbor").write_bytes(wire.to_bytes(world.names.genesis))
    world.close()
    (root / "anchor").write_text(genesis_digest(world.names.genesis).hex())
    return root


@pytest.fixture
def run(kept: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(kept, tmp_path / "run"))


class Command:
    """The command in this process; what it printed."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: object) -> tuple[int, str, str]:
        status = entry.main(["ledger", *map(str, arguments)])
        captured = self._capsys.readouterr()
        return status, captured.out, captured.err

    def refusal(self, *arguments: object) -> str:
        """The one line of a command that ends with status 1."""
        status, out, err = self(*arguments)
        assert status == 1, (out, err)
        assert out == ""
        assert len(err.splitlines()) == 1, err
        return err


@pytest.fixture
def ledger(capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(capsys)


def _file(root: Path) -> Path:
    return root / "miners" / MINER / "ledger.sqlite3"


def _blob(root: Path) -> Path:
    return max((root / "miners" / MINER / "blobs" / "sha256").iterdir(), key=lambda path: path.stat().st_size)


def _rows(root: Path, query: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(_file(root))) as database:
        return database.execute(query).fetchall()


def _change(root: Path, statement: str) -> None:
    with closing(sqlite3.connect(_file(root))) as database:
        with database:
            assert database.execute(statement).rowcount >= 1
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")


# --- a whole ledger ---


def test_a_whole_run_verifies(kept: Path, ledger: Command) -> None:
    status, out, err = ledger("verify", kept, "--anchor", (kept / "anchor").read_text())
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert [line.split()[0] for line in lines] == [f"miner-{number}" for number in range(4)]
    assert all(" ok heights=" in line and f"version={VERSIONS} merges={VERSIONS}" in line for line in lines)
    assert len({line.rpartition("model_root=")[2] for line in lines}) == 1


def test_one_miner_as_json(kept: Path, ledger: Command) -> None:
    status, out, _ = ledger("verify", kept / "miners" / MINER, "--json")
    (document,) = json.loads(out)
    assert status == 0
    assert (document["miner"], document["version"], document["merges_recomputed"]) == (MINER, VERSIONS, VERSIONS)


def test_show_lists_every_block_with_its_fate(kept: Path, ledger: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    status, out, _ = ledger("show", kept / "miners" / MINER)
    assert status == 0
    blocks = _rows(kept, "SELECT block_index FROM blocks ORDER BY block_index")
    shown = [line.split("│")[1].strip() for line in out.splitlines() if line.startswith("│")]
    assert shown == [str(index) for (index,) in blocks]
    assert "quality" in out
    assert "miner-0 miner-1 miner-2" in out
    status, out, _ = ledger("show", kept, "--json", "--from", "2", "--limit", "1")
    (block,) = json.loads(out)
    assert block["index"] == 2
    assert len(block["entries"]) == _rows(kept, "SELECT count(*) FROM entries WHERE block_index = 2")[0][0]
    assert {entry["verdict"] for entry in block["entries"]} <= {"merged", "refused"}
    assert len(block["certificate"]["signers"]) >= 3
    status, out, _ = ledger("show", kept, "--json", "--from", "1000")
    assert (status, json.loads(out)) == (0, [])


# --- tampered with ---

STATEMENTS: Final = [
    ("UPDATE heights SET txs = x'80' WHERE height = 3", "heights", ", height 3"),
    ("UPDATE heights SET state_root = zeroblob(32) WHERE height = 4", "heights", ", height 4"),
    ("DELETE FROM heights WHERE height = 5", "heights", ", height "),
    ("UPDATE blocks SET certificate = NULL WHERE block_index = 1", "blocks", ""),
    ("UPDATE blocks SET header = x'a0' WHERE block_index = 2", "blocks", ""),
    ("UPDATE blocks SET entries = x'ff' WHERE block_index = 2", "blocks", ""),
    ("DELETE FROM entries", "entries", ""),
    ("UPDATE models SET model_root = zeroblob(32) WHERE version = 1", "models", ""),
    ("UPDATE models SET blob_bytes = -1 WHERE version = 1", "models", ""),
    ("UPDATE snapshot_core SET record = x'00'", "snapshot", ""),
    ("DELETE FROM snapshot_devices", "snapshot", ""),
    ("UPDATE uploads SET envelope = x''", "uploads", ""),
    ("UPDATE meta SET value = x'00' WHERE key = 'genesis'", "meta", ""),
    ("DROP TABLE models", "", ""),
    ("DROP TABLE heights", "", ""),
    ("DROP TABLE meta", "", ""),
]


@pytest.mark.parametrize(("statement", "table", "height"), STATEMENTS, ids=[s for s, _, _ in STATEMENTS])
def test_a_changed_table_is_named(run: Path, ledger: Command, statement: str, table: str, height: str) -> None:
    if statement.startswith("DROP"):
        with closing(sqlite3.connect(_file(run))) as database, database:
            database.execute(statement)
    else:
        _change(run, statement)
    line = ledger.refusal("verify", run)
    assert line.startswith(f"flchain ledger verify: miners/{MINER}/ledger.sqlite3: {table}"), line
    assert height in line
    line = ledger.refusal("verify", run / "miners" / MINER)
    assert line.startswith(f"flchain ledger verify: ledger.sqlite3: {table}") or "genesis" in line, line


def _as_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _as_link(path: Path, target: str) -> None:
    path.unlink()
    path.symlink_to(target)


FILES: Final[list[tuple[str, Callable[[Path], object]]]] = [
    ("empty", lambda path: path.write_bytes(b"")),
    ("text", lambda path: path.write_text("not a database at all\n" * 400)),
    ("header", lambda path: path.write_bytes(b"SQLite format 3\0" + bytes(8_000))),
    ("half", lambda path: os.truncate(path, path.stat().st_size // 2)),
    ("page", lambda path: os.truncate(path, 4_096)),
    ("gone", Path.unlink),
    ("folder", _as_folder),
    ("swapped", lambda path: shutil.copyfile(path.parents[1] / "miner-2" / path.name, path)),
]


@pytest.mark.parametrize(("name", "damage"), FILES, ids=[name for name, _ in FILES])
def test_a_ruined_ledger_file_is_named(run: Path, ledger: Command, name: str, damage: Callable[[Path], object]) -> None:
    damage(_file(run))
    assert f"miners/{MINER}/" in ledger.refusal("verify", run)


BLOBS: Final[list[tuple[str, Callable[[Path], object]]]] = [
    ("flipped", lambda path: path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1]))),
    ("longer", lambda path: path.write_bytes(path.read_bytes() + b"\0")),
    ("half", lambda path: os.truncate(path, path.stat().st_size // 2)),
    ("empty", lambda path: path.write_bytes(b"")),
    ("gone", Path.unlink),
    ("folder", _as_folder),
    ("loop", lambda path: _as_link(path, path.name)),
    ("dangling", lambda path: _as_link(path, "nowhere")),
]


@pytest.mark.parametrize(("name", "damage"), BLOBS, ids=[name for name, _ in BLOBS])
def test_a_changed_blob_is_named(run: Path, ledger: Command, name: str, damage: Callable[[Path], object]) -> None:
    blob = _blob(run)
    damage(blob)
    line = ledger.refusal("verify", run)
    assert line.startswith(f"flchain ledger verify: miners/{MINER}/blobs/sha256/{blob.name}"), line


def test_another_genesis_than_the_anchor_is_named(run: Path, ledger: Command) -> None:
    assert "genesis" in ledger.refusal("verify", run, "--anchor", "00" * 32)
    genesis = run / "miners" / MINER / "genesis.cbor"
    genesis.write_bytes(genesis.read_bytes()[:-1])
    assert f"miners/{MINER}/genesis.cbor" in ledger.refusal("verify", run)


def test_a_folder_without_a_ledger_is_a_usage_error(tmp_path: Path, ledger: Command) -> None:
    for command in ("show", "verify"):
        for folder in (tmp_path, tmp_path / "none"):
            status, out, err = ledger(command, folder)
            assert status in {1, 2}
            assert out == ""
            assert err.count("\n") == 1
            assert str(folder) in err


def test_any_damage_anywhere_is_an_answer_and_never_a_traceback(run: Path, ledger: Command) -> None:
    """Bytes of any file, overwritten at random; what no statement depends on may change unnoticed."""
    rng = np.random.default_rng(11)
    folder = run / "miners" / MINER
    whole = {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    ledgers = [path for path in whole if path.name.startswith("ledger.sqlite3")]
    found = 0
    for number in range(36):
        path = ledgers[0] if number % 3 else sorted(whole)[int(rng.integers(len(whole)))]
        data = bytearray(whole[path])
        if not data:
            continue
        start = int(rng.integers(len(data)))
        size = int(rng.integers(1, 64))
        data[start : start + size] = rng.bytes(len(data[start : start + size]))
        path.write_bytes(data)
        for command in ("verify", "show"):
            status, _, err = ledger(command, folder)
            assert status in {0, 1}
            assert (status == 0) == (err == ""), (command, path.name, start, err)
            assert err.count("\n") <= 1, err
            found += status
        path.write_bytes(whole[path])
    assert found > 12
    assert ledger("verify", folder)[0] == 0
