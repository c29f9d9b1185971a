"""Rows of the benchmark table: kept as JSON in ``bench-results/``, one file per row, and printed as one table."""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any, Final

from coordinator.broker.mosquitto import find_executable
from coordinator.demo.records import percentile
from edge_sdk.adapters.system_clock import SystemClock

ROOT: Final = Path(__file__).resolve().parents[2]
RESULTS: Final = ROOT / "bench-results"
TABLE: Final = RESULTS / "table.md"
PACKAGES: Final = ("numpy", "onnxruntime", "paho-mqtt", "cryptography", "cbor2")
GIB: Final = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One measured figure."""

    key: str
    """Names the file; the table is sorted by it."""
    what: str
    unit: str
    figure: float
    """What the bar is about: a median, a percentile, a mean."""
    low: float
    high: float
    count: int
    """Measurements behind the figure."""
    bar: float | None = None
    is_bar_upper: bool = True
    """Whether the figure should be at most the bar, or at least."""
    note: str = ""
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        """Whether the bar is reached."""
        if self.bar is None:
            return ""
        is_reached = self.figure <= self.bar if self.is_bar_upper else self.figure >= self.bar
        return "reached" if is_reached else "missed"


def of_values(values: Sequence[float], share: float = 0.5) -> dict[str, Any]:
    """Figure and spread of repeated measurements, as arguments of ``Row``: the median, or another percentile."""
    ordered = sorted(values)
    figure = median(ordered) if share == 0.5 else percentile(ordered, share)
    return {"figure": figure, "low": ordered[0], "high": ordered[-1], "count": len(ordered)}


def record(row: Row) -> None:
    """Print a row and keep it, with what the machine was like."""
    RESULTS.mkdir(exist_ok=True)
    load = os.getloadavg()[0]
    kept = asdict(row) | {"time_s": SystemClock().time_s(), "load": round(load, 1), "machine": machine()}
    (RESULTS / f"{row.key}.json").write_text(json.dumps(kept, indent=1) + "\n")
    print(f"\n{row.what}: {_figure(row)} {row.unit}; bar {_bar(row) or 'none'} {row.verdict}; load {load:.1f}")  # noqa: T201


def table() -> str:
    """All rows that are kept, in Markdown; empty when there is none."""
    files = sorted(RESULTS.glob("*.json"))
    if not files:
        return ""
    lines = [
        f"Machine: {machine_text()}",
        "",
        "| What | Unit | Bar | Median [min-max], n | | Date, load | Note |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for path in files:
        kept = json.loads(path.read_text())
        row = Row(**{name: kept[name] for name in Row.__slots__})
        when = f"{_date(kept['time_s'])}, {kept['load']}"
        cells = (row.what, row.unit, _bar(row), f"{_figure(row)}, {row.count}", row.verdict, when, row.note)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def machine() -> dict[str, Any]:
    """Processor, memory, kernel and versions."""
    cpuinfo = Path("/proc/cpuinfo").read_text()
    names = [line.partition(":")[2].strip() for line in cpuinfo.splitlines() if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.machine(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "mosquitto": _mosquitto_version(),
    } | {name: _package_version(name) for name in PACKAGES}


def machine_text() -> str:
    """The machine in one line."""
    facts = machine()
    versions = ", ".join(f"{name} {facts[name]}" for name in ("python", "mosquitto", *PACKAGES))
    return f"{facts['cpu']}, {facts['cores']} cores, {facts['memory_gib']} GiB, Linux {facts['kernel']}; {versions}"


def _figure(row: Row) -> str:
    return f"{_number(row.figure)} [{_number(row.low)}-{_number(row.high)}]"


def _bar(row: Row) -> str:
    return "" if row.bar is None else f"{'<=' if row.is_bar_upper else '>='} {row.bar:g}"


def _number(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def _date(time_s: int) -> str:
    return (datetime.date(1970, 1, 1) + datetime.timedelta(seconds=time_s)).isoformat()


def _package_version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"


def _mosquitto_version() -> str:
    executable = find_executable()
    if executable is None:
        return "absent"
    done = subprocess.run([executable, "-h"], capture_output=True, text=True, check=False)
    words = done.stdout.split()
    return words[2] if len(words) > 2 else "unknown"
