"""From folders of wheels to a release that boards see: staged first, published by a second command.

Wheels are copied under their digests when they are staged; ``staged.json`` says what the release will hold. Publishing
gives it the next number, and signs.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from tuf.api.metadata import TargetFile

from coordinator.upgrades.keys import KeyRing
from coordinator.upgrades.repository import Repository, Times
from coordinator.upgrades.wheels import SetFolder, check_set, read_client, unpacked_bytes
from edge_sdk.adapters.durable_files import read_file, sync_file, write_file
from edge_sdk.errors import ConfigError, CorruptStoreError, UpgradeRefusedError
from edge_sdk.upgrade.release import BYTES_MAX, TARGET_NAME, Release, WheelSet, read_release
from firmware_profiles.profile import board_ids

STAGED: Final = "staged.json"
STAGED_BYTES_MAX: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Staged:
    """A release that waits for its publication, and the SHA-256 of each of its wheels in hex."""

    release: Release
    digests: Mapping[str, str]


def published_release(repository: Repository) -> Release | None:
    """The release that boards see; None before the first."""
    info = repository.targets.signed.targets.get(TARGET_NAME)
    if info is None:
        return None
    path = repository.targets_dir / f"{info.hashes['sha256']}.{TARGET_NAME}"
    data = read_file(path, bytes_max=BYTES_MAX)
    if data is None or hashlib.sha256(data).hexdigest() != info.hashes["sha256"]:
        raise CorruptStoreError(f"{path}: is not the file that was signed")
    return read_release(data)


def read_staged(repository: Repository) -> Staged | None:
    """What was staged and not yet published.

    Raises:
        CorruptStoreError: the file cannot be used.
    """
    path = repository.folder / STAGED
    data = read_file(path, bytes_max=STAGED_BYTES_MAX)
    if data is None:
        return None
    try:
        document = json.loads(data)
        digests = {str(name): str(digest) for name, digest in document["sha256"].items()}
        return Staged(read_release(json.dumps(document["release"]).encode()), digests)
    except (ValueError, KeyError, TypeError, AttributeError, UpgradeRefusedError) as error:
        raise CorruptStoreError(f"{path}: {error}; remove it and add the release again") from error


def stage(repository: Repository, folders: tuple[SetFolder, ...], *, boards: tuple[str, ...]) -> Release:
    """Check wheels, copy them into the repository and note the release.

    Raises:
        ConfigError: a set does not fit, is not complete, or holds another client than the first one.
    """
    for board in boards:
        if board not in board_ids():
            raise ConfigError(f"--board {board}: expected one of {', '.join(board_ids())}")
    places = [(item.python, item.machine) for item in folders]
    if len(set(places)) != len(places):
        raise ConfigError("--set: expected one folder for each Python and architecture")
    sets, clients = [], set()
    digests: dict[str, str] = {}
    for item in folders:
        wheels = check_set(item)
        clients.add(read_client(wheels))
        for path in wheels:
            digest = _copy(path, repository.targets_dir)
            if digests.setdefault(path.name, digest) != digest:
                raise ConfigError(f"{path}: another set holds other bytes under this name")
        names = tuple(path.name for path in wheels)
        sets.append(WheelSet(item.python, item.machine, names, unpacked_bytes(wheels)))
    if len(clients) != 1:
        found = ", ".join(sorted(client.version for client in clients))
        raise ConfigError(f"--set: clients {found}: expected the same one in every set")
    client = clients.pop()
    release = Release(
        number=_next_number(published_release(repository)),
        version=client.version,
        percent=0,
        boards=boards,
        state_schema=client.state_schema,
        sets=tuple(sets),
    )
    document = {"release": json.loads(release.encoded()), "sha256": digests}
    write_file(repository.folder / STAGED, json.dumps(document, indent=1).encode())
    return release


def publish(repository: Repository, ring: KeyRing, times: Times, *, percent: int | None) -> Release | None:
    """Make the staged release visible; without one change the percentage of the published one; always renew the life.

    Returns:
        What boards see now.

    Raises:
        ConfigError: a new release without a percentage, a percentage without a release, or keys are missing.
    """
    staged, current = read_staged(repository), published_release(repository)
    if staged is not None and current is not None and replace(staged.release, percent=current.percent) == current:
        # Published by a run that was cut off before it could remove the note: not to be published once more.
        (repository.folder / STAGED).unlink()
        staged = None
    if staged is not None:
        if percent is None:
            raise ConfigError("--percent: nothing: expected how much of the fleet takes the new release, 0..100")
        release = replace(staged.release, number=_next_number(current), percent=percent)
        targets = {name: _target_file(repository, name, digest) for name, digest in staged.digests.items()}
    elif percent is not None:
        if current is None:
            raise ConfigError(f"--percent {percent}: nothing is published: expected flchain upgrade add before")
        release = replace(current, percent=percent)
        targets = dict(repository.targets.signed.targets)
    else:
        repository.publish(ring, times)
        return current
    data = release.encoded()
    info = TargetFile.from_data(TARGET_NAME, data, ["sha256"])
    write_file(repository.targets_dir / f"{info.hashes['sha256']}.{TARGET_NAME}", data)
    repository.publish(ring, times, {**targets, TARGET_NAME: info})
    (repository.folder / STAGED).unlink(missing_ok=True)
    return release


def _next_number(current: Release | None) -> int:
    return 1 if current is None else current.number + 1


def _copy(wheel: Path, folder: Path) -> str:
    """Put a wheel under its digest; the digest in hex."""
    digest = _digest(wheel)
    place = folder / f"{digest}.{wheel.name}"
    if not place.exists():
        part = place.with_name(f"{place.name}.part")
        shutil.copyfile(wheel, part)
        sync_file(part)
        part.replace(place)
    return digest


def _target_file(repository: Repository, name: str, digest: str) -> TargetFile:
    path = repository.targets_dir / f"{digest}.{name}"
    if not path.is_file() or _digest(path) != digest:
        raise CorruptStoreError(f"{path}: is not the wheel that was added; remove it and add the release again")
    return TargetFile(path.stat().st_size, {"sha256": digest}, name)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
