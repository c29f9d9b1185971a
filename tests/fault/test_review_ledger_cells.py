"""Every cell of a kept ledger replaced by something absurd: found by name or harmless, never a traceback."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import suppress
from pathlib import Path

import pytest

from coordinator.ledger.replay import verify_directory
from coordinator.ledger.state import Round
from edge_sdk.errors import EdgeFLError
from tests.support.chain import Names
from tests.support.chain_world import World

LEDGER = Path("miners/miner-1/ledger.sqlite3")
ABSURD = (b"", b"\xff" * 300, b"\x1b" + b"\xff" * 8, "", "\N{SNOWMAN}" * 300, -1, 2**63 - 1)
HARMLESS = {"received_s"}
"""Nothing can be derived that would contradict it."""


def has_committed(round_: Round | None) -> bool:
    """Whether the audited miner's commitment to the open block is on the log."""
    return round_ is not None and any(commit.miner_id == "miner-1" for commit in round_.commits)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("kept")
    world = World(Names(), seed=3, devices=("dev-a", "dev-b", "dev-c", "evil-a"), folder=root)
    while world.miners[1].app.state.version < 1 or not has_committed(world.miners[1].app.state.round):
        world.step()
    world.close()
    return root


def columns(root: Path) -> list[tuple[str, str]]:
    with sqlite3.connect(root / LEDGER) as database:
        tables = [row[0] for row in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return [(table, row[1]) for table in tables for row in database.execute(f"PRAGMA table_info({table})")]


def test_no_absurd_cell_is_passed_over_or_trips_the_auditor(kept: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(kept, tmp_path / "run"))
    passed = set()
    for table, column in columns(kept):
        for value in ABSURD:
            shutil.copy(kept / LEDGER, run / LEDGER)
            database = sqlite3.connect(run / LEDGER)
            changed = 0
            with suppress(sqlite3.IntegrityError), database:  # a STRICT column does not take every type
                row = f"rowid = (SELECT max(rowid) FROM {table})"
                if table in {"meta", "entries", "snapshot_devices"}:
                    row = f"{column} = (SELECT max({column}) FROM {table})"
                changed = database.execute(f"UPDATE {table} SET {column} = ? WHERE {row}", (value,)).rowcount
            database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            database.close()
            if not changed:
                continue
            with suppress(EdgeFLError):  # anything else is a traceback, and fails the test
                verify_directory(run / "miners" / "miner-1")
                passed.add(column)
    assert passed <= HARMLESS
