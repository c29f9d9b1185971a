"""A picture of a training step: the memory of its tensors, node by node, with the numbers beside it as CSV."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Final

import matplotlib as mpl

mpl.use("Agg")  # no display is needed, and none is asked for

from matplotlib.figure import Figure

from coordinator.authoring.memory import MIB, peak_memory
from coordinator.authoring.runtime_plan import plan_step
from edge_sdk.training.artifact import Y

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from coordinator.authoring.runtime_plan import RuntimePlan
    from edge_sdk.training.artifact import Artifact

# Okabe and Ito's palette: distinct also for colour-blind eyes.
BLUE: Final = "#0072b2"
ORANGE: Final = "#e69f00"
GREY: Final = "#5f6b76"
DPI: Final = 120
_PARTS: Final = (
    ("floor_bytes", "interpreter, numpy, runtime", GREY),
    ("session_bytes", "session", "#999999"),
    ("model_bytes", "model and its state", "#009e73"),
    ("examples_bytes", "examples", "#cc79a7"),
    ("tensors_bytes", "tensors of a step", BLUE),
)


def draw(artifact: Artifact, path: Path) -> None:
    """Write ``path`` (PNG) and ``*.csv`` beside it: node, operator, output, bytes alive."""
    plan = plan_step(artifact)
    figure = Figure(figsize=(12, 6.4), layout="constrained")
    grid = figure.add_gridspec(1, 2, width_ratios=(2.6, 1.0))
    _draw_lives(figure.add_subplot(grid[0, 0]), plan, _forward_nodes(plan))
    _draw_parts(figure.add_subplot(grid[0, 1]), artifact)
    figure.suptitle(
        f"{artifact.name}: one training step of {artifact.batch} examples, {artifact.state_kind} state", fontsize=13
    )
    figure.savefig(path, dpi=DPI)
    rows = [
        (place, step.operator, step.makes, alive)
        for place, (step, alive) in enumerate(zip(plan.steps, plan.lives(), strict=True))
    ]
    with path.with_suffix(".csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("node", "operator", "output", "alive_bytes"))
        writer.writerows(rows)


def _draw_lives(axes: Axes, plan: RuntimePlan, forward: int) -> None:
    lives = [alive / MIB for alive in plan.lives()]
    places = range(len(lives))
    axes.fill_between(places, lives, step="mid", color=BLUE, alpha=0.25, linewidth=0)
    axes.step(places, lives, where="mid", color=BLUE, linewidth=1.2)
    axes.axvline(forward, color=GREY, linestyle="--", linewidth=1)
    top = max(lives)
    axes.text(forward - 0.5, top * 1.09, "forward ", ha="right", va="center", color=GREY)
    axes.text(forward + 0.5, top * 1.09, " loss, backward, update", ha="left", va="center", color=GREY)
    peak = lives.index(top)
    axes.plot([peak], [top], marker="o", color=ORANGE)
    side = "right" if peak > len(lives) / 2 else "left"
    axes.annotate(
        f"{top:.2f} MiB at {plan.steps[peak].operator}",
        (peak, top),
        xytext=(-8 if side == "right" else 8, 6),
        textcoords="offset points",
        ha=side,
        color=GREY,
    )
    axes.set(xlabel="node of the training-step graph", ylabel="tensors alive, MiB", ylim=(0, top * 1.16))
    axes.margins(x=0.01)
    axes.grid(visible=True, alpha=0.3)


def _draw_parts(axes: Axes, artifact: Artifact) -> None:
    peaks = [peak_memory(artifact, backend=name) for name in ("onnxruntime", "numpy")]
    bottoms = [0.0] * len(peaks)
    names = [peak.backend for peak in peaks]
    for key, label, colour in _PARTS:
        heights = [getattr(peak, key) / MIB for peak in peaks]
        axes.bar(names, heights, bottom=bottoms, label=label, color=colour, width=0.55)
        bottoms = [low + height for low, height in zip(bottoms, heights, strict=True)]
    for place, total in enumerate(bottoms):
        axes.text(place, total, f"{total:.0f}", ha="center", va="bottom")
    axes.set(ylabel="predicted peak of the process, MiB", ylim=(0, max(bottoms) * 1.35))
    axes.legend(loc="upper center", fontsize=8, frameon=False)
    axes.grid(visible=True, axis="y", alpha=0.3)


def _forward_nodes(plan: RuntimePlan) -> int:
    """Place of the first node that reads the targets."""
    return next(place for place, step in enumerate(plan.steps) if Y in step.reads)
