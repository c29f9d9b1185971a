"""``flchain image inspect|customise|wheelhouse``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from firmware_profiles.errors import UsageError
from firmware_profiles.flash.progress import MEGA, Progress
from firmware_profiles.image.customise import CONTENT_BYTES_MAX, customise
from firmware_profiles.image.identity import load_claim, load_identity, load_upgrade, load_wifi
from firmware_profiles.image.inspect import ImageFacts, inspect
from firmware_profiles.image.seed import Payload
from firmware_profiles.image.wheel_download import fill_wheelhouse
from firmware_profiles.image.wheelhouse import check_wheelhouse
from firmware_profiles.profile import BoardProfile, InitFormat, UnknownBoardError, load_profile

EPILOG: Final = "exit status: 0 done, 2 usage, 4 image refused, 1 anything else"


def main(argv: Sequence[str]) -> int:
    """Run one image command."""
    arguments = _parser().parse_args(argv)
    if arguments.command == "inspect":
        facts = inspect(arguments.image, bytes_max=CONTENT_BYTES_MAX)
        print(json.dumps(_as_json(facts), indent=2) if arguments.json else _as_text(facts))
        return 0
    return _wheelhouse(arguments) if arguments.command == "wheelhouse" else _customise(arguments)


def _customise(arguments: argparse.Namespace) -> int:
    try:
        profile = load_profile(arguments.profile)
    except UnknownBoardError as error:
        raise UsageError(str(error)) from error
    if [str(path) for path in (arguments.claim_token, arguments.wifi)].count("-") > 1:
        raise UsageError("only one secret can come from standard input")
    payload = Payload(
        identity=load_identity(arguments.device_config),
        claim=load_claim(arguments.claim_token),
        wifi=load_wifi(arguments.wifi) if arguments.wifi else None,
        wheels=_wheels(arguments, profile),
        upgrade=load_upgrade(arguments.upgrade_config) if arguments.upgrade_config else {},
    )
    made = customise(
        arguments.image,
        arguments.output,
        profile=profile,
        payload=payload,
        init_format=InitFormat(arguments.init_format or profile.image.init_format),
        advance=Progress(None if arguments.quiet else sys.stderr).phase("copying", 0),
    )
    print(f"{made.path}: {len(made.files)} files in {made.seed_volume}, read back and compared")
    print(f"sha256 {made.sha256}; the manifest for flchain flash write is {made.path.name}.json")
    return 0


def _wheelhouse(arguments: argparse.Namespace) -> int:
    try:
        profile = load_profile(arguments.profile)
    except UnknownBoardError as error:
        raise UsageError(str(error)) from error
    python = _python(arguments, profile)
    architecture = profile.image.architecture
    wheels = fill_wheelhouse(
        arguments.output,
        python=python,
        architecture=architecture,
        client=arguments.client or _own_source(),
        say=lambda text: print(text, file=sys.stderr),
    )
    size = sum(wheel.stat().st_size for wheel in wheels) / MEGA
    print(f"{arguments.output}: {len(wheels)} wheels, {size:.1f} MB, complete for Python {python} on {architecture}")
    return 0


def _own_source() -> Path:
    """The tree that this program runs from; an installed program has none."""
    source = Path(__file__).resolve().parents[1]
    if not (source / "setup.cfg").is_file():
        raise UsageError("--client: expected the client's wheel or source tree: this program was installed without one")
    return source


def _python(arguments: argparse.Namespace, profile: BoardProfile) -> str:
    python: str | None = arguments.python or profile.image.python
    if python is None:
        raise UsageError(f"{profile.board_id}: the system's Python is not established: give --python 3.N")
    return python


def _wheels(arguments: argparse.Namespace, profile: BoardProfile) -> tuple[Path, ...]:
    if arguments.wheelhouse is None:
        return ()
    python = _python(arguments, profile)
    return check_wheelhouse(arguments.wheelhouse, python=python, architecture=profile.image.architecture)


def _as_json(facts: ImageFacts) -> dict[str, object]:
    return {
        "path": str(facts.path),
        "container": facts.container,
        "file_bytes": facts.file_bytes,
        "content_bytes": facts.content_bytes,
        "table": facts.table.kind,
        "system_guess": facts.system_guess,
        "volumes": [
            {
                "partition": volume.partition.index,
                "start_bytes": volume.partition.start_bytes,
                "size_bytes": volume.partition.size_bytes,
                "kind": volume.partition.kind,
                "name": volume.partition.name,
                "filesystem": volume.filesystem.kind if volume.filesystem else None,
                "label": volume.filesystem.label if volume.filesystem else None,
            }
            for volume in facts.volumes
        ],
    }


def _as_text(facts: ImageFacts) -> str:
    packed, unpacked = facts.file_bytes / MEGA, facts.content_bytes / MEGA
    title = f"{facts.path}: {facts.container}, {packed:.1f} MB, unpacked {unpacked:.1f} MB, table {facts.table.kind}"
    lines = [title]
    for volume in facts.volumes:
        partition, filesystem = volume.partition, volume.filesystem
        content = f"{filesystem.kind} label {filesystem.label or '(none)'}" if filesystem else "not FAT or ext"
        name = f" name {partition.name}" if partition.name else ""
        start, size = partition.start_bytes / MEGA, partition.size_bytes / MEGA
        lines.append(f"  {partition.index:>3}  at {start:>9.1f} MB  {size:>9.1f} MB  {partition.kind}{name}: {content}")
    lines.append(f"system, by its labels and for information only: {facts.system_guess or 'unknown'}")
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="flchain image", description="Look into vendor images and prepare them for a board.", epilog=EPILOG
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    inspecting = commands.add_parser("inspect", help="container, partitions, labels", epilog=EPILOG)
    inspecting.add_argument("image", type=Path, metavar="IMG", help="raw, gz, xz or zst")
    inspecting.add_argument("--json", action="store_true", help="as JSON")
    text = "download everything that the client needs on a board, and prove that it installs there offline"
    gathering = commands.add_parser("wheelhouse", help=text, description=text, epilog=EPILOG)
    gathering.add_argument("--profile", required=True, metavar="P", help="board, see flchain boards list")
    gathering.add_argument(
        "--python", metavar="3.N", help="the system's Python, where the profile says another or none"
    )
    gathering.add_argument("--client", type=Path, metavar="WHEEL|DIR", help="the client (default: this source tree)")
    gathering.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="new folder")
    making = commands.add_parser("customise", help="add the seed of one board to a copy of an image", epilog=EPILOG)
    making.add_argument("image", type=Path, metavar="IMG", help="vendor image: raw, gz, xz or zst")
    making.add_argument("--profile", required=True, metavar="P", help="board, see flchain boards list")
    making.add_argument("--device-config", type=Path, required=True, metavar="FILE", help="device.toml, CA beside it")
    making.add_argument("--claim-token", type=Path, required=True, metavar="FILE", help="single-use token; - is stdin")
    making.add_argument("--wifi", type=Path, metavar="FILE", help="TOML with ssid, password, country; - is stdin")
    making.add_argument("--upgrade-config", type=Path, metavar="FILE", help="upgrade.toml, root.json beside it")
    making.add_argument("--wheelhouse", type=Path, metavar="DIR", help="wheels to install without a network")
    making.add_argument("--python", metavar="3.N", help="the system's Python, where the profile says another or none")
    making.add_argument(
        "--init-format", choices=[*InitFormat], help="the system's own format, where it is another than the profile's"
    )
    making.add_argument("-o", "--output", type=Path, required=True, metavar="OUT.img")
    making.add_argument("--quiet", action="store_true", help="no progress")
    return parser
