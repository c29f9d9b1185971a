"""``flchain boards measure`` on a board, and ``flchain boards peer`` on the machine at the other end of its link.

Exit status: 0 done, 1 the board could not be measured now (one line says why), 2 the command line is wrong.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from edge_sdk.errors import ConfigError, EdgeFLError

if TYPE_CHECKING:
    from edge_sdk.measure.session import Model

EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_INTERRUPTED: Final = 130
ZOO_WRITER: Final = "coordinator.zoo_file"
ZOO_TIMEOUT_S: Final = 300
_ID: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,62}", re.ASCII)
_METERS: Final = ("auto", "ina2xx", "ina3221", "pi5-pmic", "rapl", "none")


def main(argv: Sequence[str]) -> int:
    """Run one command.

    Args:
        argv: Arguments after ``boards``, ``measure`` or ``peer`` first.

    Returns:
        Exit status.
    """
    arguments = _parser().parse_args(argv)
    try:
        return _peer(arguments) if arguments.command == "peer" else _measure(arguments)
    except ConfigError as error:
        print(f"flchain boards {arguments.command}: {error}", file=sys.stderr)
        return EXIT_USAGE
    except (EdgeFLError, OSError) as error:
        print(f"flchain boards {arguments.command}: {error}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        print(f"flchain boards {arguments.command}: stopped", file=sys.stderr)
        return EXIT_INTERRUPTED


def _measure(arguments: argparse.Namespace) -> int:
    from edge_sdk.adapters.board_facts import BoardFacts
    from edge_sdk.adapters.durable_files import write_file
    from edge_sdk.adapters.system_clock import SystemClock
    from edge_sdk.energy.meters import find_meter, open_meter
    from edge_sdk.measure.profile_file import profile_text
    from edge_sdk.measure.session import Plan, measure
    from firmware_profiles.profile import UnknownBoardError, board_like, load_profile

    output: Path = arguments.output
    if output.exists():
        raise ConfigError(f"{output}: exists already: expected a new file")
    facts, clock = BoardFacts(root=arguments.root), SystemClock()
    generic = "x86-64-generic" if platform.machine() == "x86_64" else "arm64-generic"
    try:
        like = load_profile(arguments.like or board_like(facts.model() or "") or generic)
    except UnknownBoardError as error:
        raise ConfigError(f"--like: {error}") from error
    kind, meter = None, None
    if arguments.meter == "auto":
        kind, meter = find_meter(root=arguments.root) or (None, None)
    elif arguments.meter != "none":
        kind, meter = arguments.meter, open_meter(arguments.meter, None, root=arguments.root)
    with tempfile.TemporaryDirectory(prefix="flchain-") as folder:
        plan = Plan(
            models=(
                *_own_model(arguments.config, Path(folder)),
                *_artifacts(arguments),
                *_zoo_models(arguments.zoo, Path(folder)),
            ),
            backend=arguments.backend,
            span_s=arguments.seconds,
            peer=arguments.peer,
            root=arguments.root,
        )
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # as the device trains
        print(f"{facts.model() or 'unknown board'}, meter {kind or 'none'}, like {like.board_id}", file=sys.stderr)
        measured = measure(plan, meter, clock=clock, say=lambda text: print(text, file=sys.stderr))
    date = dt.datetime.fromtimestamp(clock.time_s(), tz=dt.UTC).strftime("%Y-%m-%d")
    board_id = arguments.id or f"my-{like.board_id}"
    text = profile_text(measured, board_id=board_id, like=like, facts=facts, meter=kind, plan=plan, date=date)
    write_file(output, text.encode())
    for line in measured.missing:
        print(f"not measured: {line}", file=sys.stderr)
    print(f"{output}: {len(measured.powers)} power states, {len(measured.steps)} models; flchain boards show {output}")
    return 0


def _own_model(config_file: Path | None, folder: Path) -> list[Model]:
    """What this board trains: its artifact and the installed model, copied, since a running device may replace it."""
    if config_file is None:
        return []
    from edge_sdk.adapters.slots import Slots
    from edge_sdk.device.config import DeviceConfig
    from edge_sdk.measure.session import Model

    config = DeviceConfig.load(config_file)
    slots = Slots(config.slots_dir) if config.slots_dir.is_dir() else None
    installed = None if slots is None else slots.current()
    if slots is None or installed is None or not config.artifact_file.is_file():
        raise ConfigError(f"{config_file}: no model is installed yet: let the device run once, or give --artifact")
    params = folder / "installed.model.cbor"
    params.write_bytes(slots.blob(installed))
    return [Model(config.task, config.artifact_file, params)]


def _artifacts(arguments: argparse.Namespace) -> list[Model]:
    from edge_sdk.measure.session import Model

    paths: list[Path] = arguments.artifact
    for path in paths:
        for needed in (path, _params_of(path)):
            if not needed.is_file():
                raise ConfigError(f"{needed}: no such file: expected NAME.flm and beside it NAME.model.cbor")
    return [Model(path.stem, path, _params_of(path)) for path in paths]


def _params_of(artifact: Path) -> Path:
    return artifact.with_suffix(".model.cbor")


def _zoo_models(names: Sequence[str], folder: Path) -> list[Model]:
    """Artifacts of the zoo, made by the authoring part of the client in a process of its own; boards often lack it."""
    from edge_sdk.measure.session import Model

    models = []
    for name in names:
        line = [sys.executable, "-m", ZOO_WRITER, name, str(folder)]
        done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=ZOO_TIMEOUT_S)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["it failed"])[-1]
            text = f"--zoo {name}: {reason[:200]}; or make the files elsewhere: python -m {ZOO_WRITER} {name} FOLDER"
            raise ConfigError(f"{text}, and give --artifact FOLDER/{name}.flm")
        models.append(Model(name, folder / f"{name}.flm", folder / f"{name}.model.cbor"))
    return models


def _peer(arguments: argparse.Namespace) -> int:
    from edge_sdk.measure.link import serve_peer

    host, port = arguments.listen
    serve_peer(host, port, announce=lambda bound: print(json.dumps({"listening": f"{host}:{bound}"}), flush=True))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="flchain boards")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    text = "measure this board and write a profile of one's own; what has no meter stays empty"
    command = commands.add_parser("measure", help=text, description=text)
    command.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.toml", help="new file")
    command.add_argument("--id", type=_board_id, metavar="NAME", help="of the profile (default: my-BOARD)")
    command.add_argument("--like", metavar="BOARD", help="profile whose image route holds here (default: by the model)")
    command.add_argument("--config", type=Path, metavar="device.toml", help="train what this enrolled board trains")
    command.add_argument(
        "--artifact",
        type=Path,
        action="append",
        default=[],
        metavar="NAME.flm",
        help="train this one, with NAME.model.cbor beside it; may be repeated",
    )
    command.add_argument(
        "--zoo", action="append", default=[], metavar="NAME", help="train a zoo model; may be repeated"
    )
    command.add_argument("--backend", choices=("onnxruntime", "numpy"), default="onnxruntime")
    command.add_argument("--meter", choices=_METERS, default="auto", help="auto: the first that this board has")
    command.add_argument("--peer", type=_address, metavar="HOST:PORT", help="another machine with flchain boards peer")
    command.add_argument("--seconds", type=_seconds, default=10.0, help="length of each state (default: 10)")
    command.add_argument(
        "--root", type=Path, default=Path("/"), metavar="DIR", help="of sys, proc and usr (default: /)"
    )
    text = "answer a board that measures its link to this machine, until Ctrl-C"
    peer = commands.add_parser("peer", help=text, description=text)
    peer.add_argument("--listen", type=_address, default=("127.0.0.1", 5201), metavar="HOST:PORT")
    return parser


def _board_id(text: str) -> str:
    if _ID.fullmatch(text) is None:
        raise argparse.ArgumentTypeError(f"{text[:70]!r}: expected lower-case letters, digits and hyphens")
    return text


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65_535:
        raise argparse.ArgumentTypeError(f"{text!r}: expected HOST:PORT")
    return host.strip("[]"), int(port)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: expected seconds") from error
    if not 0.5 <= seconds <= 600:
        raise argparse.ArgumentTypeError(f"{text!r}: expected 0.5..600 seconds")
    return seconds
