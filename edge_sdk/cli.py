"""``flchain device run|upgrade|enrol|status|doctor|feed --config FILE``.

Exit status: 0 done, 1 it did not work (one line says why), 2 the command line or the configuration is wrong.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from edge_sdk.adapters.heap import share_one_heap
from edge_sdk.adapters.json_logs import log_to_stderr
from edge_sdk.device.config import DeviceConfig
from edge_sdk.errors import ConfigError, EdgeFLError

if TYPE_CHECKING:
    from edge_sdk.adapters.enrolment import Membership

log: Final = logging.getLogger(__name__)

EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
STDIN: Final = 0
"""File descriptor of standard input."""


def main(argv: list[str]) -> int:
    """Run one device command.

    Args:
        argv: Arguments after ``device``.

    Returns:
        Exit status.
    """
    if argv[:1] == ["upgrade"]:  # is told by a file of its own, which the device's user cannot write
        from edge_sdk import cli_upgrade

        return cli_upgrade.main(argv[1:])
    arguments = _parser().parse_args(argv)
    log_to_stderr(level=logging.DEBUG if arguments.verbose else logging.INFO)
    commands = {
        "run": _run,
        "enrol": _enrol,
        "rotate-key": _rotate,
        "status": _status,
        "doctor": _doctor,
        "feed": _feed,
    }
    try:
        return commands[arguments.command](DeviceConfig.load(arguments.config), arguments)
    except ConfigError as error:
        print(f"flchain device: {error}", file=sys.stderr)
        return EXIT_USAGE
    except (EdgeFLError, OSError) as error:
        print(f"flchain device {arguments.command}: {error}", file=sys.stderr)
        return EXIT_FAILED


def _run(config: DeviceConfig, arguments: argparse.Namespace) -> int:
    from edge_sdk.adapters.key_rotation import is_unfinished
    from edge_sdk.device.app import Device
    from edge_sdk.device.first_boot import places

    share_one_heap()
    if not _become_member(config, arguments):
        return 0
    if is_unfinished(places(config)):
        try:
            _rotate(config, arguments)
        except EdgeFLError as error:
            log.warning("change of the key not completed, next try at the next start: %s", error)
    return Device(config).run()


def _become_member(config: DeviceConfig, arguments: argparse.Namespace) -> bool:
    """Show the claim if there is one; False after a stop while waiting."""
    from edge_sdk.adapters.system_clock import SystemClock
    from edge_sdk.adapters.watchdog import Watchdog
    from edge_sdk.device.first_boot import FirstBoot, is_enrolled, must_enrol

    if not must_enrol(config):
        return True
    if is_enrolled(config):
        # A power cut came between certificate and claim, or an operator has put a new claim there.
        try:
            _enrol(config, arguments)
        except EdgeFLError as error:
            log.warning("claim not shown, going on with the present certificate: %s", error)
        return True
    membership = FirstBoot(config, _url(config, arguments), clock=SystemClock(), watchdog=Watchdog()).run()
    if membership is not None:
        _tell(config, membership)
    return membership is not None


def _enrol(config: DeviceConfig, arguments: argparse.Namespace) -> int:
    from edge_sdk.adapters.durable_files import make_private_directory
    from edge_sdk.adapters.enrolment import enrol
    from edge_sdk.device.first_boot import places, waiting_file

    url = _url(config, arguments)
    make_private_directory(config.work_dir)
    if arguments.new_key:
        if not config.claim_file.exists():
            raise ConfigError(f"{config.claim_file}: no claim: expected a new one before the old key is removed")
        for path in (config.key_file, config.cert_file):
            path.unlink(missing_ok=True)
    membership = enrol(
        url,
        places(config),
        device_id=config.device_id,
        algorithm=config.algorithm,
        genesis_digest=config.genesis_digest,
    )
    waiting_file(config).unlink(missing_ok=True)
    _tell(config, membership)
    return 0


def _rotate(config: DeviceConfig, arguments: argparse.Namespace) -> int:
    from edge_sdk.adapters.key_rotation import is_unfinished, rotate
    from edge_sdk.device.first_boot import places
    from edge_sdk.device.parts import load_genesis
    from edge_sdk.device.status import read_status

    identity = places(config)
    state = read_status(config)["state"]
    if state is not None and state["waiting"] and not is_unfinished(identity):
        waiting = len(state["waiting"])
        raise ConfigError(f"{waiting} updates wait for an outcome under this key: expected none; let the device run")
    membership = rotate(
        _url(config, arguments),
        identity,
        device_id=config.device_id,
        chain_id=load_genesis(config).chain_id,
        genesis_digest=config.genesis_digest,
        algorithm=config.algorithm,
    )
    _tell(config, membership)
    return 0


def _url(config: DeviceConfig, arguments: argparse.Namespace) -> str:
    url: str | None = arguments.url or config.enrolment_url
    if url is None:
        raise ConfigError(f"{config.path}: [enrolment] url = nothing: expected the https URL of the registrar")
    return url


def _tell(config: DeviceConfig, membership: Membership) -> None:
    where = "on the ledger" if membership.is_settled else "on its way to the ledger"
    print(f"enrolled {config.device_id}: key {where}, certificate {config.cert_file}, serial {membership.serial}")


def _status(config: DeviceConfig, _: argparse.Namespace) -> int:
    from edge_sdk.device.status import read_status

    print(json.dumps(read_status(config), indent=2))
    return 0


def _feed(config: DeviceConfig, arguments: argparse.Namespace) -> int:
    from edge_sdk.device.feed import feed

    print(feed(config, STDIN, is_resumed=arguments.resume))
    return 0


def _doctor(config: DeviceConfig, arguments: argparse.Namespace) -> int:
    from edge_sdk.device.doctor import examine
    from edge_sdk.device.findings import Level

    worst = 0
    for finding in examine(config, root=arguments.root):
        print(f"{finding.level.value:<4}  {finding.what}: {finding.text}")
        if finding.mend:
            print(f"      -> {finding.mend}")
        worst = EXIT_FAILED if finding.level is Level.FAIL else worst
    return worst


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="flchain device", description="Run or examine a device on this board.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    texts = {
        "run": "train and publish until stopped; enrols first where a claim waits, however long that takes",
        "enrol": "exchange the claim for a certificate, once",
        "rotate-key": "replace this board's key: the old one signs for the new one; stop the device first",
        "status": "print what is on the disk as JSON",
        "doctor": "say what is wrong and how to mend it",
        "feed": 'rows from standard input into the replay buffer; a line is {"x": [numbers], "y": label}',
    }
    for name, text in texts.items():
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("--config", type=Path, required=True, metavar="FILE", help="device.toml")
        command.add_argument("--url", metavar="URL", help="registrar, instead of [enrolment] url")
        if name == "enrol":
            command.add_argument("--new-key", action="store_true", help="make a new key: the old one was on two boards")
        else:
            command.set_defaults(new_key=False)
        if name == "doctor":
            look = "look at a copy of a board's /sys, /proc, /run and /etc (default: this board)"
            command.add_argument("--root", type=Path, default=Path("/"), metavar="DIR", help=look)
        if name == "feed":
            again = "the stream begins where it once began: pass over the rows that the buffer has seen"
            command.add_argument("--resume", action="store_true", help=again)
        command.add_argument("--verbose", action="store_true", help="log more")
    commands.add_parser("upgrade", help="look for a release of this client, install it, keep it if it is well")
    return parser
