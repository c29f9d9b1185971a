"""The machine-readable report of a run, from the files that it left behind and from what was seen from outside.

Every number says in one place how it came about: counts are the auditor's; latencies, bytes and joules come from the
run records; memory from /proc; accuracy from certified models on the test set.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Final

from coordinator.demo.auditor import Audit
from coordinator.demo.baseline import Baseline
from coordinator.demo.personal import PersonalResult, report_personal
from coordinator.demo.records import NS_PER_MS, RunPhase, percentile
from coordinator.serving.metrics import MinerPhase
from edge_sdk.adapters.durable_files import write_file
from edge_sdk.protocol.messages import CutCause

NS_PER_S: Final = 1e9
MILLI: Final = 1e-3
FP32_BYTES: Final = 4
PUBLISH: Final = "publish"
RECEIPT: Final = "receipt"
ENERGY_PHASES: Final = ("fetch", "self_test", "train", "make_update", "store")
"""Work that an update costs its device, from the next model to the outbox. Idle power in between is not charged."""
UNAVAILABLE: Final = "unavailable"


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockTimes:
    """One block as the miners' records have it; seconds since the start of the run."""

    index: int
    cause: CutCause
    cut_s: float
    certified_s: float | None
    merged: int
    refused: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceMemory:
    """Resident memory of the device processes, MiB; each the largest of all devices."""

    idle: float
    """Connected and waiting for the first model, before numpy and the runtime are loaded."""
    training_peak: float
    """VmHWM."""
    idle_after: float
    """Median between jobs, after the first one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """What is known of a finished run."""

    dataset: str
    model: str
    partition: str
    board: str
    broker: str
    engine: str
    seed: int
    devices: int
    miners: int
    wall_s: float
    start_ns: int
    """Monotonic clock at the start of the run."""
    curve: Sequence[tuple[float, int, float]]
    """Seconds, version, test accuracy or what ``measure`` says; the first is the genesis model."""
    measure: str
    """What the keys ``accuracy_*`` hold: accuracy, R2 or AUC."""
    codec: str
    parameter_count: int
    baseline: Baseline
    audit: Audit
    memory: DeviceMemory
    blocks: Sequence[BlockTimes]
    device_phases: Sequence[RunPhase]
    miner_phases: Sequence[RunPhase]
    model_version: int
    model_root: str
    ledger_verified: bool
    personal: Sequence[PersonalResult] = ()


def build_report(facts: RunFacts) -> dict[str, Any]:
    """Return the report as plain values, ready for JSON."""
    audit, energy = facts.audit, _energy(facts)
    return {
        "dataset": facts.dataset,
        "model": facts.model,
        "devices": facts.devices,
        "miners": facts.miners,
        "engine": facts.engine,
        "broker": facts.broker,
        "partition": facts.partition,
        "seed": facts.seed,
        "wall_s": round(facts.wall_s, 2),
        "model_version": facts.model_version,
        "blocks": len(facts.blocks),
        "blocks_by_cause": {
            cause.name.lower(): sum(block.cause is cause for block in facts.blocks)
            for cause in (CutCause.TAU, CutCause.SIZE)
        },
        "measure": facts.measure,
        "accuracy_initial": facts.curve[0][2] if facts.curve else 0.0,
        "accuracy_final": facts.curve[-1][2] if facts.curve else 0.0,
        "accuracy_curve": [[round(seconds, 2), version, accuracy] for seconds, version, accuracy in facts.curve],
        "baseline": asdict(facts.baseline),
        "personal": report_personal(facts.personal),
        "updates": {
            "published": audit.published,
            "merged": audit.merged,
            "refused": {reason.name.lower(): count for reason, count in sorted(audit.refused.items())},
            "pending": audit.pending,
            "unreceipted": audit.unreceipted,
            "lost": audit.lost,
            "duplicated": audit.duplicated,
        },
        "hostile": {"published": audit.hostile_published, "merged": audit.hostile_merged},
        "refused_honest": round(audit.refused_honest, 4),
        "bytes": {
            "codec": facts.codec,
            "payload_mean": _mean(audit.payload_bytes),
            "envelope_mean": _mean(audit.envelope_bytes),
            "fp32_equivalent": facts.parameter_count * FP32_BYTES,
        },
        "device_rss_mib": {name: round(value, 1) for name, value in asdict(facts.memory).items()},
        "latency_ms": _latencies(facts),
        "energy": energy,
        "energy_curve": _energy_curve(facts),
        "block_timeline": [
            [
                block.index,
                round(block.cut_s, 2),
                None if block.certified_s is None else round(block.certified_s, 2),
                block.cause.name.lower(),
                block.merged,
                block.refused,
            ]
            for block in facts.blocks
        ],
        "ledger_verified": facts.ledger_verified,
        "certificates_verified_by_devices": audit.certificates_verified,
        "model_root": facts.model_root,
    }


def write_report(report: Mapping[str, Any], path: Path) -> None:
    """Write the report; a reader never sees half of it."""
    write_file(path, (json.dumps(report, indent=2) + "\n").encode())


def _mean(values: Sequence[int]) -> float:
    return round(fmean(values), 1) if values else 0.0


# --- latency ---


def _latencies(facts: RunFacts) -> dict[str, float]:
    """Milliseconds. What the slowest scoring miner needs is taken out of cut to certificate, and reported beside it."""
    receipts = publish_to_receipt_ms(facts.device_phases)
    scoring_ns: dict[int, int] = {}
    for phase in _of(facts.miner_phases, MinerPhase.SCORE):
        index = int(phase.ids["block_index"])
        scoring_ns[index] = max(scoring_ns.get(index, 0), phase.duration_ns)
    certify = _of(facts.miner_phases, MinerPhase.CERTIFY)
    whole_ms = [phase.duration_ns / NS_PER_MS for phase in certify]
    net_ms = [
        max(0, phase.duration_ns - scoring_ns.get(int(phase.ids["block_index"]), 0)) / NS_PER_MS for phase in certify
    ]
    figures = {
        "publish_to_receipt": receipts,
        "cut_to_certificate": net_ms,
        "cut_to_certificate_with_scoring": whole_ms,
        "scoring": [duration / NS_PER_MS for duration in scoring_ns.values()],
    }
    return {
        f"{name}_p{round(100 * share)}": round(percentile(values, share), 2)
        for name, values in figures.items()
        for share in (0.5, 0.99)
    }


def publish_to_receipt_ms(phases: Iterable[RunPhase]) -> list[float]:
    """From the first publication of each update to its first signed receipt; a fault in between counts as it was."""
    published: dict[str, int] = {}
    received: dict[str, int] = {}
    for phase in phases:
        update = str(phase.ids.get("update"))
        if phase.phase == PUBLISH:
            published[update] = min(published.get(update, phase.start_ns), phase.start_ns)
        elif phase.phase == RECEIPT:
            received[update] = min(received.get(update, phase.end_ns), phase.end_ns)
    return [(end_ns - published[update]) / NS_PER_MS for update, end_ns in received.items() if update in published]


def _of(phases: Iterable[RunPhase], kind: MinerPhase) -> list[RunPhase]:
    return [phase for phase in phases if phase.phase == kind and "block_index" in phase.ids]


# --- energy ---


def _charged(facts: RunFacts) -> list[RunPhase]:
    return [phase for phase in facts.device_phases if phase.phase in ENERGY_PHASES and phase.energy_mj is not None]


def _energy(facts: RunFacts) -> dict[str, Any]:
    """Joules per published update; qualities are never mixed in one figure."""
    charged = _charged(facts)
    qualities = {phase.energy_quality for phase in charged}
    if len(qualities) != 1 or not facts.audit.published:
        return {"joules_per_update": None, "quality": UNAVAILABLE, "board": facts.board}
    joules = sum(phase.energy_mj or 0 for phase in charged) * MILLI
    by_phase = {
        kind: round(sum(phase.energy_mj or 0 for phase in charged if phase.phase == kind) * MILLI, 3)
        for kind in ENERGY_PHASES
    }
    return {
        "joules_per_update": round(joules / facts.audit.published, 4),
        "quality": qualities.pop(),
        "board": facts.board,
        "joules_by_phase": by_phase,
    }


def _energy_curve(facts: RunFacts) -> list[list[float]]:
    """[joules of all devices until then, accuracy] for each point of the accuracy curve."""
    charged = sorted(_charged(facts), key=lambda phase: phase.end_ns)
    points: list[list[float]] = []
    spent_mj, position = 0, 0
    for seconds, _, accuracy in facts.curve if charged else ():
        until_ns = facts.start_ns + seconds * NS_PER_S
        while position < len(charged) and charged[position].end_ns <= until_ns:
            spent_mj += charged[position].energy_mj or 0
            position += 1
        points.append([round(spent_mj * MILLI, 3), accuracy])
    return points
