"""Accuracy of whole runs with hostile devices against whole runs without them: real processes, real broker.

One JSON line per run goes to the file of ``--out``; a run that is there already is not repeated, so that the comparison
can be stopped and taken up again, and a row that somebody doubts can be deleted. ``simulate_byzantine`` asks the same
question in minutes, without processes. The runs need a quiet machine: a fleet that is short of processor time trains
less, with and without attackers.

Run: ``python -m tools.compare_byzantine --data DIR --out FILE.jsonl [--kinds none,nullifier,...] [--seeds 1,2,3]``,
with DIR the folder of an MNIST-format data set. Status 1 when an attack costs more than the bar.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Final

from coordinator.demo.options import BYZANTINE_KINDS

NONE: Final = "none"
KINDS: Final = (NONE, *BYZANTINE_KINDS)
DEVICES: Final = 12
HOSTILE: Final = 3
BLOCK_SIZE: Final = 8
BAR: Final = 0.02
SECONDS: Final = 240
RUN_TIMEOUT_S: Final = 1_800
"""The baseline may go on after the fleet has stopped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What one run came to."""

    kind: str
    seed: int
    versions: int
    """Version at which every run stops: equal work, whatever else the machine does."""
    reached: int
    accuracy: float
    hostile_published: int
    hostile_merged: int
    refused_honest: float
    wall_s: float

    @property
    def key(self) -> tuple[str, int, int]:
        """What makes a run the same run."""
        return self.kind, self.seed, self.versions


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing, then compare all."""
    options = _parser().parse_args(argv)
    done = {run.key: run for run in read_runs(options.out)}
    for seed in options.seeds:
        for kind in options.kinds:
            if (kind, seed, options.versions) in done:
                continue
            run = run_demo(options.data, kind, seed, versions=options.versions, seconds=options.seconds)
            append_run(options.out, run)
            print(f"{kind} seed {seed}: accuracy {run.accuracy:.4f}, version {run.reached}", flush=True)
            done[run.key] = run
    wanted = [done[kind, seed, options.versions] for kind in options.kinds for seed in options.seeds]
    lines, is_within = compare(wanted)
    print("\n".join(lines))
    return 0 if is_within else 1


def run_demo(data: Path, kind: str, seed: int, *, versions: int, seconds: float) -> Run:
    """Run the demo with three hostile devices of twelve, or with none."""
    byzantine = NONE if kind == NONE else f"{kind}:{HOSTILE}"
    with tempfile.TemporaryDirectory(prefix="flchain-compare-") as folder:
        report_file = Path(folder) / "report.json"
        options = f"--dataset idx --devices {DEVICES} --block-size {BLOCK_SIZE} --byzantine {byzantine} --seed {seed}"
        options += f" --rounds {versions} --max-seconds {seconds:g} --no-live"
        command = [sys.executable, "-m", "edge_sdk.entry", "demo", *options.split()]
        subprocess.run(
            [*command, "--data", str(data), "--report", str(report_file)],
            stdout=subprocess.DEVNULL,
            timeout=RUN_TIMEOUT_S,
            check=True,
        )
        report = json.loads(report_file.read_bytes())
    return Run(
        kind=kind,
        seed=seed,
        versions=versions,
        reached=report["model_version"],
        accuracy=report["accuracy_final"],
        hostile_published=report["hostile"]["published"],
        hostile_merged=report["hostile"]["merged"],
        refused_honest=report["refused_honest"],
        wall_s=report["wall_s"],
    )


def read_runs(path: Path) -> list[Run]:
    """Rows of an earlier comparison; a line that a kill has torn is left out, and its run is repeated."""
    runs = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            runs.append(Run(**json.loads(line)))
        except (json.JSONDecodeError, TypeError):
            print(f"{path}: not a run: {line[:60]}", file=sys.stderr)
    return runs


def append_run(path: Path, run: Run) -> None:
    """Add a row, on a line of its own also behind a torn one."""
    before = path.read_bytes() if path.exists() else b""
    is_torn = before != b"" and not before.endswith(b"\n")
    with path.open("a", encoding="utf-8") as file:
        file.write("\n" * is_torn + json.dumps(asdict(run)) + "\n")


def compare(runs: Iterable[Run]) -> tuple[list[str], bool]:
    """Lines of a table, and whether every attack stays within the bar.

    The difference of means counts, over the same seeds; versions that were reached are shown, since a run that was cut
    off by time compares less work with more.
    """
    by_kind: dict[str, list[Run]] = {}
    for run in runs:
        by_kind.setdefault(run.kind, []).append(run)
    without = by_kind.get(NONE)
    base = None if without is None else fmean(run.accuracy for run in without)
    lines = [
        f"{'kind':<12}{'accuracy':>9}{'loss':>9}{'version':>9}{'merged':>8}{'published':>10}{'honest refused':>16}"
    ]
    is_within = True
    for kind, group in by_kind.items():
        accuracy = fmean(run.accuracy for run in group)
        loss = None if base is None else base - accuracy
        is_within = is_within and (loss is None or loss <= BAR)
        merged, published = sum(run.hostile_merged for run in group), sum(run.hostile_published for run in group)
        shown = "-" if loss is None else f"{loss:+.4f}"
        lines.append(
            f"{kind:<12}{accuracy:>9.4f}{shown:>9}{fmean(run.reached for run in group):>9.1f}"
            f"{merged:>8}{published:>10}{fmean(run.refused_honest for run in group):>16.3f}"
        )
    return lines, is_within


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="compare_byzantine", description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--data", type=Path, required=True, help="folder of an MNIST-format data set")
    add("--out", type=Path, required=True, help="JSON lines, one per run; runs that are there are not repeated")
    add("--kinds", type=_kinds, default=KINDS, help=f"with commas between (default: {','.join(KINDS)})")
    add("--seeds", type=_seeds, default=(1, 2, 3), help="with commas between (default: 1,2,3)")
    add("--versions", type=int, default=40, help="model version at which a run stops (default: 40)")
    add("--seconds", type=float, default=SECONDS, help=f"wall time of a run (default: {SECONDS})")
    return parser


def _kinds(text: str) -> tuple[str, ...]:
    kinds = tuple(text.split(","))
    if not set(kinds) <= set(KINDS):
        raise argparse.ArgumentTypeError(f"{text!r}: expected some of {', '.join(KINDS)}")
    return kinds


def _seeds(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(seed) for seed in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: expected whole numbers with commas between") from error


if __name__ == "__main__":
    sys.exit(main())
