"""Run records as the product writes them and as a killed process leaves them; percentiles by hand."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from coordinator.demo.records import LINE_BYTES_MAX, percentile, read_run, read_runs
from edge_sdk.adapters.run_record import RunRecord
from edge_sdk.errors import CorruptStoreError
from edge_sdk.ports import Scope
from edge_sdk.protocol.messages import EnergyQuality

LINE = '{"phase":"train","start_ns":7,"duration_ns":3,"bytes":1,"energy_mj":null,"energy_quality":"modelled","seq":4}'


class Clock:
    """Steps a nanosecond per reading."""

    def __init__(self) -> None:
        self.now_ns = 0

    def monotonic_ns(self) -> int:
        self.now_ns += 1
        return self.now_ns

    def time_s(self) -> int:
        return 0


class Meter:
    """Half a joule per reading, from a sensor."""

    scope = Scope.BOARD
    quality = EnergyQuality.MEASURED

    def __init__(self) -> None:
        self.spent_j = 0.0

    def energy_j(self) -> float:
        self.spent_j += 0.5
        return self.spent_j


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "dev-0"


@pytest.fixture
def record(folder: Path) -> Iterator[RunRecord]:
    folder.mkdir()
    record = RunRecord(folder / "run.jsonl", clock=Clock(), meter=Meter())
    yield record
    record.close()


def write(folder: Path, text: str, name: str = "run.jsonl") -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text)


def test_what_the_product_writes_is_read_back(folder: Path, record: RunRecord) -> None:
    with record.measure("train", version=3) as span:
        span.bytes_count = 17
    record.mark("receipt", update="ab" * 32, miner="miner-1")
    train, receipt = read_run(folder)
    assert (train.actor, train.phase, train.bytes_count, train.ids) == ("dev-0", "train", 17, {"version": 3})
    assert (train.start_ns, train.duration_ns, train.end_ns) == (1, 1, 2)
    assert (train.energy_mj, train.energy_quality) == (500, "measured")
    assert (receipt.energy_mj, receipt.duration_ns) == (None, 0)
    assert receipt.ids == {"update": "ab" * 32, "miner": "miner-1"}


def test_a_torn_last_line_is_passed_over(folder: Path) -> None:
    write(folder, f"{LINE}\n{LINE[:40]}")
    assert [phase.ids for phase in read_run(folder)] == [{"seq": 4}]


def test_a_torn_last_line_that_happens_to_be_json_is_not_taken(folder: Path) -> None:
    write(folder, f"{LINE}\n{LINE}")
    assert len(list(read_run(folder))) == 1


@pytest.mark.parametrize("left", ["", LINE[:40], f"{LINE}\n", f"{LINE}\n{LINE[:40]}", f"{LINE}\n{LINE}"])
def test_a_restarted_process_does_not_write_onto_a_torn_line(folder: Path, left: str) -> None:
    write(folder, left)
    record = RunRecord(folder / "run.jsonl", clock=Clock())
    record.mark("start")
    record.close()
    assert [phase.phase for phase in read_run(folder)] == ["train"] * left.count("\n") + ["start"]


@pytest.mark.parametrize(
    "bad",
    [
        LINE[:40],
        "",
        "[]",
        "null",
        '"text"',
        "{}",
        LINE.replace('"phase"', '"fase"'),
        LINE.replace("7", '"seven"'),
        LINE.replace("null", '"much"'),
        LINE.replace('"duration_ns":3,', ""),
        "\x00" * 12,
    ],
    ids=["cut", "empty", "list", "null", "text", "object", "phase", "start", "energy", "duration", "zeros"],
)
def test_a_bad_line_in_the_middle_is_named(folder: Path, bad: str) -> None:
    write(folder, f"{LINE}\n{bad}\n{LINE}\n")
    with pytest.raises(CorruptStoreError, match=f"{folder / 'run.jsonl'}:2: not a phase"):
        list(read_run(folder))


def test_bytes_that_are_no_text_are_named(folder: Path) -> None:
    write(folder, f"{LINE}\n")
    with (folder / "run.jsonl").open("ab") as file:
        file.write(b"\xff\xfe\n")
    with pytest.raises(CorruptStoreError, match=r"run\.jsonl:2: "):
        list(read_run(folder))


def test_an_endless_line_is_refused(folder: Path) -> None:
    write(folder, f'{LINE}\n{{"phase":"{"x" * LINE_BYTES_MAX}"}}\n')
    with pytest.raises(CorruptStoreError, match=f"run.jsonl:2: a line of .* expected at most {LINE_BYTES_MAX}"):
        list(read_run(folder))


def test_the_older_file_comes_first(folder: Path) -> None:
    write(folder, LINE.replace("4", "1") + "\n", "run.1.jsonl")
    write(folder, LINE.replace("4", "2") + "\n")
    assert [phase.ids["seq"] for phase in read_run(folder)] == [1, 2]


def test_a_record_that_starts_again_loses_nothing_of_its_last_file(folder: Path) -> None:
    folder.mkdir()
    record = RunRecord(folder / "run.jsonl", clock=Clock(), bytes_max=400)
    for seq in range(6):
        record.mark("receipt", seq=seq)
    record.close()
    assert (folder / "run.1.jsonl").is_file()
    seen = [phase.ids["seq"] for phase in read_run(folder)]
    assert seen == list(range(6))[-len(seen) :]
    assert len(seen) >= 3


def test_actors_are_joined_by_start(tmp_path: Path) -> None:
    for name, starts in (("b", (1, 5)), ("a", (3, 2))):
        lines = (json.dumps({**json.loads(LINE), "start_ns": start}) for start in starts)
        write(tmp_path / name, "".join(f"{line}\n" for line in lines))
    (tmp_path / "notes.txt").write_text("not an actor")
    assert [(phase.actor, phase.start_ns) for phase in read_runs(tmp_path)] == [("b", 1), ("a", 2), ("a", 3), ("b", 5)]


def test_nothing_written_is_nothing_read(tmp_path: Path) -> None:
    (tmp_path / "dev-0").mkdir()
    assert read_runs(tmp_path) == []
    assert read_runs(tmp_path / "missing") == []


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [
        ((15, 20, 35, 40, 50), 0.05, 15),
        ((15, 20, 35, 40, 50), 0.30, 20),
        ((15, 20, 35, 40, 50), 0.40, 20),
        ((15, 20, 35, 40, 50), 0.50, 35),
        ((15, 20, 35, 40, 50), 1.00, 50),
        ((1, 2, 3, 4), 0.50, 2),
        (range(1, 101), 0.99, 99),
        (range(1, 201), 0.99, 198),
        ((7,), 0.99, 7),
        ((), 0.5, 0.0),
    ],
)
def test_nearest_rank_percentiles_by_hand(values: Iterator[float], share: float, expected: float) -> None:
    assert percentile(reversed(list(values)), share) == expected
