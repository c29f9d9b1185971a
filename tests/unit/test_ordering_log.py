from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from coordinator.ordering.log import Decided, OrderedLog, decide
from edge_sdk.errors import ConfigError, CorruptLedgerError, StoreError


def open_log(path: Path, *, chain_id: str = "chain", genesis_digest: bytes = b"g" * 32) -> OrderedLog:
    return OrderedLog.open(path, chain_id=chain_id, genesis_digest=genesis_digest)


def fill(log: OrderedLog, count: int) -> list[Decided]:
    heights = []
    previous_hash = log.origin
    for height in range(1, count + 1):
        made = decide(
            previous_hash=previous_hash,
            height=height,
            time_s=1_000 + height,
            proposer="m0",
            previous_app_hash=b"app%d" % height,
            txs=[b"tx%d" % height, b""],
        )
        log.append(made)
        heights.append(made)
        previous_hash = made.block_hash
    return heights


def test_heights_come_back_after_reopening(tmp_path: Path) -> None:
    log = open_log(tmp_path / "log.sqlite3")
    assert log.head() == 0
    heights = fill(log, 3)
    log.close()
    log = open_log(tmp_path / "log.sqlite3")
    assert log.head() == 3
    assert [log.read(height) for height in (1, 2, 3)] == heights
    log.close()


def test_the_hash_covers_every_field() -> None:
    fields = {
        "previous_hash": b"p",
        "height": 1,
        "time_s": 2,
        "proposer": "m",
        "previous_app_hash": b"a",
        "txs": [b"x", b"y"],
    }
    other = {
        "previous_hash": b"q",
        "height": 2,
        "time_s": 3,
        "proposer": "n",
        "previous_app_hash": b"b",
        "txs": [b"xy"],
    }
    hashes = {decide(**fields | {name: other[name]}).block_hash for name in fields}  # type: ignore[arg-type]
    assert len(hashes | {decide(**fields).block_hash}) == len(fields) + 1  # type: ignore[arg-type]


def test_two_sequencers_cannot_share_a_log(tmp_path: Path) -> None:
    log = open_log(tmp_path / "log.sqlite3")
    with pytest.raises(ConfigError, match="another sequencer"):
        open_log(tmp_path / "log.sqlite3")
    log.close()
    open_log(tmp_path / "log.sqlite3").close()


@pytest.mark.parametrize("other", [{"chain_id": "else"}, {"genesis_digest": b"h" * 32}])
def test_a_log_belongs_to_its_chain(tmp_path: Path, other: dict[str, str | bytes]) -> None:
    open_log(tmp_path / "log.sqlite3").close()
    with pytest.raises(ConfigError, match="another chain"):
        open_log(tmp_path / "log.sqlite3", **other)  # type: ignore[arg-type]
    open_log(tmp_path / "log.sqlite3").close()  # the refusal let go of the file


TAMPERINGS = [
    "UPDATE heights SET time_s = 7 WHERE height = 2",
    "UPDATE heights SET proposer = 'm1' WHERE height = 2",
    "UPDATE heights SET txs = x'0178' WHERE height = 2",
    "UPDATE heights SET txs = x'0978' WHERE height = 2",
    "UPDATE heights SET previous_app_hash = x'00' WHERE height = 2",
    "UPDATE heights SET block_hash = x'00' WHERE height = 2",
    "UPDATE heights SET block_hash = x'00' WHERE height = 1",
]


@pytest.mark.parametrize("statement", TAMPERINGS)
def test_a_changed_height_is_named(tmp_path: Path, statement: str) -> None:
    path = tmp_path / "log.sqlite3"
    log = open_log(path)
    fill(log, 4)
    log.close()
    with closing(sqlite3.connect(path)) as database:
        database.execute(statement)
        database.commit()
    log = open_log(path)
    with pytest.raises(CorruptLedgerError) as caught:
        log.read(2)
    log.close()
    assert (caught.value.height, caught.value.place) == (2, f"{path}:heights")


def test_a_gap_and_a_changed_head_stop_the_start(tmp_path: Path) -> None:
    for number, statement in enumerate(
        ("DELETE FROM heights WHERE height = 2", "UPDATE heights SET time_s = 7 WHERE height = 3")
    ):
        path = tmp_path / f"{number}.sqlite3"
        log = open_log(path)
        fill(log, 3)
        log.close()
        with closing(sqlite3.connect(path)) as database:
            database.execute(statement)
            database.commit()
        with pytest.raises(CorruptLedgerError):
            open_log(path)


@pytest.mark.parametrize(
    "spoil", [lambda path: path.write_bytes(b"not a database" * 100), lambda path: path.mkdir()], ids=["text", "folder"]
)
def test_what_is_no_log_is_refused(tmp_path: Path, spoil: Callable[[Path], object]) -> None:
    spoil(tmp_path / "log.sqlite3")
    with pytest.raises((CorruptLedgerError, StoreError)):
        open_log(tmp_path / "log.sqlite3")


def test_a_full_disk_is_a_store_error_and_loses_nothing(tmp_path: Path) -> None:
    log = open_log(tmp_path / "log.sqlite3")
    (first,) = fill(log, 1)
    (pages,) = log._database.execute("PRAGMA page_count").fetchone()
    log._database.execute(f"PRAGMA max_page_count = {pages}")
    large = decide(
        previous_hash=first.block_hash,
        height=2,
        time_s=0,
        proposer="m0",
        previous_app_hash=b"",
        txs=[bytes(60_000)],
    )
    with pytest.raises(StoreError, match="full"):
        log.append(large)
    assert log.head() == 1
    log.close()
    log = open_log(tmp_path / "log.sqlite3")
    log.append(large)
    assert log.read(2) == large
    log.close()
