"""``flchain flash list|write|verify``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from firmware_profiles.errors import FirmwareError, MediumError
from firmware_profiles.flash.disks import Disk, list_disks
from firmware_profiles.flash.host import Host
from firmware_profiles.flash.progress import Progress
from firmware_profiles.flash.run_log import RunLog
from firmware_profiles.flash.session import WriteOrder, verify_image, write_image
from firmware_profiles.flash.target import SIZE_BYTES_MAX
from firmware_profiles.flash.usage import mount_points, system_devices

GIGA: Final = 10**9
EPILOG: Final = "exit status: 0 done, 2 usage, 3 target refused, 4 image refused, 5 verify failed, 1 anything else"


def main(argv: Sequence[str], *, host: Host | None = None) -> int:
    """Run one flash command on a host; this one by default."""
    arguments = _parser().parse_args(argv)
    machine = host or Host()
    if arguments.command == "list":
        return _list(machine, is_json=arguments.json)
    progress = Progress(None if arguments.quiet else sys.stderr)
    with RunLog(arguments.log) as log:
        try:
            if arguments.command == "verify":
                found = verify_image(
                    arguments.image, arguments.target, machine, block_map=arguments.bmap, progress=progress, log=log
                )
                print(f"{arguments.target} holds {found.mapped_bytes} bytes of {arguments.image}: same content")
                return 0
            return _write(arguments, machine, progress, log)
        except FirmwareError as error:
            facts = {"offset": error.offset} if isinstance(error, MediumError) else {}
            reason = getattr(error, "reason", type(error).__name__)
            log.event("failed", exit_status=error.exit_status, reason=reason, text=str(error), **facts)
            raise


def _write(arguments: argparse.Namespace, host: Host, progress: Progress, log: RunLog) -> int:
    order = WriteOrder(
        image=arguments.image,
        target=arguments.to,
        serial=arguments.serial,
        sha256=arguments.sha256,
        profile=arguments.profile,
        block_map=arguments.bmap,
        is_dry_run=arguments.dry_run,
        is_confirmed=arguments.yes,
        is_fixed_allowed=arguments.allow_fixed,
        size_bytes_max=arguments.max_gb * GIGA,
    )
    image = write_image(order, host, confirm=_ask, progress=progress, log=log)
    if order.is_dry_run:
        print(f"dry run: {image.mapped_bytes} bytes would be written to {order.target}; every check passed")
    else:
        print(f"wrote {image.mapped_bytes} bytes to {order.target} and read them back: SHA-256 as in the image")
    return 0


def _ask(disk: Disk, labels: tuple[str, ...]) -> bool:
    """Show the disk and let the person type its serial number (its name where it has none)."""
    if not sys.stdin.isatty():
        print("nobody to ask: give --serial and --yes", file=sys.stderr)
        return False
    wanted = disk.serial or disk.name
    print(
        f"{disk.path}: {disk.model or 'unknown model'}, serial {disk.serial or 'none'}, "
        f"{disk.size_bytes / GIGA:.1f} GB, {disk.transport}\n"
        f"now on it: {', '.join(labels) or 'nothing with a label'}\n"
        f"everything on it will be lost. Type {wanted} to go on: ",
        end="",
        file=sys.stderr,
        flush=True,
    )
    return sys.stdin.readline().strip() == wanted


def _list(host: Host, *, is_json: bool) -> int:
    system = system_devices(host)
    rows = [
        {
            "path": str(disk.path),
            "model": disk.model,
            "serial": disk.serial,
            "size_bytes": disk.size_bytes,
            "transport": disk.transport,
            "is_pluggable": disk.is_pluggable,
            "is_read_only": disk.is_read_only,
            "is_system": disk.name in system,
            "mount_points": list(mount_points(host, disk)),
        }
        for disk in list_disks(host)
    ]
    if is_json:
        print(json.dumps(rows, indent=2))
        return 0
    for row in rows:
        state = "SYSTEM" if row["is_system"] else "mounted" if row["mount_points"] else "free"
        kind = "pluggable" if row["is_pluggable"] else "fixed"
        size = f"{int(str(row['size_bytes'])) / GIGA:.1f} GB"
        print(
            f"{row['path']:<16} {size:>10}  {row['transport']:<7} {kind:<9} {state:<7} {row['model']} {row['serial']}"
        )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="flchain flash", description="Write images to media.", epilog=EPILOG)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    listing = commands.add_parser("list", help="show the disks of this machine")
    listing.add_argument("--json", action="store_true", help="as JSON")
    writing = commands.add_parser("write", help="write an image and verify it", epilog=EPILOG)
    writing.add_argument("image", type=Path, metavar="IMG", help="raw, gz, xz or zst")
    writing.add_argument("--to", type=Path, required=True, metavar="DEVICE|FILE", help="whole disk, or a new file")
    writing.add_argument("--serial", metavar="S", help="refuse a disk with another serial number")
    writing.add_argument("--sha256", metavar="HEX", help="of the file or its content; else IMG.sha256 or IMG.json")
    writing.add_argument("--profile", metavar="P", help="refuse an image that is not for this board")
    writing.add_argument("--dry-run", action="store_true", help="make every check, write nothing")
    writing.add_argument("--yes", action="store_true", help="do not ask; only with --serial")
    writing.add_argument("--allow-fixed", action="store_true", help="also a disk that is not pluggable; with --serial")
    writing.add_argument(
        "--max-gb", type=int, default=SIZE_BYTES_MAX // GIGA, metavar="N", help="refuse larger disks (default 256)"
    )
    verifying = commands.add_parser("verify", help="compare a medium with an image", epilog=EPILOG)
    verifying.add_argument("image", type=Path, metavar="IMG")
    verifying.add_argument("target", type=Path, metavar="DEVICE|FILE")
    for command in (writing, verifying):
        command.add_argument("--bmap", type=Path, metavar="FILE", help="block map: holes are neither written nor read")
        command.add_argument("--log", type=Path, metavar="FILE", help="append events as JSON lines")
        command.add_argument("--quiet", action="store_true", help="no progress")
    return parser
