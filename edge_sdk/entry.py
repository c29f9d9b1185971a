"""The ``flchain`` command: finds the subcommand and imports only what it needs.

A board installs the base distribution without the miner's dependencies, and an idle device process must stay small, so
this module imports nothing but the standard library and loads one command-line module on demand.
"""

import importlib
import sys
from typing import Final, NamedTuple

from edge_sdk import __version__


class Command(NamedTuple):
    """A subcommand: the module that runs it, and one line for the help text."""

    module: str
    summary: str


# Coordinator modules are named as text and loaded by importlib: edge_sdk must never import coordinator statically, or
# the device would depend on the edge server's code. The layer check allows a dynamic import in this module only.
COMMANDS: Final = {
    "bench": Command("coordinator.cli", "time and memory of a training step on this machine"),
    "boards": Command("firmware_profiles.cli", "show what is known of boards, with sources"),
    "image": Command("firmware_profiles.cli", "inspect a vendor image, customise it for one board"),
    "flash": Command("firmware_profiles.cli", "write an image to a card and verify it"),
    "device": Command("edge_sdk.cli", "run, enrol or examine a device on this board"),
    "demo": Command("coordinator.cli", "whole fleet on this machine: broker, miners, devices, report"),
    "miner": Command("coordinator.cli", "set up or run an edge server"),
    "ledger": Command("coordinator.cli", "show or audit a miner's ledger"),
    "model": Command("coordinator.cli", "pull, verify or inspect a model"),
    "registry": Command("coordinator.cli", "manage enrolled devices"),
    "upgrade": Command("coordinator.cli", "publish releases of the device's software"),
    "sequencer": Command("coordinator.cli", "order transactions for the miners of one machine"),
}

# What is typed beside the facts about boards, but needs the device's meters and backends.
ELSEWHERE: Final = {"boards measure": "edge_sdk.cli_measure", "boards peer": "edge_sdk.cli_measure"}

# Top-level module -> extra of setup.cfg that brings it.
EXTRA_OF_MODULE: Final = {
    "amqtt": "study",
    "google": "miner",
    "httpx": "miner",
    "matplotlib": "study",
    "onnx": "authoring",
    "prometheus_client": "miner",
    "rich": "miner",
    "securesystemslib": "upgrade",
    "sklearn": "study",
    "starlette": "miner",
    "torch": "torch",
    "tuf": "upgrade",
    "uvicorn": "miner",
    "ai_edge_litert": "litert",
    "tensorflow": "litert-authoring",
}

EXIT_USAGE: Final = 2


def help_text() -> str:
    """Text of ``flchain --help``: every subcommand with its summary."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        (
            "usage: flchain COMMAND [ARGUMENTS]",
            "       flchain COMMAND --help",
            "",
            "commands:",
            *lines,
            "",
            "options:",
            "  -h, --help  show this text",
            "  --version   show the version",
        )
    )


def main(argv: list[str] | None = None) -> int:
    """Run one subcommand.

    Args:
        argv: Arguments after the program name; those of the process when None.

    Returns:
        Exit status: that of the subcommand, or 2 for an unknown command or a missing extra.
    """
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments:
        print(help_text(), file=sys.stderr)
        return EXIT_USAGE
    name = arguments[0]
    if name in {"-h", "--help"}:
        print(help_text())
        return 0
    if name == "--version":
        print(f"flchain {__version__}")
        return 0
    if name not in COMMANDS:
        print(f"flchain: unknown command {name!r}; known: {', '.join(COMMANDS)}", file=sys.stderr)
        return EXIT_USAGE
    try:
        return _run(name, arguments)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in EXTRA_OF_MODULE:
            raise  # one of our own modules or a broken install: the traceback is the useful answer
        extra = EXTRA_OF_MODULE[missing]
        print(
            f"flchain {name}: package {missing!r} is not installed; run: pip install 'edge-flchain[{extra}]'",
            file=sys.stderr,
        )
        return EXIT_USAGE


def _run(name: str, arguments: list[str]) -> int:
    elsewhere = ELSEWHERE.get(" ".join(arguments[:2]))
    if elsewhere is not None:
        done: int = importlib.import_module(elsewhere).main(arguments[1:])
        return done
    module = importlib.import_module(COMMANDS[name].module)
    # The device's command line stands alone; the other modules serve several subcommands and need the name.
    status: int = module.main(arguments[1:] if name == "device" else arguments)
    return status


if __name__ == "__main__":
    sys.exit(main())
