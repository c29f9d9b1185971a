"""``flchain device upgrade --config upgrade.toml``: one pass of the updater, started by a timer.

Exit status: 0 a release was committed, or there is nothing to do now (one line says why: a board that is offline is
nothing unusual); 1 refused, failed or rolled back: the software that ran goes on; 2 the command line or a configuration
is wrong.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from edge_sdk.adapters.durable_files import make_private_directory
from edge_sdk.adapters.json_logs import log_to_stderr
from edge_sdk.errors import ConfigError, EdgeFLError, UpgradeError
from edge_sdk.upgrade.config import UpgradeConfig
from edge_sdk.upgrade.updater import Result, Updater

EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
UMASK: Final = 0o022
"""Environments are read by the device's user."""


def main(argv: list[str]) -> int:
    """Run the command.

    Args:
        argv: Arguments after ``device upgrade``.

    Returns:
        Exit status.
    """
    options = _parser().parse_args(argv)
    log_to_stderr(level=logging.DEBUG if options.verbose else logging.INFO)
    os.umask(UMASK)
    try:
        config = UpgradeConfig.load(options.config)
        if options.status:
            print(json.dumps(Updater(config).status(), indent=2))
            return 0
        with _alone(config.state_dir):
            updater = Updater(config)
            outcome = updater.before_device() if options.before_device else updater.run()
    except ConfigError as error:
        print(f"flchain device upgrade: {error}", file=sys.stderr)
        return EXIT_USAGE
    except (EdgeFLError, OSError) as error:
        print(f"flchain device upgrade: {error}", file=sys.stderr)
        return EXIT_FAILED
    print(outcome.text)
    return EXIT_FAILED if outcome.result is Result.FAILED else 0


@contextmanager
def _alone(state_dir: Path) -> Iterator[None]:
    """Keep a second updater out; the lock ends with the process."""
    make_private_directory(state_dir)
    with (state_dir / "updater.lock").open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UpgradeError(f"{state_dir}: another updater is at work") from error
        yield


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="flchain device upgrade",
        description="Look for a release of this client, install it, keep it if it is well.",
    )
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="upgrade.toml")
    parser.add_argument("--status", action="store_true", help="print what is installed as JSON, and change nothing")
    parser.add_argument(
        "--before-device", action="store_true", help="at a boot: only take back a release that keeps the board down"
    )
    parser.add_argument("--verbose", action="store_true", help="log more")
    return parser
