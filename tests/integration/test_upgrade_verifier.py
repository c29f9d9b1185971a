"""The board's verifier and python-tuf's own client on the same repositories: honest changes and attacks.

Both see the same bytes through the same steps. Where one accepts and the other refuses, the case says so and why.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.exceptions import DownloadError, DownloadHTTPError, RepositoryError
from tuf.api.metadata import Metadata, Root
from tuf.ngclient import FetcherInterface, Updater

from coordinator.upgrades.keys import KeyRing
from coordinator.upgrades.repository import DAY_S, DEFAULT_DAYS, Repository, Times
from edge_sdk.adapters.http_files import HttpFiles
from edge_sdk.adapters.system_clock import SystemClock
from edge_sdk.errors import TransportError, UpgradeRefusedError
from edge_sdk.protocol.ids import check_digest
from edge_sdk.upgrade.metadata import RoleName
from edge_sdk.upgrade.mirror import Mirror
from tests.support.software import Publisher

NOW_S = SystemClock().time_s()
CONTENT = b"a wheel, say"
BASE = "http://repository.test"


class FolderFetcher(FetcherInterface):
    """python-tuf's network: a folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder

    def _fetch(self, url: str) -> Iterator[bytes]:
        path = self._folder / urlsplit(url).path.lstrip("/")
        if not path.exists():
            raise DownloadHTTPError("not found", 404)
        yield path.read_bytes()


class FolderHttp(HttpFiles):
    """The board's network: the same folder, or another one for some URLs."""

    def __init__(self, folder: Path, others: Mapping[str, Path] | None = None) -> None:
        super().__init__()
        self._folder = folder
        self._others = others or {}

    def get(self, url: str, name: str, *, bytes_max: int, timeout_s: float) -> bytes | None:
        path = self._others.get(url, self._folder) / name.lstrip("/")
        if not path.exists():
            return None
        data = path.read_bytes()
        if len(data) > bytes_max:
            raise TransportError("too long")
        return data


class Site:
    """A repository with one target, and both clients of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.publisher = Publisher(folder, now_s=NOW_S)
        self.path = self.publisher.path
        self.anchor = self.publisher.anchor.read_bytes()
        self.put(CONTENT)

    @property
    def repository(self) -> Repository:
        return Repository(self.path)

    @property
    def ring(self) -> KeyRing:
        return KeyRing([self.publisher.keys])

    def put(self, content: bytes, *, times: Times | None = None) -> None:
        """Publish a target of this content."""
        from tuf.api.metadata import TargetFile

        info = TargetFile.from_data("wheel.whl", content, ["sha256"])
        (self.path / "targets" / f"{info.hashes['sha256']}.wheel.whl").write_bytes(content)
        self.repository.publish(self.ring, times or self.publisher.times, {"wheel.whl": info})

    def ours(self, *, time_s: int = NOW_S) -> bytes | None:
        """What a board gets under the name; None where it refuses."""
        mirror = Mirror(self.folder / "board", self.anchor, FolderHttp(self.path), [BASE], time_s=time_s)
        try:
            mirror.refresh()
        except (UpgradeRefusedError, TransportError):
            return None
        target = mirror.trusted.target("wheel.whl")
        assert check_digest(target.sha256) == target.sha256
        return (self.path / target.path).read_bytes()

    def theirs(self) -> bytes | None:
        """What python-tuf's client gets."""
        folder = self.folder / "ngclient"
        (folder / "targets").mkdir(parents=True, exist_ok=True)
        try:
            updater = Updater(
                str(folder),
                f"{BASE}/metadata/",
                str(folder / "targets"),
                f"{BASE}/targets/",
                FolderFetcher(self.path),
                bootstrap=self.anchor if not any(folder.glob("root*.json")) else None,
            )
            updater.refresh()
            info = updater.get_targetinfo("wheel.whl")
            assert info is not None
            return Path(updater.download_target(info)).read_bytes()
        except (RepositoryError, DownloadError):
            return None

    def edit(self, name: str, change: Callable[[dict[str, Any]], None], *, role: RoleName | None = None) -> None:
        """Change a document as somebody who holds the keys of ``role`` could, or nobody's."""
        path = self.path / "metadata" / name
        document = json.loads(path.read_bytes())
        change(document["signed"])
        data = json.dumps(document).encode()
        if role is not None:
            metadata: Metadata[Any] = Metadata.from_bytes(data)
            held = self.repository.root.signed.roles[role]
            metadata.signatures.clear()
            for signer in self.ring.signers(role, held.keyids, held.threshold):
                metadata.sign(signer, append=True)
            data = metadata.to_bytes()
        path.write_bytes(data)

    def newest(self, role: RoleName) -> str:
        names = [path.name for path in (self.path / "metadata").glob(f"*.{role}.json")]
        return max(names, key=lambda name: int(name.partition(".")[0]))


def honest_update(site: Site) -> None:
    site.put(b"newer")


def honest_rotation_of_timestamp(site: Site) -> None:
    site.repository.rotate(site.ring, site.publisher.times, RoleName.TIMESTAMP)


def honest_rotation_of_every_key(site: Site) -> None:
    for role in RoleName:
        site.repository.rotate(site.ring, site.publisher.times, role)
    site.put(b"after")


def fast_forward_recovered(site: Site) -> None:
    """A stolen timestamp key was used to raise the version; the operator rotates and starts low again."""
    site.repository.rotate(site.ring, site.publisher.times, RoleName.TIMESTAMP)
    site.edit("timestamp.json", lambda signed: signed.update(version=1), role=RoleName.TIMESTAMP)


def expired_timestamp(site: Site) -> None:
    site.put(b"newer", times=Times(NOW_S - 8 * DAY_S))


def expired_snapshot(site: Site) -> None:
    site.put(b"newer", times=Times(NOW_S - 15 * DAY_S, DEFAULT_DAYS | {RoleName.TIMESTAMP: 90}))


def expired_targets(site: Site) -> None:
    days = dict.fromkeys(RoleName, 365) | {RoleName.TARGETS: 1}
    site.put(b"newer", times=Times(NOW_S - 2 * DAY_S, days))


def expired_root(site: Site) -> None:
    site.repository.rotate(site.ring, Times(NOW_S - 400 * DAY_S), RoleName.ROOT)


def root_without_the_old_keys(site: Site) -> None:
    """A new root that only its own new keys have signed."""
    root: Metadata[Root] = deepcopy(site.repository.root)
    signer = CryptoSigner.generate_ed25519()
    for key_id in tuple(root.signed.roles["root"].keyids):
        root.signed.revoke_key(key_id, "root")
    root.signed.add_key(signer.public_key, "root")
    root.signed.roles["root"].threshold = 1
    root.signed.version += 1
    root.signatures.clear()
    root.sign(signer)
    root.to_file(str(site.path / "metadata" / f"{root.signed.version}.root.json"))


def root_below_its_threshold(site: Site) -> None:
    """One of two keys of root is stolen."""
    root: Metadata[Root] = deepcopy(site.repository.root)
    root.signed.version += 1
    root.signatures.clear()
    root.sign(site.ring.signers("root", root.signed.roles["root"].keyids, 2)[0])
    root.to_file(str(site.path / "metadata" / f"{root.signed.version}.root.json"))


def root_that_skips_a_version(site: Site) -> None:
    site.repository.rotate(site.ring, site.publisher.times, RoleName.ROOT)
    site.edit("2.root.json", lambda signed: signed.update(version=3), role=RoleName.ROOT)


def forged_timestamp(site: Site) -> None:
    site.edit("timestamp.json", lambda signed: signed.update(version=99))


def timestamp_signed_by_snapshot(site: Site) -> None:
    site.edit("timestamp.json", lambda signed: signed.update(version=99), role=None)
    path = site.path / "metadata" / "timestamp.json"
    metadata: Metadata[Any] = Metadata.from_bytes(path.read_bytes())
    metadata.signatures.clear()
    metadata.sign(site.ring.signers("snapshot", site.repository.root.signed.roles["snapshot"].keyids, 1)[0])
    path.write_bytes(metadata.to_bytes())


def timestamp_rolled_back(site: Site) -> None:
    """The server shows what it showed before; both clients have seen more."""
    old = (site.path / "metadata" / "timestamp.json").read_bytes()
    site.put(b"newer")
    assert site.ours() == site.theirs() == b"newer"
    (site.path / "metadata" / "timestamp.json").write_bytes(old)


def snapshot_rolled_back(site: Site) -> None:
    """A stolen timestamp key names the snapshot of last week."""
    old = json.loads((site.path / "metadata" / "timestamp.json").read_bytes())["signed"]["meta"]
    site.put(b"newer")
    assert site.ours() == site.theirs() == b"newer"
    change = {"meta": old, "version": 50}
    site.edit("timestamp.json", lambda signed: signed.update(change), role=RoleName.TIMESTAMP)


def targets_rolled_back(site: Site) -> None:
    """Stolen timestamp and snapshot keys name the targets of last week."""
    old = json.loads((site.path / "metadata" / site.newest(RoleName.SNAPSHOT)).read_bytes())["signed"]["meta"]
    site.put(b"newer")
    assert site.ours() == site.theirs() == b"newer"
    name = site.newest(RoleName.SNAPSHOT)
    version = int(name.partition(".")[0]) + 1
    (site.path / "metadata" / f"{version}.snapshot.json").write_bytes((site.path / "metadata" / name).read_bytes())
    change = {"meta": old, "version": version}
    site.edit(f"{version}.snapshot.json", lambda signed: signed.update(change), role=RoleName.SNAPSHOT)
    meta = {"snapshot.json": {"version": version}}
    site.edit("timestamp.json", lambda signed: signed.update(meta=meta, version=60), role=RoleName.TIMESTAMP)


def snapshot_of_another_hash(site: Site) -> None:
    site.put(b"newer")
    site.edit(site.newest(RoleName.SNAPSHOT), lambda signed: signed.update(extra=1), role=RoleName.SNAPSHOT)


def targets_of_another_hash(site: Site) -> None:
    site.put(b"newer")
    site.edit(site.newest(RoleName.TARGETS), lambda signed: signed.update(extra=1), role=RoleName.TARGETS)


def mixed_snapshot(site: Site) -> None:
    """The server keeps the snapshot back: mix and match."""
    site.put(b"newer")
    (site.path / "metadata" / site.newest(RoleName.SNAPSHOT)).unlink()


def endless_timestamp(site: Site) -> None:
    (site.path / "metadata" / "timestamp.json").write_bytes(b" " * 10_000_000)


def no_json(site: Site) -> None:
    (site.path / "metadata" / "timestamp.json").write_bytes(b"[" * 10_000)


class Case(NamedTuple):
    change: Callable[[Site], None]
    result: bytes | None


CASES = (
    Case(honest_update, b"newer"),
    Case(honest_rotation_of_timestamp, CONTENT),
    Case(honest_rotation_of_every_key, b"after"),
    Case(fast_forward_recovered, CONTENT),
    *(
        Case(change, None)
        for change in (
            expired_timestamp,
            expired_snapshot,
            expired_targets,
            expired_root,
            root_without_the_old_keys,
            root_below_its_threshold,
            root_that_skips_a_version,
            forged_timestamp,
            timestamp_signed_by_snapshot,
            timestamp_rolled_back,
            snapshot_rolled_back,
            targets_rolled_back,
            snapshot_of_another_hash,
            targets_of_another_hash,
            mixed_snapshot,
            endless_timestamp,
            no_json,
        )
    ),
)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


@pytest.mark.parametrize("is_known", [False, True], ids=["new board", "board that knows the repository"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.change.__name__)
def test_both_clients_agree(site: Site, case: Case, *, is_known: bool) -> None:
    if is_known:
        assert site.ours() == site.theirs() == CONTENT
    case.change(site)
    assert (site.ours(), site.theirs()) == (case.result, case.result)


def test_one_key_under_two_ids_counts_once(site: Site) -> None:
    """Stricter than python-tuf: a threshold of two means two keys, whatever they are called."""

    def twin(signed: dict[str, Any]) -> None:
        key_ids = signed["roles"]["timestamp"]["keyids"]
        signed["keys"]["f" * 64] = signed["keys"][key_ids[0]]
        signed["roles"]["timestamp"] = {"keyids": [key_ids[0], "f" * 64], "threshold": 2}
        signed["version"] += 1

    site.repository.rotate(site.ring, site.publisher.times, RoleName.ROOT)
    (site.path / "metadata" / "3.root.json").write_bytes((site.path / "metadata" / "2.root.json").read_bytes())
    site.edit("3.root.json", twin, role=RoleName.ROOT)
    path = site.path / "metadata" / "timestamp.json"
    document = json.loads(path.read_bytes())
    document["signatures"].append(document["signatures"][0] | {"keyid": "f" * 64})
    path.write_bytes(json.dumps(document).encode())
    assert site.theirs() == CONTENT
    assert site.ours() is None


def test_clock_before_the_newest_signature_is_refused(site: Site) -> None:
    """python-tuf would see nothing wrong: nothing has expired yet. A board's clock may just never have been set."""
    assert site.ours(time_s=NOW_S - 400) == CONTENT
    assert site.ours(time_s=NOW_S - 30 * DAY_S) is None
    assert site.ours() == CONTENT


def test_publisher_whose_clock_ran_ahead_is_heard_again(site: Site) -> None:
    """What it signed then is refused, and its next document replaces it; no key has to be rotated for that."""
    assert site.ours() == CONTENT
    site.put(b"from the future", times=Times(NOW_S + 300 * DAY_S))
    assert site.ours() is None
    site.put(b"set right")
    assert site.ours(time_s=NOW_S - 30 * DAY_S) is None
    assert site.ours() == b"set right"


OTHER = "http://other.test"


def board_of_two(site: Site, urls: list[str], other: Path) -> Mirror:
    """The same board, which asks two servers; the other one shows another folder."""
    return Mirror(site.folder / "board", site.anchor, FolderHttp(site.path, {OTHER: other}), urls, time_s=NOW_S)


@pytest.mark.parametrize("urls", [[OTHER, BASE], [BASE, OTHER]])
def test_server_that_stands_still_does_not_hide_a_release(site: Site, tmp_path: Path, urls: list[str]) -> None:
    """All that it shows is in force for days to come; python-tuf knows one server only."""
    shutil.copytree(site.path, tmp_path / "still")
    site.put(b"newer")
    mirror = board_of_two(site, urls, tmp_path / "still")
    mirror.refresh()
    assert mirror.trusted.target("wheel.whl").length == len(b"newer")
    mirror.refresh()
    assert mirror.trusted.target("wheel.whl").length == len(b"newer")


def test_half_of_something_newer_ends_what_was_whole(site: Site, tmp_path: Path) -> None:
    """The second server shows the newer timestamp and keeps the rest back: the older state is no answer any more."""
    other = tmp_path / "half"
    shutil.copytree(site.path, tmp_path / "former")
    site.put(b"newer")
    shutil.copytree(site.path, other)
    (other / "metadata" / site.newest(RoleName.SNAPSHOT)).unlink()
    shutil.rmtree(site.path)
    (tmp_path / "former").rename(site.path)
    mirror = board_of_two(site, [BASE, OTHER], other)
    with pytest.raises(TransportError, match=OTHER):
        mirror.refresh()
    assert mirror.trusted.targets is None


def test_two_timestamps_of_one_version_are_refused(site: Site) -> None:
    """Stricter than python-tuf, which keeps the first one silently."""
    assert site.ours() == CONTENT
    site.edit("timestamp.json", lambda signed: signed.update(extra="fork"), role=RoleName.TIMESTAMP)
    assert site.ours() is None


def test_versions_survive_a_restart(site: Site) -> None:
    """The floors are files: another process refuses what this one has left behind."""
    timestamp_rolled_back(site)
    assert site.ours() is None
    assert site.ours() is None
