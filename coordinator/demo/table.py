"""The summary on the terminal, from the report alone but for the events of the run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from coordinator.demo.supervisor import RunEvent


def summary(report: Mapping[str, Any], events: list[RunEvent]) -> Group:
    """What a reader wants to know first."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for name, parts in _rows(report).items():
        table.add_row(name, ", ".join(parts))
    notes = [Text(f"{event.seconds:5.1f} s  {event.text}", "dim") for event in events]
    return Group(Text(), *notes, table)


def _rows(report: Mapping[str, Any]) -> dict[str, list[str]]:
    updates, hostile, latency = report["updates"], report["hostile"], report["latency_ms"]
    causes, energy, memory = report["blocks_by_cause"], report["energy"], report["device_rss_mib"]
    refused = ", ".join(f"{reason} {count}" for reason, count in updates["refused"].items()) or "none"
    joules = energy["joules_per_update"]
    return {
        report["measure"]: [
            f"{report['accuracy_initial']:.3f} -> {report['accuracy_final']:.3f}",
            f"{report['model_version']} versions",
            f"centralized fp32 {report['baseline']['accuracy']:.3f}",
        ],
        **_personal(report["personal"]),
        "blocks": [str(report["blocks"]), f"{causes['size']} cut by size", f"{causes['tau']} by tau"],
        "updates": [
            f"{updates['published']} published",
            f"{updates['merged']} merged",
            f"{updates['pending']} pending",
            f"{updates['unreceipted']} without receipts",
            f"refused: {refused}",
        ],
        "never": [f"lost {updates['lost']}", f"merged twice {updates['duplicated']}"],
        "cross-validation": [
            f"hostile updates merged {hostile['merged']} of {hostile['published']}",
            f"honest ones refused {report['refused_honest']:.1%}",
        ],
        "p50 / p99": [
            _pair("publish to receipt", latency, "publish_to_receipt"),
            _pair("cut to certificate", latency, "cut_to_certificate"),
        ],
        "update on the wire": [
            f"{report['bytes']['payload_mean']:.0f} bytes",
            f"as float32 {report['bytes']['fp32_equivalent']}",
        ],
        "device memory, MiB": [
            f"idle {memory['idle']:.0f}",
            f"training peak {memory['training_peak']:.0f}",
            f"between jobs {memory['idle_after']:.0f}",
        ],
        "energy per update": [
            f"no power figures for {energy['board']}" if joules is None else f"{joules:.2f} J",
            *([] if joules is None else [energy["quality"], energy["board"]]),
        ],
        "ledger": [
            "verified from genesis" if report["ledger_verified"] else "NOT VERIFIED",
            f"{report['certificates_verified_by_devices']} certificates verified by devices",
        ],
        "model root": [str(report["model_root"])],
        "wall time": [f"{report['wall_s']:.0f} s"],
    }


def _personal(found: Mapping[str, Any] | None) -> dict[str, list[str]]:
    if found is None:
        return {}
    return {
        "personal models": [
            f"{found['accuracy_personal_mean']:.3f} where the global one has {found['accuracy_global_mean']:.3f}",
            f"better on {found['better']} and worse on {found['worse']} of {len(found['devices'])} devices",
            "test set in the proportions of each",
        ]
    }


def _pair(words: str, latency: Mapping[str, float], name: str) -> str:
    return f"{words} {latency[f'{name}_p50']:.0f} / {latency[f'{name}_p99']:.0f} ms"
