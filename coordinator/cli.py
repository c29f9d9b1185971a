"""Command line of the coordinator: finds the module of a command, and turns errors into one line and an exit status.

Each command's module is loaded on demand: an audit of a ledger needs no broker, a registry command no data sets.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Final

from edge_sdk.errors import ConfigError, EdgeFLError

EXIT_FAILURE: Final = 1
EXIT_USAGE: Final = 2
EXIT_INTERRUPTED: Final = 130


def main(argv: Sequence[str]) -> int:
    """Run one command.

    Args:
        argv: Name of the command and its arguments.

    Returns:
        Exit status: 0, 1 for a failure that is shown in one line, 2 for a wrong setting or option.
    """
    name, arguments = argv[0], list(argv[1:])
    try:
        return _run(name, arguments)
    except ConfigError as error:
        print(f"flchain {name}: {error}", file=sys.stderr)
        return EXIT_USAGE
    except EdgeFLError as error:
        print(f"flchain {name}: {error}", file=sys.stderr)
        return EXIT_FAILURE
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader has seen enough (head); nothing may be written at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILURE


def _run(name: str, arguments: list[str]) -> int:
    match name:
        case "bench":
            from coordinator.cli_bench import main as run
        case "demo":
            from coordinator.demo.cli import main as run
        case "ledger":
            from coordinator.cli_ledger import main as run
        case "miner":
            from coordinator.cli_miner import main as run
        case "model":
            from coordinator.cli_model import main as run
        case "registry":
            from coordinator.cli_registry import main as run
        case "sequencer":
            from coordinator.cli_sequencer import main as run
        case "upgrade":
            from coordinator.cli_upgrade import main as run
        case _:
            raise ConfigError("this command is not part of this version")
    return run(arguments)
