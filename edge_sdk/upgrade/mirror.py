"""A board's copy of a software repository: metadata that it trusts, and the files that it has brought so far.

::

    state_dir/metadata/ANCHOR/{root,timestamp,snapshot,targets}.json     accepted bytes; versions in them are floors
    state_dir/downloads/SHA256                                          whole or partial; checked before every use
    state_dir/wheels/NAME                     of the image, if its first boot left them; looked at before the network

ANCHOR is the digest of the root of the image: a board that is given another trust anchor starts anew.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from edge_sdk.adapters import failpoints
from edge_sdk.adapters.durable_files import make_private_directory, read_file, sync_directory, sync_file, write_file
from edge_sdk.adapters.http_files import HttpFiles
from edge_sdk.errors import CorruptStoreError, TransportError, UpgradeRefusedError
from edge_sdk.protocol.ids import check_digest
from edge_sdk.upgrade.metadata import BYTES_MAX, RoleName, Target
from edge_sdk.upgrade.trusted import ROOTS_PER_RUN_MAX, Trusted

log: Final = logging.getLogger(__name__)

ANSWER_S_MAX: Final = 60.0
"""For one document of metadata, on a bad link."""
CLOCK_SKEW_S: Final = 600
"""A board's clock may stand so far before the publisher's."""
DOWNLOAD_BYTES_MAX: Final = 1024 * 1024 * 1024
FREE_BYTES_MIN: Final = 8 * 1024 * 1024
"""A download that broke off on a disk with less is given up: the room is the device's first."""


class Mirror:
    """See the module."""

    def __init__(self, state_dir: Path, anchor: bytes, http: HttpFiles, urls: Sequence[str], *, time_s: int) -> None:
        """Load what is trusted.

        Args:
            state_dir: Private folder.
            anchor: Bytes of the first root.
            http: Client.
            urls: Base URLs of servers with the same repository.
            time_s: Calendar time.

        Raises:
            UpgradeRefusedError: the anchor is no root.
            CorruptStoreError: stored metadata is damaged.
        """
        self._metadata_dir = state_dir / "metadata" / hashlib.sha256(anchor).hexdigest()[:16]
        self._downloads_dir = state_dir / "downloads"
        self._image_dir = state_dir / "wheels"
        for folder in (self._metadata_dir, self._downloads_dir):
            make_private_directory(folder)
        self._http = http
        self._urls = tuple(urls)
        self._time_s = time_s
        self._anchor = anchor
        self.trusted = self._load()

    def refresh(self) -> None:
        """Bring and verify the newest metadata that any of the servers has.

        All of them are asked: one that keeps a release back, with what was true yesterday, is overruled by the next.

        Raises:
            UpgradeRefusedError: a server answered with metadata that does not hold, and no other one did better.
            TransportError: no server answered.
        """
        refused: UpgradeRefusedError | None = None
        failures, is_whole = [], False
        for url in self._urls:
            try:
                self._refresh_from(url)
            except TransportError as error:
                failures.append(f"{url}: {error}")
            except UpgradeRefusedError as error:
                log.warning("%s: %s", url, error)
                refused = error
            else:
                is_whole = True
                continue
            # It may have shown a part of something newer; what was whole before is the past then.
            stored = self._load()
            if not is_whole or _newest(stored) != _newest(self.trusted):
                self.trusted, is_whole = stored, False
        if is_whole:
            return
        if refused is not None:
            raise refused
        raise TransportError("; ".join(failures))

    def fetch(self, target: Target, *, timeout_s: float) -> Path:
        """Bring a target; what is there of it already is kept.

        Raises:
            TransportError: no server had it, or not in time; the next call goes on where this one stopped.
        """
        path = self.path(target)
        digest = check_digest(target.sha256)
        self._copy_from_image(target, path)
        try:
            self._http.fetch(
                self._urls, f"/{target.path}", digest, target.length, path, bytes_max=target.length, timeout_s=timeout_s
            )
        except TransportError:
            if shutil.disk_usage(self._downloads_dir).free < FREE_BYTES_MIN:
                path.unlink(missing_ok=True)
            raise
        sync_file(path)
        sync_directory(self._downloads_dir)
        failpoints.hit("upgrade.after_fetch")
        return path

    def _copy_from_image(self, target: Target, path: Path) -> None:
        """Take a wheel that came with the card, by its name; whether it is the right one shows in its digest."""
        source = self._image_dir / target.name
        try:
            if not path.exists() and source.stat().st_size == target.length:
                shutil.copyfile(source, path)
        except OSError as error:
            log.debug("%s is not at hand: %s", source, error)

    def path(self, target: Target) -> Path:
        """Where a target's bytes are, as far as they are here."""
        return self._downloads_dir / target.sha256.hex()

    def missing_bytes(self, targets: Sequence[Target]) -> int:
        """What is still to be brought.

        Raises:
            UpgradeRefusedError: more than any release has.
        """
        if sum(target.length for target in targets) > DOWNLOAD_BYTES_MAX:
            raise UpgradeRefusedError(f"more than {DOWNLOAD_BYTES_MAX} bytes to download", reason="length")
        have = [self.path(target).stat().st_size if self.path(target).exists() else 0 for target in targets]
        return sum(max(0, target.length - size) for target, size in zip(targets, have, strict=True))

    def keep_only(self, targets: Sequence[Target]) -> None:
        """Remove downloads that no longer belong to anything."""
        wanted = {self.path(target) for target in targets}
        for path in self._downloads_dir.iterdir():
            if path not in wanted:
                path.unlink()

    def _load(self) -> Trusted:
        """Believe again what was believed before; keys that root has withdrawn since take their documents along."""
        stored = self._stored(RoleName.ROOT)
        trusted = Trusted(self._anchor if stored is None else stored, time_s=self._time_s)
        steps: tuple[tuple[RoleName, Callable[[bytes], None]], ...] = (
            (RoleName.TIMESTAMP, lambda data: trusted.update_timestamp(data, is_stored=True)),
            (RoleName.SNAPSHOT, lambda data: trusted.update_snapshot(data, is_stored=True)),
        )
        for role, take in steps:
            data = self._stored(role)
            if data is None:
                break
            try:
                take(data)
            except UpgradeRefusedError as error:
                if error.reason == "malformed":
                    raise CorruptStoreError(f"{self._metadata_dir / role}.json: {error}") from error
                log.info("stored %s is not believed any more: %s", role, error)
                break
        return trusted

    def _refresh_from(self, url: str) -> None:
        trusted = self._renewed_root(url)
        self._check_clock(trusted.root.created_s)
        self._take(trusted.update_timestamp, RoleName.TIMESTAMP, self._get(url, "timestamp.json", RoleName.TIMESTAMP))
        timestamp = trusted.timestamp
        assert timestamp is not None, "just taken"
        # Not that of the stored ones before: a publisher whose clock ran ahead once could never be heard again.
        self._check_clock(timestamp.created_s)
        version = timestamp.snapshot.version
        self._take_or_get(trusted.update_snapshot, RoleName.SNAPSHOT, url, f"{version}.snapshot.json")
        snapshot = trusted.snapshot
        assert snapshot is not None, "just taken"
        version = snapshot.targets.version
        self._take_or_get(trusted.update_targets, RoleName.TARGETS, url, f"{version}.targets.json")
        self._check_clock(trusted.created_s)
        self.trusted = trusted

    def _renewed_root(self, url: str) -> Trusted:
        """Walk the chain of roots to its end, then believe again what the last root still lets us believe."""
        stored = self._stored(RoleName.ROOT)
        chain = Trusted(self._anchor if stored is None else stored, time_s=self._time_s)
        for _ in range(ROOTS_PER_RUN_MAX):
            data = self._http.get(
                url,
                f"/metadata/{chain.root.version + 1}.root.json",
                bytes_max=BYTES_MAX[RoleName.ROOT],
                timeout_s=ANSWER_S_MAX,
            )
            if data is None:
                break
            self._take(chain.update_root, RoleName.ROOT, data)
        return self._load()

    def _take_or_get(self, take: Callable[[bytes], None], role: RoleName, url: str, name: str) -> None:
        """Take the stored document if it is the one that is asked for, else bring it."""
        stored = self._stored(role)
        if stored is not None:
            try:
                take(stored)
            except UpgradeRefusedError:
                log.debug("stored %s is another one", role)
            else:
                return
        self._take(take, role, self._get(url, name, role))

    def _take(self, take: Callable[[bytes], None], role: RoleName, data: bytes) -> None:
        """Verify, and keep what holds."""
        take(data)
        if self._stored(role) != data:
            write_file(self._metadata_dir / f"{role}.json", data)
            failpoints.hit("upgrade.after_document")

    def _get(self, url: str, name: str, role: RoleName) -> bytes:
        data = self._http.get(url, f"/metadata/{name}", bytes_max=BYTES_MAX[role], timeout_s=ANSWER_S_MAX)
        if data is None:
            raise TransportError(f"no metadata/{name}")
        return data

    def _stored(self, role: RoleName) -> bytes | None:
        return read_file(self._metadata_dir / f"{role}.json", bytes_max=BYTES_MAX[role])

    def _check_clock(self, created_s: int) -> None:
        """A clock that stands before the newest signature was never set: it cannot say what has expired."""
        if self._time_s < created_s - CLOCK_SKEW_S:
            days = (created_s - self._time_s) // 86_400
            text = f"clock: {days} days before the newest signed document; set it (timedatectl set-ntp true)"
            raise UpgradeRefusedError(text, reason="clock")


def _newest(trusted: Trusted) -> tuple[int, int | None]:
    """Versions by which a newer state of a repository is told."""
    return trusted.root.version, None if trusted.timestamp is None else trusted.timestamp.version
