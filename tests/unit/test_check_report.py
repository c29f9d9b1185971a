import json
from pathlib import Path
from typing import Any

import pytest

from tools.check_report import CONTRACT, check_report, main


def good_report() -> dict[str, Any]:
    return {
        "dataset": "digits",
        "model": "mlp",
        "devices": 12,
        "miners": 4,
        "engine": "local",
        "partition": "dirichlet:0.5",
        "seed": 0,
        "wall_s": 61.5,
        "model_version": 20,
        "blocks": 21,
        "blocks_by_cause": {"tau": 4, "size": 17},
        "measure": "accuracy",
        "accuracy_initial": 0.1,
        "accuracy_final": 0.93,
        "accuracy_curve": [[0.0, 0, 0.1], [61.0, 20, 0.93]],
        "baseline": {"accuracy": 0.958, "epochs": 60, "lr": 0.05, "train_n": 1200, "test_n": 360},
        "updates": {
            "published": 100,
            "merged": 80,
            "refused": {"quality": 9, "stale": 3},
            "pending": 5,
            "unreceipted": 3,
            "lost": 0,
            "duplicated": 0,
        },
        "hostile": {"published": 9, "merged": 0},
        "refused_honest": 0.02,
        "bytes": {"codec": "int8", "payload_mean": 17300.0, "envelope_mean": 420.0, "fp32_equivalent": 69000},
        "device_rss_mib": {"idle": 41.0, "training_peak": 92.0, "idle_after": 71.0},
        "latency_ms": {
            "publish_to_receipt_p50": 14.0,
            "publish_to_receipt_p99": 80.0,
            "cut_to_certificate_p50": 90.0,
            "cut_to_certificate_p99": 200.0,
        },
        "energy": {"joules_per_update": 1.2, "quality": "modelled", "board": "rpi-4b"},
        "ledger_verified": True,
        "certificates_verified_by_devices": 240,
        "model_root": "ab" * 32,
    }


def test_a_good_report_has_no_problem() -> None:
    assert check_report(good_report()) == []
    assert set(good_report()) == set(CONTRACT)


@pytest.mark.parametrize("key", list(CONTRACT))
def test_every_key_is_needed(key: str) -> None:
    report = good_report()
    del report[key]
    assert check_report(report) == [f"report.{key}: missing"]


@pytest.mark.parametrize(
    ("place", "value", "word"),
    [
        ("dataset", "", "report.dataset"),
        ("devices", True, "report.devices"),
        ("devices", -1, "report.devices"),
        ("blocks", 21.0, "report.blocks"),
        ("wall_s", float("nan"), "report.wall_s"),
        ("accuracy_curve", [[0.0, 0]], "report.accuracy_curve"),
        ("updates", [], "report.updates"),
        ("updates.refused", {"stale": "3"}, "report.updates.refused"),
        ("ledger_verified", 1, "report.ledger_verified"),
        ("ledger_verified", False, "ledger_verified"),
        ("updates.merged", 79, "published 100 != merged 79 + refused 12 + pending 5 + unreceipted 3"),
        ("updates.lost", 1, "updates.lost"),
        ("updates.duplicated", 2, "updates.duplicated"),
        ("blocks_by_cause.tau", 3, "blocks 21 != 20"),
        ("hostile.merged", 10, "hostile"),
        ("energy.quality", "guessed", "energy.quality"),
        ("energy.quality", "unavailable", "energy.joules_per_update"),
        ("energy.joules_per_update", None, "energy.joules_per_update"),
        ("energy.joules_per_update", "1.2", "report.energy.joules_per_update"),
    ],
)
def test_one_wrong_value_is_named(place: str, value: object, word: str) -> None:
    report = good_report()
    *parents, key = place.split(".")
    holder = report
    for parent in parents:
        holder = holder[parent]
    holder[key] = value
    (problem,) = check_report(report)
    assert problem.startswith(word)


def test_a_board_without_power_figures_has_no_joules() -> None:
    report = good_report()
    report["energy"] = {"joules_per_update": None, "quality": "unavailable", "board": "x86-64-generic"}
    assert check_report(report) == []


def test_an_idle_demo_is_no_success() -> None:
    report = good_report()
    report["updates"] = {
        "published": 0,
        "merged": 0,
        "refused": {},
        "pending": 0,
        "unreceipted": 0,
        "lost": 0,
        "duplicated": 0,
    }
    assert check_report(report) == ["updates.published: nothing was published"]


def test_exit_codes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "report.json"
    assert main([]) == 2
    assert main([str(path)]) == 2
    path.write_text("{")
    assert main([str(path)]) == 2
    path.write_text("[]")
    assert main([str(path)]) == 1
    path.write_text(json.dumps(good_report()))
    assert main([str(path)]) == 0
    assert "80 merged" in capsys.readouterr().out
