"""A TUF repository of plain files: read, changed in memory, verified as a board would, and only then written.

::

    metadata/1.root.json 2.root.json ... 7.targets.json 9.snapshot.json timestamp.json
    targets/<sha256>.<name>
    staged.json          a release that is added and not yet published; boards never see it

``timestamp.json`` is written last and atomically: until then boards see the former state, whole. A run that was cut off
leaves files that nothing names; the next one writes over them.
"""

from __future__ import annotations

import datetime as dt
import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeVar

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp
from tuf.api.serialization.json import JSONSerializer

from coordinator.upgrades.keys import KeyRing
from edge_sdk.adapters.durable_files import read_file, sync_directory, write_file
from edge_sdk.errors import ConfigError, CorruptStoreError, UpgradeRefusedError
from edge_sdk.upgrade.metadata import BYTES_MAX, RoleName
from edge_sdk.upgrade.trusted import Trusted

DAY_S: Final = 86_400
DEFAULT_DAYS: Final = {
    RoleName.ROOT: 365,
    RoleName.TARGETS: 90,
    RoleName.SNAPSHOT: 14,
    RoleName.TIMESTAMP: 7,
}
"""Life of a role's document. A board that sees an expired one keeps its software: publish more often than this."""
CREATED: Final = "x-created-s"
"""Our own field in every document: boards take the latest one as the earliest time that their clock may show."""
_S = TypeVar("_S", Root, Timestamp, Snapshot, Targets)


SOON_DAYS: Final = {RoleName.ROOT: 45, RoleName.TARGETS: 14}
"""What no weekly ``publish`` renews without keys that are kept elsewhere is spoken of so long before its end."""


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Wait until no other command changes a repository; two of one version would part the fleet.

    The lock is on the folder itself and ends with the process.

    Raises:
        ConfigError: there is no such folder.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigError(f"{folder}: {error.strerror}: expected a repository of software") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@dataclass(frozen=True, slots=True)
class Times:
    """When documents are made and how long they hold."""

    now_s: int
    days: Mapping[RoleName, int] = field(default_factory=lambda: DEFAULT_DAYS)

    def expiry(self, role: RoleName) -> dt.datetime:
        """End of a document's life, in whole seconds as the format wants it."""
        return dt.datetime.fromtimestamp(self.now_s + self.days[role] * DAY_S, tz=dt.UTC)


class Repository:
    """The repository below one folder."""

    def __init__(self, folder: Path) -> None:
        """Load the newest document of each role.

        Raises:
            ConfigError: there is no repository.
            CorruptStoreError: a document cannot be read.
        """
        self.folder = folder
        self.metadata_dir, self.targets_dir = folder / "metadata", folder / "targets"
        if not (self.metadata_dir / "1.root.json").exists():
            raise ConfigError(f"{folder}: no repository of software: run flchain upgrade init {folder} --keys FOLDER")
        self.root = self._load(f"{self._root_version()}.root.json", Root)
        self.timestamp = self._load("timestamp.json", Timestamp)
        self.snapshot = self._load(f"{self.timestamp.signed.snapshot_meta.version}.snapshot.json", Snapshot)
        targets_version = self.snapshot.signed.meta["targets.json"].version
        self.targets = self._load(f"{targets_version}.targets.json", Targets)

    @classmethod
    def create(cls, folder: Path, ring: KeyRing, times: Times, *, root_keys: int, root_threshold: int) -> Repository:
        """Make an empty repository with new keys.

        Raises:
            ConfigError: the folder holds something.
        """
        if folder.exists() and any(folder.iterdir()):
            raise ConfigError(f"{folder}: expected an empty folder, or none")
        for path in (folder / "metadata", folder / "targets"):
            path.mkdir(parents=True)
        root = Root(version=1, expires=times.expiry(RoleName.ROOT), unrecognized_fields={CREATED: times.now_s})
        for role in RoleName:
            for _ in range(root_keys if role is RoleName.ROOT else 1):
                root.add_key(ring.create(role).public_key, role)
        root.roles[RoleName.ROOT].threshold = root_threshold
        self = cls.__new__(cls)
        self.folder, self.metadata_dir, self.targets_dir = folder, folder / "metadata", folder / "targets"
        self.root = Metadata(root)
        self._sign(self.root, ring, RoleName.ROOT)
        self.targets, self.snapshot, self.timestamp = Metadata(Targets()), Metadata(Snapshot()), Metadata(Timestamp())
        files = self._signed_anew(ring, times, with_targets=True, step=0)
        self._write_root(self.root)
        self._write(files)
        return self

    def publish(self, ring: KeyRing, times: Times, targets: Mapping[str, TargetFile] | None = None) -> None:
        """Make new targets visible, or with None renew the life of what is published.

        What is published keeps its signature of targets, and its life, where the key of targets is not at hand.
        """
        if targets is not None:
            self.targets.signed.targets = dict(targets)
        with_targets = targets is not None or self._can_sign(ring, RoleName.TARGETS)
        self._write(self._signed_anew(ring, times, with_targets=with_targets))

    def rotate(self, ring: KeyRing, times: Times, role: RoleName) -> None:
        """Replace every key of a role by a new one; root is signed by its old and by its new keys.

        Raises:
            ConfigError: keys of root, snapshot or timestamp are not at hand; nothing is written then.
        """
        old_keys = tuple(self.root.signed.roles[role].keyids)
        old_root = tuple(self.root.signed.roles[RoleName.ROOT].keyids)
        ring.signers(RoleName.ROOT, old_root, self.root.signed.roles[RoleName.ROOT].threshold)
        for other in {RoleName.SNAPSHOT, RoleName.TIMESTAMP} - {role} if role is not RoleName.ROOT else ():
            held = self.root.signed.roles[other]
            ring.signers(other, held.keyids, held.threshold)
        for key_id in old_keys:
            self.root.signed.revoke_key(key_id, role)
        for _ in old_keys:
            self.root.signed.add_key(ring.create(role).public_key, role)
        self.root.signed.version += 1
        self.root.signed.expires = times.expiry(RoleName.ROOT)
        self.root.signed.unrecognized_fields[CREATED] = times.now_s
        self._sign(self.root, ring, RoleName.ROOT, also=old_root)
        files: dict[str, bytes] = {}
        if role is not RoleName.ROOT:
            files = self._signed_anew(ring, times, with_targets=self._can_sign(ring, RoleName.TARGETS))
        # All is signed by now. Boards that ask in this moment refuse both, and keep what they have.
        self._write_root(self.root)
        self._write(files)

    def ending_soon(self, now_s: int) -> dict[RoleName, int]:
        """Days of life that are left, of documents for which somebody has to fetch a key before long."""
        documents = {RoleName.ROOT: self.root.signed, RoleName.TARGETS: self.targets.signed}
        days = {role: (int(signed.expires.timestamp()) - now_s) // DAY_S for role, signed in documents.items()}
        return {role: count for role, count in days.items() if count < SOON_DAYS[role]}

    def _can_sign(self, ring: KeyRing, role: RoleName) -> bool:
        held = self.root.signed.roles[role]
        return ring.has(held.keyids, held.threshold)

    def _signed_anew(self, ring: KeyRing, times: Times, *, with_targets: bool, step: int = 1) -> dict[str, bytes]:
        """Sign snapshot and timestamp, and targets if asked for, and hold them against a board's rules.

        Returns:
            Files of metadata, the one that makes the others visible last.
        """
        files: dict[str, bytes] = {}
        if with_targets:
            self._renew(self.targets, ring, times, RoleName.TARGETS, step)
            self.snapshot.signed.meta["targets.json"] = _named(self.targets)
            files[f"{self.targets.signed.version}.targets.json"] = targets = _bytes(self.targets)
        else:
            targets = self._read(f"{self.targets.signed.version}.targets.json")
        self._renew(self.snapshot, ring, times, RoleName.SNAPSHOT, step)
        self.timestamp.signed.snapshot_meta = _named(self.snapshot)
        self._renew(self.timestamp, ring, times, RoleName.TIMESTAMP, step)
        files[f"{self.snapshot.signed.version}.snapshot.json"] = snapshot = _bytes(self.snapshot)
        files["timestamp.json"] = timestamp = _bytes(self.timestamp)
        self._check_as_a_board(targets, snapshot, timestamp, now_s=times.now_s)
        return files

    def _write(self, files: Mapping[str, bytes]) -> None:
        sync_directory(self.targets_dir)
        for name, data in files.items():
            write_file(self.metadata_dir / name, data)

    def _renew(self, metadata: Metadata[_S], ring: KeyRing, times: Times, role: RoleName, step: int) -> None:
        metadata.signed.version += step
        metadata.signed.expires = times.expiry(role)
        metadata.signed.unrecognized_fields[CREATED] = times.now_s
        self._sign(metadata, ring, role)

    def _sign(self, metadata: Metadata[_S], ring: KeyRing, role: RoleName, *, also: tuple[str, ...] = ()) -> None:
        held = self.root.signed.roles[role]
        signers = ring.signers(role, held.keyids, held.threshold)
        if also:
            signers += [signer for signer in ring.signers(role, also, 1) if signer not in signers]
        metadata.signatures.clear()
        for signer in signers:
            metadata.sign(signer, append=True)

    def _write_root(self, root: Metadata[Root]) -> None:
        data = _bytes(root)
        former = root.signed.version - 1
        if former:
            try:
                Trusted(self._read(f"{former}.root.json"), time_s=0).update_root(data)
            except UpgradeRefusedError as error:
                raise CorruptStoreError(f"{self.folder}: a board would refuse the new root: {error}") from error
        write_file(self.metadata_dir / f"{root.signed.version}.root.json", data)

    def _check_as_a_board(self, targets: bytes, snapshot: bytes, timestamp: bytes, *, now_s: int) -> None:
        try:
            trusted = Trusted(_bytes(self.root), time_s=now_s)
            trusted.update_timestamp(timestamp)
            trusted.update_snapshot(snapshot)
            trusted.update_targets(targets)
        except UpgradeRefusedError as error:
            raise ConfigError(f"{self.folder}: nothing written, a board would refuse this: {error}") from error

    def _root_version(self) -> int:
        version = 1
        while (self.metadata_dir / f"{version + 1}.root.json").exists():
            version += 1
        return version

    def _load(self, name: str, kind: type[_S]) -> Metadata[_S]:
        try:
            metadata: Metadata[_S] = Metadata.from_bytes(self._read(name))
        except RepositoryError as error:
            raise CorruptStoreError(f"{self.metadata_dir / name}: {error}") from error
        if not isinstance(metadata.signed, kind):
            raise CorruptStoreError(f"{self.metadata_dir / name}: is of role {metadata.signed.type}")
        return metadata

    def _read(self, name: str) -> bytes:
        data = read_file(self.metadata_dir / name, bytes_max=max(BYTES_MAX.values()))
        if data is None:
            raise CorruptStoreError(f"{self.metadata_dir / name}: is not there")
        return data


def _bytes(metadata: Metadata[_S]) -> bytes:
    return metadata.to_bytes(JSONSerializer(compact=False))


def _named(metadata: Metadata[_S]) -> MetaFile:
    """How the role above names a document: version, length and SHA-256, so that no mix can be put together."""
    return MetaFile.from_data(metadata.signed.version, _bytes(metadata), ["sha256"])
