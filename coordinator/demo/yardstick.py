"""Trains the centralized baseline in a process of its own, at the lowest priority: it takes what the fleet leaves.

``python -m coordinator.demo.yardstick RESULT.json OPTIONS...`` with the options of ``flchain demo``.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

from coordinator.demo.baseline import Baseline, train_baseline
from coordinator.demo.material import load_data_and_model
from coordinator.demo.options import parse
from edge_sdk.adapters.durable_files import write_file

LOWEST_PRIORITY: Final = 19
RESULT_BYTES_MAX: Final = 4_096


def main(arguments: Sequence[str]) -> int:
    """Train and write the result."""
    result_file, options = Path(arguments[0]), parse(arguments[1:])
    os.nice(LOWEST_PRIORITY)
    data, artifact, params = load_data_and_model(options)
    baseline = train_baseline(
        data, artifact.network, params, seed=options.seed, epochs_max=options.preset.baseline_epochs_max
    )
    write_file(result_file, json.dumps(asdict(baseline)).encode())
    return 0


def read_baseline(result_file: Path) -> Baseline:
    """The result that ``main`` has written in a process of ours."""
    return Baseline(**json.loads(result_file.read_bytes()[:RESULT_BYTES_MAX]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
