"""One picture of a run, drawn from its report alone, with the numbers beside it as CSV.

Top: test accuracy over certified versions, and over energy. Bottom: every block on the time axis with the cause of its
cut. The report is the only input, so that a picture can be drawn again from a file.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import matplotlib as mpl

mpl.use("Agg")  # no display is needed, and none is asked for

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's palette: distinct also for colour-blind eyes.
BLUE: Final = "#0072b2"
ORANGE: Final = "#e69f00"
GREEN: Final = "#009e73"
RED: Final = "#d55e00"
GREY: Final = "#5f6b76"
CAUSE_COLOURS: Final = {"size": BLUE, "tau": ORANGE}
DPI: Final = 120
HEADROOM: Final = 1.1


def draw(report: Mapping[str, Any], path: Path) -> None:
    """Write ``path`` (PNG) and two CSV files beside it: ``*_accuracy.csv`` and ``*_blocks.csv``.

    Args:
        report: The report of a run, with ``accuracy_curve`` [[seconds, version, accuracy]], ``energy_curve`` [[joules,
            accuracy]] and ``block_timeline`` [[index, cut_s, certified_s or null, cause, merged, refused]].
        path: Where the picture goes.
    """
    figure = Figure(figsize=(12, 7.2), layout="constrained")
    grid = figure.add_gridspec(2, 2, height_ratios=(1.25, 1.0))
    _draw_versions(figure.add_subplot(grid[0, 0]), report)
    _draw_energy(figure.add_subplot(grid[0, 1]), report)
    _draw_blocks(figure.add_subplot(grid[1, :]), report)
    figure.suptitle(
        f"{report['dataset']}, {report['model']}: {report['devices']} devices ({report['partition']}), "
        f"{report['miners']} miners, {report['measure']} {report['accuracy_final']:.3f} "
        f"after {report['model_version']} versions",
        fontsize=13,
    )
    figure.savefig(path, dpi=DPI)
    _write_csv(
        path.with_name(f"{path.stem}_accuracy.csv"), ("seconds", "version", "accuracy"), report["accuracy_curve"]
    )
    _write_csv(
        path.with_name(f"{path.stem}_blocks.csv"),
        ("index", "cut_s", "certified_s", "cause", "merged", "refused"),
        report["block_timeline"],
    )


def _draw_versions(axes: Axes, report: Mapping[str, Any]) -> None:
    curve = report["accuracy_curve"]
    axes.plot([point[1] for point in curve], [point[2] for point in curve], color=BLUE, marker="o", markersize=3)
    _draw_baseline(axes, report)
    axes.set(xlabel="certified version", ylabel=f"test {report['measure']}", ylim=(0, HEADROOM))
    axes.grid(visible=True, alpha=0.3)


def _draw_energy(axes: Axes, report: Mapping[str, Any]) -> None:
    energy, curve = report["energy"], report["energy_curve"]
    axes.plot([point[0] for point in curve], [point[1] for point in curve], color=GREEN, marker="o", markersize=3)
    _draw_baseline(axes, report)
    axes.set(ylabel=f"test {report['measure']}", ylim=(0, HEADROOM))
    axes.set_xlabel(f"energy of all devices, J ({energy['quality']}, {energy['board']})")
    axes.grid(visible=True, alpha=0.3)
    if not curve:
        axes.text(0.5, 0.5, "no power figures for this board", ha="center", transform=axes.transAxes, color=GREY)


def _draw_baseline(axes: Axes, report: Mapping[str, Any]) -> None:
    """A line across, named in a corner that no accuracy curve reaches."""
    accuracy = report["baseline"]["accuracy"]
    axes.axhline(accuracy, color=GREY, linestyle="--", linewidth=1, label=f"centralized fp32 {accuracy:.3f}")
    axes.legend(loc="lower right", fontsize=9, frameon=False)


def _draw_blocks(axes: Axes, report: Mapping[str, Any]) -> None:
    """One bar per block at the moment of its cut: merged updates up, refused ones down, a dot at its certificate."""
    timeline = report["block_timeline"]
    last_s = max((row[2] or row[1] for row in timeline), default=1.0)
    width = max(last_s / max(len(timeline), 1) * 0.5, last_s / 400)
    for _, cut_s, certified_s, cause, merged, refused in timeline:
        axes.bar(cut_s, merged, width=width, color=CAUSE_COLOURS[cause])
        axes.bar(cut_s, -refused, width=width, color=RED)
        if certified_s is not None:
            axes.plot([certified_s], [merged], marker="v", markersize=4, color=GREEN, linestyle="none")
    axes.axhline(0, color=GREY, linewidth=0.8)
    axes.set(xlabel="seconds since the start of the run", ylabel="updates: merged up, refused down")
    axes.set_title("blocks by the cause of their cut", fontsize=11, loc="left")
    axes.margins(y=0.18)
    causes = report["blocks_by_cause"]
    axes.legend(
        handles=[
            Patch(color=BLUE, label=f"cut by size ({causes['size']})"),
            Patch(color=ORANGE, label=f"cut by tau ({causes['tau']})"),
            Patch(color=RED, label="refused"),
            Line2D([], [], color=GREEN, marker="v", linestyle="none", label="certified"),
        ],
        ncols=4,
        fontsize=9,
        loc="lower right",
        bbox_to_anchor=(1.0, 1.0),
        frameon=False,
    )
    axes.grid(visible=True, axis="x", alpha=0.3)


def _write_csv(path: Path, header: tuple[str, ...], rows: list[list[Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
