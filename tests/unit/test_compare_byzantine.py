"""The comparison with hostile devices: rows are kept and not repeated, and the bar is on the difference of means."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from tools import compare_byzantine
from tools.compare_byzantine import NONE, Run, compare, main, read_runs


def run_of(kind: str, seed: int, accuracy: float) -> Run:
    return Run(
        kind=kind,
        seed=seed,
        versions=40,
        reached=40,
        accuracy=accuracy,
        hostile_published=10,
        hostile_merged=1,
        refused_honest=0.0,
        wall_s=100.0,
    )


@pytest.mark.parametrize(("accuracy", "is_within"), [(0.97, True), (0.9501, True), (0.9499, False)])
def test_the_bar_is_on_the_difference_of_the_means(accuracy: float, *, is_within: bool) -> None:
    runs = [run_of(NONE, 1, 0.96), run_of(NONE, 2, 0.98), run_of("nan", 1, accuracy), run_of("nan", 2, accuracy)]
    lines, found = compare(runs)
    assert found is is_within
    assert lines[2].split()[:3] == ["nan", f"{accuracy:.4f}", f"{0.97 - accuracy:+.4f}"]


def test_a_comparison_is_taken_up_where_it_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "runs.jsonl"
    whole = json.dumps(asdict(run_of(NONE, 1, 0.97)))
    out.write_text(f"{whole}\n{whole[:40]}")  # the second row was torn by a kill
    started = []

    def run_demo(_: Path, kind: str, seed: int, *, versions: int, seconds: float) -> Run:
        started.append((kind, seed, versions, seconds))
        return run_of(kind, seed, 0.96)

    monkeypatch.setattr(compare_byzantine, "run_demo", run_demo)
    arguments = ["--data", str(tmp_path), "--out", str(out), "--kinds", "none,nan", "--seeds", "1"]
    assert main(arguments) == 0
    assert started == [("nan", 1, 40, 240)]
    assert main(arguments) == 0
    assert len(started) == 1
    assert [run.kind for run in read_runs(out)] == [NONE, "nan"]
