"""``flchain device run|enrol|status|doctor --config FILE``.

Exit status: 0 done, 1 it did not work (one line says why), 2 the command line or the configuration is wrong.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path
from typing import Final

from edge_sdk.adapters.heap import share_one_heap
from edge_sdk.adapters.json_logs import log_to_stderr
from edge_sdk.device.config import DeviceConfig
from edge_sdk.errors import ConfigError, EdgeFLError

EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2


def main(argv: list[str]) -> int:
    """Run one device command.

    Args:
        argv: Arguments after ``device``.

    Returns:
        Exit status.
    """
    arguments = _parser().parse_args(argv)
    log_to_stderr(level=logging.DEBUG if arguments.verbose else logging.INFO)
    commands = {"run": _run, "enrol": _enrol, "status": _status, "doctor": _doctor}
    try:
        return commands[arguments.command](DeviceConfig.load(arguments.config), arguments)
    except ConfigError as error:
        print(f"flchain device: {error}", file=sys.stderr)
        return EXIT_USAGE
    except (EdgeFLError, OSError) as error:
        print(f"flchain device {arguments.command}: {error}", file=sys.stderr)
        return EXIT_FAILED


def _run(config: DeviceConfig, arguments: argparse.Namespace) -> int:
    from edge_sdk.device.app import Device

    share_one_heap()
    if _must_enrol(config):
        _enrol(config, arguments)
    return Device(config).run()


def _enrol(config: DeviceConfig, arguments: argparse.Namespace) -> int:
    from edge_sdk.adapters.durable_files import make_private_directory
    from edge_sdk.adapters.enrolment import enrol
    from edge_sdk.device.app import places

    url = arguments.url or config.enrolment_url
    if url is None:
        raise ConfigError(f"{config.path}: [enrolment] url = nothing: expected the https URL of the registrar")
    make_private_directory(config.work_dir)
    membership = enrol(
        url,
        places(config),
        device_id=config.device_id,
        algorithm=config.algorithm,
        genesis_digest=config.genesis_digest,
    )
    where = "on the ledger" if membership.is_settled else "on its way to the ledger"
    print(f"enrolled {config.device_id}: key {where}, certificate {config.cert_file}, serial {membership.serial}")
    return 0


def _status(config: DeviceConfig, _: argparse.Namespace) -> int:
    from edge_sdk.device.status import read_status

    print(json.dumps(read_status(config), indent=2))
    return 0


def _doctor(config: DeviceConfig, _: argparse.Namespace) -> int:
    from edge_sdk.device.doctor import Level, examine

    worst = 0
    for finding in examine(config):
        print(f"{finding.level.value:<4}  {finding.what}: {finding.text}")
        if finding.mend:
            print(f"      -> {finding.mend}")
        worst = EXIT_FAILED if finding.level is Level.FAIL else worst
    return worst


def _must_enrol(config: DeviceConfig) -> bool:
    """Whether the board holds a claim and no key of its own that is complete."""
    return config.enrolment_url is not None and config.claim_file.exists() and not config.cert_file.exists()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="flchain device", description="Run or examine a device on this board.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    texts = {
        "run": "train and publish until stopped; enrols first where a claim waits",
        "enrol": "exchange the claim for a certificate",
        "status": "print what is on the disk as JSON",
        "doctor": "say what is wrong and how to mend it",
    }
    for name, text in texts.items():
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("--config", type=Path, required=True, metavar="FILE", help="device.toml")
        command.add_argument("--url", metavar="URL", help="registrar, instead of [enrolment] url")
        command.add_argument("--verbose", action="store_true", help="log more")
    return parser
