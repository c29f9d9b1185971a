"""``flchain sequencer``: the ordering engine of one machine."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Sequence
from pathlib import Path

from coordinator.json_log import log_json_lines
from coordinator.ordering.sequencer import run
from coordinator.ordering.sequencer_config import SequencerConfig


def main(argv: Sequence[str]) -> int:
    """Run the command with its arguments; 0 after an ordered stop."""
    parser = argparse.ArgumentParser(prog="flchain sequencer", description="Order transactions for local miners.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    start = commands.add_parser("run", help="run until SIGTERM")
    start.add_argument("--config", type=Path, required=True, help="sequencer.toml")
    options = parser.parse_args(argv)
    log_json_lines()
    asyncio.run(run(SequencerConfig.load(options.config)))
    return 0
