"""The replay buffer: what it keeps, how large its file gets, what it refuses, and that a kill costs nothing."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from edge_sdk.adapters.replay_buffer import BYTES_MAX, ReplayBuffer
from edge_sdk.adapters.replay_form import RowForm
from edge_sdk.errors import ConfigError, CorruptStoreError, EdgeFLError, StoreError, TrainingError

FORM = RowForm(input_shape=(5,))
SMALL = {"rows_max": 20, "seed": 7}


def stream(count: int, start: int = 0) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Row n holds n in all places; nine of ten rows are of class 0."""
    numbers = np.arange(start, start + count)
    x = np.repeat(numbers[:, None], 5, axis=1).astype(np.float32)
    return x, np.where(numbers % 10 == 3, 1 + numbers % 3, 0)


def held(path: Path) -> list[int]:
    with ReplayBuffer.open_existing(path) as buffer:
        x, y, numbers = buffer.read()
    assert np.array_equal(x, np.repeat(numbers[:, None], 5, axis=1))
    assert np.array_equal(y, stream(1 + int(numbers.max()))[1][numbers])
    return list(numbers)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "replay.sqlite3"


def test_rare_classes_have_their_share_and_order_is_that_of_the_stream(path: Path) -> None:
    with ReplayBuffer.open(path, FORM, **SMALL) as buffer:
        buffer.add(*stream(400))
        assert (len(buffer), buffer.capacity, buffer.seen) == (20, 20, 400)
        counts = buffer.counts()
    assert {label: count.stored for label, count in counts.items()} == {0: 5, 1: 5, 2: 5, 3: 5}
    assert counts[0].seen == 360
    assert held(path) == sorted(held(path))
    assert path.stat().st_mode & 0o777 == 0o600


def test_one_row_at_a_time_or_all_at_once_keeps_the_same(path: Path) -> None:
    with ReplayBuffer.open(path, FORM, **SMALL) as buffer:
        buffer.add(*stream(90))
    other = path.with_name("other.sqlite3")
    for start in range(0, 90, 9):
        with ReplayBuffer.open(other, FORM, **SMALL) as buffer:
            for number in range(start, start + 9):
                buffer.add(*stream(1, number))
    assert held(other) == held(path)
    third = path.with_name("third.sqlite3")
    with ReplayBuffer.open(third, FORM, rows_max=20, seed=8) as buffer:
        buffer.add(*stream(90))
    assert held(third) != held(path)


def test_two_feeders_do_not_disturb_each_other(path: Path) -> None:
    with ReplayBuffer.open(path, FORM, **SMALL) as one, ReplayBuffer.open(path, FORM, **SMALL) as other:
        for number in range(60):
            (one if number % 3 else other).add(*stream(1, number))
        assert one.seen == other.seen == 60
    alone = path.with_name("alone.sqlite3")
    with ReplayBuffer.open(alone, FORM, **SMALL) as buffer:
        buffer.add(*stream(60))
    assert held(path) == held(alone)


@pytest.mark.parametrize(
    "form", [RowForm(input_shape=(40,)), RowForm(input_shape=(1100,)), RowForm(input_shape=(3, 900))]
)
def test_the_file_stays_below_its_bound(path: Path, form: RowForm) -> None:
    bytes_max = 400 * 1024
    rng = np.random.default_rng(0)
    with ReplayBuffer.open(path, form, rows_max=10**6, bytes_max=bytes_max) as buffer:
        assert buffer.capacity * form.row_bytes > 0.4 * bytes_max
        for _ in range(4):
            count = buffer.capacity
            x = rng.normal(size=(count, *form.input_shape)).astype(np.float32)
            buffer.add(x, rng.integers(0, 9, count))
            assert path.stat().st_size <= bytes_max
            assert path.with_name(path.name + "-wal").stat().st_size < 3 * 1024 * 1024
        assert len(buffer) == buffer.capacity


def test_bytes_and_targets(path: Path) -> None:
    form = RowForm(input_shape=(2, 3), x_type="uint8", target_count=2)
    x = np.arange(30, dtype=np.uint8).reshape(5, 2, 3)
    y = np.linspace(0, 1, 10).reshape(5, 2).astype(np.float32)
    assert RowForm.of(x, y) == form
    with ReplayBuffer.open(path, form) as buffer:
        buffer.add(x, y)
        found_x, found_y, numbers = buffer.read(limit=4)
    assert found_x.dtype == np.uint8
    assert np.array_equal(found_x, x[:4])
    assert np.array_equal(found_y, y[:4])
    assert list(numbers) == [0, 1, 2, 3]


def test_a_snapshot_is_what_was_there_at_its_moment(path: Path) -> None:
    folder = path.with_name("examples")
    with ReplayBuffer.open(path, FORM, **SMALL) as buffer:
        buffer.add(*stream(12))
        with ReplayBuffer.open_existing(path) as reader:
            reader.snapshot(folder)
        buffer.add(*stream(5, 12))
    x, y = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("x", "y"))
    assert np.array_equal(x, stream(12)[0])
    assert np.array_equal(y, stream(12)[1])
    assert list(np.load(folder / "number.npy")) == list(range(12))


def test_an_empty_buffer_says_how_to_fill_it(path: Path) -> None:
    with pytest.raises(StoreError, match="feed it with flchain device feed"):
        ReplayBuffer.open_existing(path)
    with ReplayBuffer.open(path, FORM) as buffer, pytest.raises(TrainingError, match="no rows yet"):
        buffer.snapshot(path.with_name("examples"))


def test_bad_rows_are_named_and_none_is_kept(path: Path) -> None:
    x, y = stream(4)
    nan = x.copy()
    nan[2, 1] = np.nan
    huge = x.astype(np.float64)
    huge[1] = 1e300
    cases: list[tuple[npt.NDArray[Any], npt.NDArray[Any], str]] = [
        (nan, y, "array x, row 2"),
        (huge, y, "beyond float32"),
        (x[:, :4], y, "array x: shape"),
        (x.astype(np.uint8), y, "type uint8, this buffer holds float32"),
        (x, np.array([0, 1, -1, 0]), "array y, row 2: label -1"),
        (x, np.array([0, 1, 5000, 0]), "array y, row 2: label 5000"),
        (x, y[:3], "4 rows, array y has 3"),
        (x, y.astype(np.float32), "integer label"),
    ]
    with ReplayBuffer.open(path, FORM) as buffer:
        for bad_x, bad_y, message in cases:
            with pytest.raises(TrainingError, match=message):
                buffer.add(bad_x, bad_y)
        assert (buffer.seen, len(buffer)) == (0, 0)


def test_a_buffer_keeps_the_rules_that_it_began_with(path: Path) -> None:
    ReplayBuffer.open(path, FORM, **SMALL).close()
    for form, rules, what in (
        (RowForm(input_shape=(6,)), SMALL, "rows"),
        (FORM, {"rows_max": 21, "seed": 7}, "room for 20, expected 21"),
        (FORM, {"rows_max": 20, "seed": 8}, "seed 7, expected 8"),
    ):
        with pytest.raises(ConfigError, match=what):
            ReplayBuffer.open(path, form, **rules)
    with pytest.raises(ConfigError, match="a row takes 4000000 bytes"):
        ReplayBuffer.open(path, RowForm(input_shape=(10**6,)), bytes_max=2**20)


def test_a_file_that_is_none_is_refused(path: Path) -> None:
    path.write_bytes(b"nonsense" * 1_000)
    with pytest.raises(CorruptStoreError):
        ReplayBuffer.open(path, FORM)
    with pytest.raises(CorruptStoreError):
        ReplayBuffer.open_existing(path)
    path.unlink()
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE other (a)")
    with pytest.raises(EdgeFLError, match="no replay buffer"):
        ReplayBuffer.open_existing(path)


FEEDER = """
import sys
from pathlib import Path
from tests.unit.test_replay_buffer import FORM, SMALL, ReplayBuffer, stream
with ReplayBuffer.open(Path(sys.argv[1]), FORM, **SMALL) as buffer:
    while buffer.seen < int(sys.argv[2]):
        buffer.add(*stream(min(7, int(sys.argv[2]) - buffer.seen), buffer.seen))
"""


def feed(path: Path, count: int, failpoint: str = "") -> int:
    environment = os.environ | {"FLCHAIN_FAILPOINT": failpoint, "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.run(
        [sys.executable, "-c", FEEDER, str(path), str(count)], env=environment, check=False
    ).returncode


def test_a_stream_that_was_killed_leaves_the_same_rows(path: Path) -> None:
    assert feed(path, 91, "device.replay_before_commit:4") == -signal.SIGKILL
    with ReplayBuffer.open_existing(path) as buffer:
        assert buffer.seen == 21  # three transactions were durable, the fourth left nothing
    assert feed(path, 91, "device.replay_before_commit:6") == -signal.SIGKILL
    assert feed(path, 91) == 0
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA quick_check").fetchone() == ("ok",)
        places = db.execute(
            "SELECT label, count(*), max(place), count(DISTINCT place) FROM rows GROUP BY label"
        ).fetchall()
    assert all(count == largest + 1 == different for _, count, largest, different in places)
    unbroken = path.with_name("unbroken.sqlite3")
    with ReplayBuffer.open(unbroken, FORM, **SMALL) as buffer:
        buffer.add(*stream(91))
    assert held(path) == held(unbroken)


def test_a_full_disk_loses_nothing_that_was_there(path: Path) -> None:
    """SQLite's own bound stands for the disk's: both end a transaction in the middle."""
    with ReplayBuffer.open(path, FORM, rows_max=5_000, bytes_max=BYTES_MAX) as buffer:
        buffer.add(*stream(50))
        buffer._db.execute("PRAGMA max_page_count=16")
        with pytest.raises(StoreError, match="full"):
            buffer.add(*stream(3_000, 50))
        seen = buffer.seen
        assert 50 <= seen < 3_050
        buffer._db.execute("PRAGMA max_page_count=100000")
        buffer.add(*stream(100, seen))
    assert held(path) == list(range(seen + 100))
