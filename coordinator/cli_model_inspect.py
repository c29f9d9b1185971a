"""``flchain model inspect`` of an artifact: predicted memory, what a step asks of each board, and the picture."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from edge_sdk.errors import ConfigError

if TYPE_CHECKING:
    from edge_sdk.training.artifact import Artifact


def add_options(inspect: argparse.ArgumentParser) -> None:
    """Declare the options."""
    inspect.add_argument(
        "--plot",
        type=Path,
        metavar="FILE.png",
        help="of an artifact: draw the memory over a step, numbers beside as CSV",
    )
    inspect.add_argument(
        "--step-ms", type=float, metavar="MS", help="of an artifact: a measured step, for the energy on each board"
    )


def show(artifact: Artifact, options: argparse.Namespace) -> None:
    """Print predictions and draw, where the authoring extra is installed.

    Raises:
        ConfigError: an option that cannot be met.
    """
    if options.step_ms is not None and not 0 < options.step_ms < float("inf"):
        raise ConfigError(f"--step-ms {options.step_ms:g}: expected milliseconds above 0")
    if options.plot is not None and options.plot.suffix != ".png":
        raise ConfigError(f"--plot {options.plot}: expected FILE.png")
    try:
        from coordinator.authoring.cost import step_cost
        from coordinator.authoring.memory import BACKENDS, MIB, peak_memory
    except ImportError as error:
        if options.plot is not None:
            raise ConfigError("--plot needs the authoring extra: pip install 'edge-flchain[authoring]'") from error
        return
    from coordinator.cli_model_boards import print_boards

    peaks = [peak_memory(artifact, backend=name) for name in BACKENDS]
    for peak in peaks:
        parts = ("floor", "session", "model", "examples", "tensors")
        sizes = ", ".join(f"{part} {getattr(peak, f'{part}_bytes') / MIB:.1f}" for part in parts)
        print(f"predicted peak with {peak.backend}, without transport: {peak.total_bytes / MIB:.1f} MiB ({sizes})")
    print_boards(
        {peak.backend: peak.total_bytes / MIB for peak in peaks},
        macs=step_cost(artifact).macs,
        step_ms=options.step_ms,
    )
    if options.plot is not None:
        _draw(artifact, options.plot)


def _draw(artifact: Artifact, path: Path) -> None:
    try:
        from coordinator.model_picture import draw
    except ImportError as error:
        raise ConfigError("--plot needs the study extra: pip install 'edge-flchain[study]'") from error
    try:
        draw(artifact, path)
    except OSError as error:
        raise ConfigError(f"--plot {path}: {error.strerror or error}") from error
    print(f"{path}: memory over a step; {path.with_suffix('.csv')}: the numbers")
