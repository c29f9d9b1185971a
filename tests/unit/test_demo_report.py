"""The report from hand-made facts: every number worked out on paper, and the whole of it as the contract wants it."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from coordinator.demo.auditor import Audit
from coordinator.demo.baseline import Baseline
from coordinator.demo.records import RunPhase
from coordinator.demo.report import (
    BlockTimes,
    DeviceMemory,
    RunFacts,
    build_report,
    publish_to_receipt_ms,
    write_report,
)
from edge_sdk.protocol.messages import CutCause, Reason
from tools.check_report import check_report

MS = 1_000_000
START_NS = 5_000 * MS


def phase(
    name: str,
    start_ms: float,
    duration_ms: float = 0.0,
    *,
    energy_mj: int | None = None,
    quality: str = "modelled",
    actor: str = "dev-0",
    **ids: Any,
) -> RunPhase:
    """Return a line of a run record; times count from the start of the run."""
    return RunPhase(actor, name, START_NS + round(start_ms * MS), round(duration_ms * MS), 0, energy_mj, quality, ids)


DEVICE_PHASES = (
    phase("fetch", 0, 10, energy_mj=100),
    phase("train", 100, 900, energy_mj=2_000),
    phase("make_update", 1_000, 10, energy_mj=300),
    phase("idle", 1_010, 500, energy_mj=9_999),  # waiting is not charged
    phase("publish", 1_010, 2, energy_mj=None, update="aa"),
    phase("receipt", 1_030, update="aa"),
    phase("receipt", 1_022, update="aa"),  # the first one counts
    phase("publish", 1_500, update="aa"),  # sent again
    phase("publish", 2_000, update="bb"),
    phase("receipt", 2_040, update="bb"),
    phase("publish", 2_500, update="cc"),  # never receipted
    phase("receipt", 2_600, update="dd"),  # of a publication that the record no longer holds
    phase("train", 2_000, 1_500, energy_mj=1_600),
)
MINER_PHASES = (
    phase("certify", 1_100, 400, actor="miner-1", block_index=1),
    phase("certify", 1_100, 300, actor="miner-2", block_index=1),
    phase("score", 1_100, 150, actor="miner-1", block_index=1),
    phase("score", 1_100, 250, actor="miner-2", block_index=1),
    phase("certify", 3_000, 60, actor="miner-1", block_index=2),
    phase("score", 3_000, 90, actor="miner-1", block_index=2),  # it voted without its own scores
    phase("score", 3_000, 500, actor="miner-1"),  # of no block
)


def facts(**changes: Any) -> RunFacts:
    counts = Audit(
        published=4,
        merged=2,
        refused=Counter({Reason.STALE: 1}),
        pending=1,
        honest_judged=3,
        honest_refused_on_content=1,
        hostile_published=1,
        certificates_verified=7,
        payload_bytes=[100, 200],
        envelope_bytes=[10, 11],
    )
    made = RunFacts(
        dataset="digits",
        model="mlp",
        partition="iid",
        board="rpi-4b",
        broker="mosquitto",
        engine="local",
        seed=3,
        devices=2,
        miners=4,
        wall_s=12.3456,
        start_ns=START_NS,
        curve=((0.0, 0, 0.1), (1.5, 1, 0.5), (4.0, 2, 0.9)),
        measure="R2",
        codec="int8",
        parameter_count=1_000,
        baseline=Baseline(accuracy=0.95, epochs=9, lr=0.1, train_n=80, test_n=20),
        audit=counts,
        memory=DeviceMemory(idle=40.04, training_peak=90.06, idle_after=70.0),
        blocks=(
            BlockTimes(index=1, cause=CutCause.SIZE, cut_s=1.1, certified_s=1.5, merged=1, refused=1),
            BlockTimes(index=2, cause=CutCause.TAU, cut_s=3.0, certified_s=None, merged=1, refused=0),
        ),
        device_phases=DEVICE_PHASES,
        miner_phases=MINER_PHASES,
        model_version=2,
        model_root="ab" * 32,
        ledger_verified=True,
    )
    return replace(made, **changes)


def test_the_report_keeps_its_contract_and_survives_json(tmp_path: Path) -> None:
    report = build_report(facts())
    path = tmp_path / "report.json"
    write_report(report, path)
    assert json.loads(path.read_bytes()) == report
    assert check_report(report) == []


def test_counts_blocks_and_accuracy_by_hand() -> None:
    report = build_report(facts())
    assert report["updates"] == {
        "published": 4,
        "merged": 2,
        "refused": {"stale": 1},
        "pending": 1,
        "unreceipted": 0,
        "lost": 0,
        "duplicated": 0,
    }
    assert report["refused_honest"] == 0.3333
    assert report["hostile"] == {"published": 1, "merged": 0}
    assert report["bytes"] == {"codec": "int8", "payload_mean": 150.0, "envelope_mean": 10.5, "fp32_equivalent": 4_000}
    assert (report["blocks"], report["blocks_by_cause"]) == (2, {"tau": 1, "size": 1})
    assert report["block_timeline"] == [[1, 1.1, 1.5, "size", 1, 1], [2, 3.0, None, "tau", 1, 0]]
    assert (report["measure"], report["accuracy_initial"], report["accuracy_final"]) == ("R2", 0.1, 0.9)
    assert report["device_rss_mib"] == {"idle": 40.0, "training_peak": 90.1, "idle_after": 70.0}
    assert (report["wall_s"], report["certificates_verified_by_devices"]) == (12.35, 7)


def test_latencies_are_those_of_first_publications_and_first_receipts() -> None:
    assert sorted(publish_to_receipt_ms(DEVICE_PHASES)) == [12.0, 40.0]
    latency = build_report(facts())["latency_ms"]
    assert (latency["publish_to_receipt_p50"], latency["publish_to_receipt_p99"]) == (12.0, 40.0)


def test_scoring_of_the_slowest_miner_is_taken_out_of_cut_to_certificate() -> None:
    latency = build_report(facts())["latency_ms"]
    # Block 1: 400 - 250 and 300 - 250; block 2: 60 - 90 is no time at all.
    assert (latency["cut_to_certificate_p50"], latency["cut_to_certificate_p99"]) == (50.0, 150.0)
    assert (latency["cut_to_certificate_with_scoring_p50"], latency["scoring_p99"]) == (300.0, 250.0)


def test_energy_is_charged_by_phase_and_shared_over_updates() -> None:
    energy = build_report(facts())["energy"]
    assert energy == {
        "joules_per_update": 1.0,  # (0.1 + 2.0 + 0.3 + 1.6) / 4
        "quality": "modelled",
        "board": "rpi-4b",
        "joules_by_phase": {"fetch": 0.1, "self_test": 0, "train": 3.6, "make_update": 0.3, "store": 0},
    }


def test_the_energy_curve_counts_what_was_over_by_then() -> None:
    # At 1.5 s the first training and its update are over; at 4 s the second training, which ended at 3.5 s.
    assert build_report(facts())["energy_curve"] == [[0.0, 0.1], [2.4, 0.5], [4.0, 0.9]]


@pytest.mark.parametrize(
    "phases",
    [
        (),
        (phase("train", 0, 900), phase("publish", 1)),  # a board without power figures
        (phase("idle", 0, 900, energy_mj=5),),
        (phase("train", 0, 1, energy_mj=5), phase("train", 1, 1, energy_mj=5, quality="measured")),  # never mixed
    ],
    ids=["nothing", "null", "only idle", "two qualities"],
)
def test_without_one_quality_of_figures_there_are_no_joules(phases: tuple[RunPhase, ...]) -> None:
    report = build_report(facts(device_phases=phases))
    assert report["energy"] == {"joules_per_update": None, "quality": "unavailable", "board": "rpi-4b"}
    assert check_report(report) == []


def test_a_phase_without_figures_among_others_is_not_counted_as_nothing_of_them() -> None:
    phases = (*DEVICE_PHASES, phase("train", 5_000, 10, quality="measured"))
    assert build_report(facts(device_phases=phases))["energy"]["joules_per_update"] == 1.0


def test_a_run_in_which_nothing_happened_is_still_a_report() -> None:
    report = build_report(facts(audit=Audit(), blocks=(), curve=(), device_phases=(), miner_phases=()))
    assert check_report(report) == ["updates.published: nothing was published"]
    assert set(report["latency_ms"].values()) == {0.0}
    assert (report["accuracy_final"], report["energy_curve"], report["bytes"]["payload_mean"]) == (0.0, [], 0.0)
