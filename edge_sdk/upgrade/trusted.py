"""What a board believes of a software repository, and the rules by which it believes more.

The order is that of the specification: root after root, then timestamp, snapshot, targets. Each step takes bytes from
anywhere, checks them against what is trusted already and raises ``UpgradeRefusedError`` or replaces the trusted
document. The caller keeps accepted bytes on the disk and offers them again at the next start with ``is_stored=True``:
they went through the same checks except the expiry, and their versions are the floor below which nothing is taken.

Source: TUF specification 1.0.33, section 5 (client workflow), step numbers in the code.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Final, TypeVar

from edge_sdk.errors import DecodeError, SignatureError, UpgradeRefusedError
from edge_sdk.upgrade.metadata import Document, FileInfo, RoleName, Root, Snapshot, Target, Targets, Timestamp, read

ROOTS_PER_RUN_MAX: Final = 64
_D = TypeVar("_D", Root, Timestamp, Snapshot, Targets)


class Trusted:
    """The trusted documents of one repository. Methods raise ``UpgradeRefusedError`` and then change nothing."""

    def __init__(self, root: bytes, *, time_s: int) -> None:
        """Start from a root that is trusted without a signature of anybody else: that of the image, or a stored one.

        Args:
            root: Bytes of the root document.
            time_s: Calendar time at which expiry is judged, not below ``created_s`` of anything trusted.

        Raises:
            UpgradeRefusedError: it is no root, or it is not signed by itself.
        """
        self._time_s = time_s
        found = _read(root, RoleName.ROOT, Root)
        _verify(found.roles[RoleName.ROOT].check_signed, found)
        self.root = found
        self.timestamp: Timestamp | None = None
        self.snapshot: Snapshot | None = None
        self.targets: Targets | None = None

    @property
    def created_s(self) -> int:
        """Latest moment at which a trusted document was made: no clock that is right stands before it."""
        documents = (self.root, self.timestamp, self.snapshot, self.targets)
        return max(document.created_s for document in documents if document is not None)

    def update_root(self, data: bytes) -> None:
        """Take the next root (5.3.4 to 5.3.8): signed by the old and by the new keys, version higher by one."""
        if self.timestamp is not None:
            raise UpgradeRefusedError("root: comes before timestamp", reason="order")
        new = _read(data, RoleName.ROOT, Root)
        _verify(self.root.roles[RoleName.ROOT].check_signed, new)
        if new.version != self.root.version + 1:
            raise UpgradeRefusedError(f"root: version {new.version} after {self.root.version}", reason="version")
        _verify(new.roles[RoleName.ROOT].check_signed, new)
        self.root = new

    def update_timestamp(self, data: bytes, *, is_stored: bool = False) -> None:
        """Take a timestamp (5.4); the last root must be in force by now (5.3.10)."""
        self._check_expiry(self.root)
        new = _read(data, RoleName.TIMESTAMP, Timestamp)
        self._verify_role(new)
        if self.timestamp is not None:
            old = self.timestamp
            if new.version < old.version or new.snapshot.version < old.snapshot.version:
                text = f"{old.version} naming snapshot {old.snapshot.version}"
                raise UpgradeRefusedError(
                    f"timestamp: version {new.version} naming snapshot {new.snapshot.version} after {text}",
                    reason="version",
                )
            if new.version == old.version and new.signed_bytes != old.signed_bytes:
                raise UpgradeRefusedError(f"timestamp: two documents of version {new.version}", reason="version")
        if not is_stored:
            self._check_expiry(new)
        self.timestamp = new

    def update_snapshot(self, data: bytes, *, is_stored: bool = False) -> None:
        """Take the snapshot that the timestamp names (5.5).

        A stored one may be older than that: it only sets the floor for the version of targets.
        """
        timestamp = self._need(self.timestamp, RoleName.TIMESTAMP)
        if not is_stored:
            _check_bytes(data, timestamp.snapshot, RoleName.SNAPSHOT)
        new = _read(data, RoleName.SNAPSHOT, Snapshot)
        self._verify_role(new)
        if not is_stored:
            _check_version(new, timestamp.snapshot)
        old = self.snapshot
        if old is not None and new.targets.version < old.targets.version:
            text = f"snapshot: names targets {new.targets.version} after {old.targets.version}"
            raise UpgradeRefusedError(text, reason="version")
        if not is_stored:
            self._check_expiry(new)
        self.snapshot = new

    def update_targets(self, data: bytes) -> None:
        """Take the targets document that the snapshot names (5.6)."""
        snapshot = self._need(self.snapshot, RoleName.SNAPSHOT)
        timestamp = self._need(self.timestamp, RoleName.TIMESTAMP)
        if snapshot.version != timestamp.snapshot.version:
            raise UpgradeRefusedError("targets: the trusted snapshot is not the newest", reason="order")
        self._check_expiry(snapshot)
        _check_bytes(data, snapshot.targets, RoleName.TARGETS)
        new = _read(data, RoleName.TARGETS, Targets)
        self._verify_role(new)
        _check_version(new, snapshot.targets)
        self._check_expiry(new)
        self.targets = new

    def target(self, name: str) -> Target:
        """What to download under a name."""
        targets = self._need(self.targets, RoleName.TARGETS)
        found = targets.targets.get(name)
        if found is None:
            raise UpgradeRefusedError(f"{name}: not among the targets", reason="missing")
        return found

    def is_timestamp_in_force(self) -> bool:
        """Whether the publisher was heard and what it said last has not expired."""
        return self.timestamp is not None and self.timestamp.expires_s > self._time_s

    def at(self, time_s: int) -> None:
        """Judge expiry at another time from now on."""
        self._time_s = time_s

    def _verify_role(self, document: Document) -> None:
        _verify(self.root.roles[document.role].check_signed, document)

    def _check_expiry(self, document: Document) -> None:
        if document.expires_s <= self._time_s:
            hours = (self._time_s - document.expires_s) // 3_600
            text = f"{document.role}: version {document.version} expired {hours} h ago"
            raise UpgradeRefusedError(text, reason="expired")

    @staticmethod
    def _need(document: _D | None, role: RoleName) -> _D:
        if document is None:
            raise UpgradeRefusedError(f"{role}: none is trusted yet", reason="order")
        return document


def _read(data: bytes, role: RoleName, kind: type[_D]) -> _D:
    try:
        found = read(data, role)
    except DecodeError as error:
        raise UpgradeRefusedError(str(error), reason="malformed") from error
    assert isinstance(found, kind), "read gives a document of the role that it was asked for"
    return found


def _verify(check: Callable[[Document], None], document: Document) -> None:
    try:
        check(document)
    except SignatureError as error:
        raise UpgradeRefusedError(f"{document.role} {document.version}: {error}", reason="signature") from error


def _check_bytes(data: bytes, named: FileInfo, role: RoleName) -> None:
    if named.length is not None and len(data) != named.length:
        raise UpgradeRefusedError(f"{role}: {len(data)} bytes, expected {named.length}", reason="length")
    if named.sha256 is not None and hashlib.sha256(data).digest() != named.sha256:
        raise UpgradeRefusedError(f"{role}: SHA-256 is not the one that was signed", reason="hash")


def _check_version(document: Document, named: FileInfo) -> None:
    if document.version != named.version:
        text = f"{document.role}: version {document.version}, expected {named.version}"
        raise UpgradeRefusedError(text, reason="version")
