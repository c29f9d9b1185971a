"""Command line of the coordinator: finds the module of a command, and turns errors into one line and an exit status.

Each command's module is loaded on demand: an audit of a ledger needs no broker, a registry command no data sets.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Final

from edge_sdk.errors import ConfigError, EdgeFLError

EXIT_FAILURE: Final = 1
EXIT_USAGE: Final = 2
EXIT_INTERRUPTED: Final = 130

_MODULES: Final = {
    "demo": "coordinator.demo.cli",
    "ledger": "coordinator.cli_ledger",
    "miner": "coordinator.cli_miner",
    "model": "coordinator.cli_model",
    "registry": "coordinator.cli_registry",
    "sequencer": "coordinator.cli_sequencer",
    "study": "coordinator.study.cli",
}


def main(argv: Sequence[str]) -> int:
    """Run one command.

    Args:
        argv: Name of the command and its arguments.

    Returns:
        Exit status: 0, 1 for a failure that is shown in one line, 2 for a wrong setting or option.
    """
    name, arguments = argv[0], list(argv[1:])
    try:
        # The name comes from the table above, never from the user.
        status: int = importlib.import_module(_MODULES[name]).main(arguments)
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
    return status
