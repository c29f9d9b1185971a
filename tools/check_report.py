"""Audit of a demo report: every promised key with its kind, and the balances that must hold.

Run: ``python -m tools.check_report REPORT.json``.
"""

import json
import math
import sys
from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import Any, Final


class Kind(Enum):
    """What a value of the report may be."""

    TEXT = "a text"
    COUNT = "a whole number >= 0"
    NUMBER = "a finite number"
    NUMBER_OR_NULL = "a finite number or null"
    FLAG = "true or false"
    CURVE = "a list of [seconds, version, accuracy]"
    REASONS = "an object of counts"


# What a report has at least; a nested mapping is a nested object.
CONTRACT: Final[Mapping[str, Any]] = {
    "dataset": Kind.TEXT,
    "model": Kind.TEXT,
    "devices": Kind.COUNT,
    "miners": Kind.COUNT,
    "engine": Kind.TEXT,
    "partition": Kind.TEXT,
    "seed": Kind.COUNT,
    "wall_s": Kind.NUMBER,
    "model_version": Kind.COUNT,
    "blocks": Kind.COUNT,
    "blocks_by_cause": {"tau": Kind.COUNT, "size": Kind.COUNT},
    "measure": Kind.TEXT,
    "accuracy_initial": Kind.NUMBER,
    "accuracy_final": Kind.NUMBER,
    "accuracy_curve": Kind.CURVE,
    "baseline": {
        "accuracy": Kind.NUMBER,
        "epochs": Kind.COUNT,
        "lr": Kind.NUMBER,
        "train_n": Kind.COUNT,
        "test_n": Kind.COUNT,
    },
    "updates": {
        "published": Kind.COUNT,
        "merged": Kind.COUNT,
        "refused": Kind.REASONS,
        "pending": Kind.COUNT,
        "unreceipted": Kind.COUNT,
        "lost": Kind.COUNT,
        "duplicated": Kind.COUNT,
    },
    "hostile": {"published": Kind.COUNT, "merged": Kind.COUNT},
    "refused_honest": Kind.NUMBER,
    "bytes": {
        "codec": Kind.TEXT,
        "payload_mean": Kind.NUMBER,
        "envelope_mean": Kind.NUMBER,
        "fp32_equivalent": Kind.NUMBER,
    },
    "device_rss_mib": {"idle": Kind.NUMBER, "training_peak": Kind.NUMBER, "idle_after": Kind.NUMBER},
    "latency_ms": {
        "publish_to_receipt_p50": Kind.NUMBER,
        "publish_to_receipt_p99": Kind.NUMBER,
        "cut_to_certificate_p50": Kind.NUMBER,
        "cut_to_certificate_p99": Kind.NUMBER,
    },
    "energy": {"joules_per_update": Kind.NUMBER_OR_NULL, "quality": Kind.TEXT, "board": Kind.TEXT},
    "ledger_verified": Kind.FLAG,
    "certificates_verified_by_devices": Kind.COUNT,
    "model_root": Kind.TEXT,
}
UNAVAILABLE: Final = "unavailable"
"""Quality of energy on a board without power figures; its joules are null, and only then."""
ENERGY_QUALITIES: Final = ("measured", "derived", "modelled", UNAVAILABLE)


def check_report(report: Any) -> list[str]:
    """Problems of a decoded report, one line each; none for a good one."""
    # Balances mean something only once every number is where it belongs.
    return list(_check_shape(report, CONTRACT, "report")) or list(_check_balances(report))


def _check_shape(found: Any, expected: Mapping[str, Any], place: str) -> Iterator[str]:
    """Missing keys and values of another kind, in an object of the report."""
    if not isinstance(found, dict):
        yield f"{place}: expected an object, found {found!r}"
        return
    for key, inner in expected.items():
        if key not in found:
            yield f"{place}.{key}: missing"
        elif isinstance(inner, Mapping):
            yield from _check_shape(found[key], inner, f"{place}.{key}")
        elif not _is_kind(found[key], inner):
            yield f"{place}.{key}: expected {inner.value}, found {found[key]!r}"


def _is_kind(value: Any, kind: Kind) -> bool:
    # JSON's true is an int in Python; it counts as a number nowhere.
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    match kind:
        case Kind.TEXT:
            return isinstance(value, str) and bool(value)
        case Kind.COUNT:
            return is_number and isinstance(value, int) and value >= 0
        case Kind.NUMBER:
            return is_number
        case Kind.NUMBER_OR_NULL:
            return value is None or is_number
        case Kind.FLAG:
            return isinstance(value, bool)
        case Kind.CURVE:
            return isinstance(value, list) and all(
                isinstance(point, list) and len(point) == 3 and all(_is_kind(part, Kind.NUMBER) for part in point)
                for point in value
            )
        case Kind.REASONS:
            return isinstance(value, dict) and all(_is_kind(count, Kind.COUNT) for count in value.values())


def _check_balances(report: Mapping[str, Any]) -> Iterator[str]:
    """Identities over a report of the right shape."""
    updates = report["updates"]
    refused = sum(updates["refused"].values())
    settled = updates["merged"] + refused + updates["pending"] + updates["unreceipted"]
    if updates["published"] != settled:
        yield (
            f"published {updates['published']} != merged {updates['merged']} + refused {refused}"
            f" + pending {updates['pending']} + unreceipted {updates['unreceipted']}"
        )
    for name in ("lost", "duplicated"):
        if updates[name] != 0:
            yield f"updates.{name}: expected 0, found {updates[name]}"
    if not report["ledger_verified"]:
        yield "ledger_verified: expected true, found false"
    by_cause = sum(report["blocks_by_cause"].values())
    if report["blocks"] != by_cause:
        yield f"blocks {report['blocks']} != {by_cause} cut by tau or size"
    if report["hostile"]["merged"] > report["hostile"]["published"]:
        yield "hostile: more merged than published"
    yield from _check_energy(report["energy"])
    if not updates["published"]:
        yield "updates.published: nothing was published"


def _check_energy(energy: Mapping[str, Any]) -> Iterator[str]:
    """Joules have a known quality; a board without figures says so and claims none."""
    joules, quality = energy["joules_per_update"], energy["quality"]
    if quality not in ENERGY_QUALITIES:
        yield f"energy.quality: expected one of {', '.join(ENERGY_QUALITIES)}, found {quality!r}"
    elif (joules is None) != (quality == UNAVAILABLE):
        yield f"energy.joules_per_update: null goes with quality {UNAVAILABLE}, found {joules!r} with {quality}"


def main(argv: list[str]) -> int:
    """Print the problems of one report file; 1 when there are any, 2 when it cannot be read."""
    if len(argv) != 1:
        print("usage: python -m tools.check_report REPORT.json", file=sys.stderr)
        return 2
    try:
        report = json.loads(Path(argv[0]).read_bytes())
    except (OSError, ValueError) as error:
        print(f"{argv[0]}: {error}", file=sys.stderr)
        return 2
    problems = check_report(report)
    for problem in problems:
        print(f"{argv[0]}: {problem}")
    if not problems:
        updates = report["updates"]
        print(f"{argv[0]}: complete; {updates['published']} updates published, {updates['merged']} merged, none lost")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
