"""The picture of a run is a real PNG of the promised size, and the CSV files beside it hold the report's numbers."""

from __future__ import annotations

import csv
import struct
from pathlib import Path
from typing import Any

import pytest

from coordinator.demo.picture import draw

WIDTH_PX, HEIGHT_PX = 1_440, 864
"""12 x 7.2 inches at 120 dots per inch."""


def report(**changes: Any) -> dict[str, Any]:
    return {
        "dataset": "digits",
        "model": "mlp",
        "devices": 12,
        "partition": "dirichlet:0.5",
        "miners": 4,
        "measure": "accuracy",
        "accuracy_final": 0.931,
        "model_version": 2,
        "accuracy_curve": [[0.0, 0, 0.1], [9.25, 1, 0.62], [20.5, 2, 0.931]],
        "energy_curve": [[0.0, 0.1], [31.5, 0.62], [70.25, 0.931]],
        "baseline": {"accuracy": 0.958},
        "energy": {"quality": "modelled", "board": "rpi-4b"},
        "block_timeline": [[1, 8.5, 9.25, "size", 5, 1], [2, 20.0, None, "tau", 2, 0]],
        "blocks_by_cause": {"size": 1, "tau": 1},
        **changes,
    }


def png_size(path: Path) -> tuple[int, int]:
    """Width and height of a PNG file; its signature, header and end are checked (PNG specification, section 5)."""
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert data[12:16] == b"IHDR"
    assert data[-8:-4] == b"IEND"
    width, height = struct.unpack(">II", data[16:24])
    return width, height


def rows_of(path: Path) -> list[list[str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def as_text(rows: list[list[Any]]) -> list[list[str]]:
    return [["" if value is None else str(value) for value in row] for row in rows]


def test_a_png_of_the_expected_size_and_the_numbers_beside_it(tmp_path: Path) -> None:
    whole = report()
    draw(whole, tmp_path / "run.png")
    assert png_size(tmp_path / "run.png") == (WIDTH_PX, HEIGHT_PX)
    header, *rows = rows_of(tmp_path / "run_accuracy.csv")
    assert header == ["seconds", "version", "accuracy"]
    assert rows == as_text(whole["accuracy_curve"])
    header, *rows = rows_of(tmp_path / "run_blocks.csv")
    assert header == ["index", "cut_s", "certified_s", "cause", "merged", "refused"]
    assert rows == as_text(whole["block_timeline"])
    assert {path.name for path in tmp_path.iterdir()} == {"run.png", "run_accuracy.csv", "run_blocks.csv"}


@pytest.mark.parametrize(
    "changes",
    [
        {"energy_curve": [], "energy": {"quality": "unavailable", "board": "x86-64-generic"}},
        {"accuracy_curve": [], "energy_curve": [], "block_timeline": [], "accuracy_final": 0.0},
    ],
    ids=["no power figures", "nothing happened"],
)
def test_a_run_without_some_numbers_still_has_its_picture(tmp_path: Path, changes: dict[str, Any]) -> None:
    draw(report(**changes), tmp_path / "run.png")
    assert png_size(tmp_path / "run.png") == (WIDTH_PX, HEIGHT_PX)
