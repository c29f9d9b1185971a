"""``flchain upgrade init|add|publish|rotate|show``: releases of the client, signed and staged, as plain files.

Any HTTP server may serve the folder, a miner too (``[http] software_dir``); devices trust the keys, not the server.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from coordinator.upgrades.keys import KeyRing, new_key_folder
from coordinator.upgrades.repository import DEFAULT_DAYS, Repository, Times, alone
from coordinator.upgrades.staging import publish, published_release, read_staged, stage
from coordinator.upgrades.wheels import SetFolder
from edge_sdk.adapters.system_clock import SystemClock
from edge_sdk.errors import ConfigError
from edge_sdk.upgrade.metadata import RoleName
from edge_sdk.upgrade.release import Release

ROOT_KEYS_MAX = 10
DAYS_MAX = 3_650


def main(argv: Sequence[str]) -> int:
    """Run the command with its arguments."""
    options = _parser().parse_args(argv)
    if options.command == "init":
        return _init(options)
    if options.command == "show":
        return _show(options)
    changes = {"add": _add, "publish": _publish, "rotate": _rotate}
    with alone(options.repository):
        return changes[options.command](options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="flchain upgrade", description="Publish releases of the device's software.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    init = commands.add_parser("init", help="make a repository and its keys")
    init.add_argument("--root-keys", type=int, default=1, metavar="N", help="keys of root (default 1)")
    init.add_argument("--root-threshold", type=int, default=1, metavar="K", help="of which K must sign (default 1)")
    add = commands.add_parser("add", help="stage a release; boards do not see it before it is published")
    add.add_argument(
        "--set",
        dest="sets",
        action="append",
        required=True,
        metavar="PYTHON:ARCH=FOLDER",
        help="wheels of the client and all its dependencies for one Python and processor, such as"
        " 3.13:aarch64=wheels; repeat for more",
    )
    add.add_argument("--board", dest="boards", action="append", default=[], help="only boards of this profile; repeat")
    publish_ = commands.add_parser(
        "publish", help="make the staged release visible; without one: change the percentage, renew the signatures"
    )
    publish_.add_argument(
        "--percent", type=int, metavar="P", help="of the fleet that takes it, 0..100; a new release needs it"
    )
    rotate = commands.add_parser("rotate", help="replace the keys of a role")
    rotate.add_argument("--role", type=RoleName, choices=list(RoleName), required=True)
    show = commands.add_parser("show", help="what is published, staged, and when it expires")
    show.add_argument("--json", action="store_true", help="as JSON")
    for command in (init, add, publish_, rotate, show):
        command.add_argument("repository", type=Path, metavar="REPO", help="folder of the repository")
    for command in (init, publish_, rotate):
        command.add_argument(
            "--keys", type=Path, action="append", required=True, metavar="FOLDER", help="private keys (0600); repeat"
        )
        for role, days in DEFAULT_DAYS.items():
            command.add_argument(
                f"--days-{role}", type=int, default=days, metavar="D", help=f"life of {role} (default {days})"
            )
    return parser


def _init(options: argparse.Namespace) -> int:
    keys, threshold = options.root_keys, options.root_threshold
    if not 1 <= threshold <= keys <= ROOT_KEYS_MAX:
        expected = f"expected 1 <= threshold <= keys <= {ROOT_KEYS_MAX}"
        raise ConfigError(f"--root-keys {keys} --root-threshold {threshold}: {expected}")
    _check_apart(options)
    if len(options.keys) != 1:
        raise ConfigError("--keys: expected one folder at init; move root's keys to another place afterwards")
    times = _times(options)
    repository_path: Path = options.repository
    if repository_path.exists() and any(repository_path.iterdir()):
        raise ConfigError(f"{repository_path}: expected an empty folder, or none")
    ring = new_key_folder(options.keys[0])
    repository = Repository.create(repository_path, ring, times, root_keys=keys, root_threshold=threshold)
    print(f"repository {repository.folder}, keys in {options.keys[0]}")
    print(f"trust anchor for the boards: {repository.metadata_dir / '1.root.json'}")
    print("move root-*.pem to a place without a network; publish needs the others only")
    return 0


def _add(options: argparse.Namespace) -> int:
    repository = Repository(options.repository)
    folders = tuple(SetFolder.parse(text) for text in options.sets)
    release = stage(repository, folders, boards=tuple(options.boards))
    for item in release.sets:
        size = f"{len(item.wheels)} wheels, {item.unpacked_bytes // 2**20} MiB unpacked"
        print(f"Python {item.python} on {item.machine}: {size}")
    print(f"staged release {release.number}: client {release.version}; flchain upgrade publish makes it visible")
    return 0


def _publish(options: argparse.Namespace) -> int:
    percent = options.percent
    if percent is not None and not 0 <= percent <= 100:
        raise ConfigError(f"--percent {percent}: expected 0..100")
    repository = Repository(options.repository)
    release = publish(repository, _ring(options), _times(options), percent=percent)
    what = "no release yet" if release is None else f"{_named(release)} for {release.percent} % of the fleet"
    print(f"published: {what}; signatures hold until {repository.timestamp.signed.expires:%Y-%m-%d %H:%M} UTC")
    _warn(repository)
    return 0


def _rotate(options: argparse.Namespace) -> int:
    repository = Repository(options.repository)
    repository.rotate(_ring(options), _times(options), options.role)
    print(f"root version {repository.root.signed.version}: new keys of {options.role} in {options.keys[0]}")
    print("the old key files are of no use any more: destroy them")
    return 0


def _show(options: argparse.Namespace) -> int:
    repository = Repository(options.repository)
    document = _document(repository, now_s=SystemClock().time_s())
    _warn(repository)
    if options.json:
        print(json.dumps(document, indent=2))
        return 0
    for role in document["roles"]:
        state = "EXPIRED" if role["expired"] else "until"
        keys = f"{role['threshold']} of {role['keys']} keys"
        print(f"{role['role']:<10} version {role['version']:<6} {state} {role['expires']}  {keys}")
    for what in ("published", "staged"):
        release = document[what]
        if release is None:
            print(f"{what:<10} nothing")
            continue
        sets = ", ".join(f"Python {item['python']} {item['machine']}" for item in release["sets"])
        print(f"{what:<10} release {release['release']}: client {release['version']}, {release['percent']} %, {sets}")
    return 0


def _warn(repository: Repository) -> None:
    """Say before boards do that a document ends which the weekly publish cannot renew by itself."""
    remedies = {
        RoleName.ROOT: "flchain upgrade rotate --role root renews it",
        RoleName.TARGETS: "flchain upgrade publish with the key of targets renews it",
    }
    for role, days in repository.ending_soon(SystemClock().time_s()).items():
        when = f"expires in {days} days" if days >= 0 else "has expired"
        sys.stderr.write(f"flchain upgrade: {role} {when}, and boards take nothing after that: {remedies[role]}\n")


def _ring(options: argparse.Namespace) -> KeyRing:
    _check_apart(options)
    return KeyRing(options.keys)


def _check_apart(options: argparse.Namespace) -> None:
    """Keys below the repository would be served with it."""
    for folder in options.keys:
        if folder.resolve().is_relative_to(options.repository.resolve()):
            raise ConfigError(f"--keys {folder}: lies in {options.repository}, which is served: expected another place")


def _document(repository: Repository, *, now_s: int) -> dict[str, Any]:
    now = dt.datetime.fromtimestamp(now_s, tz=dt.UTC)
    documents = {
        RoleName.ROOT: repository.root.signed,
        RoleName.TARGETS: repository.targets.signed,
        RoleName.SNAPSHOT: repository.snapshot.signed,
        RoleName.TIMESTAMP: repository.timestamp.signed,
    }
    staged = read_staged(repository)
    releases = {"published": published_release(repository), "staged": None if staged is None else staged.release}
    return {
        "roles": [
            {
                "role": role.value,
                "version": signed.version,
                "expires": f"{signed.expires:%Y-%m-%dT%H:%M:%SZ}",
                "expired": signed.expires <= now,
                "keys": len(repository.root.signed.roles[role].keyids),
                "threshold": repository.root.signed.roles[role].threshold,
            }
            for role, signed in documents.items()
        ],
        **{name: None if found is None else json.loads(found.encoded()) for name, found in releases.items()},
    }


def _named(release: Release) -> str:
    return f"release {release.number}, client {release.version}"


def _times(options: argparse.Namespace) -> Times:
    days = {role: getattr(options, f"days_{role}") for role in DEFAULT_DAYS}
    for role, count in days.items():
        if not 1 <= count <= DAYS_MAX:
            raise ConfigError(f"--days-{role} {count}: expected 1..{DAYS_MAX}")
    return Times(SystemClock().time_s(), days)
