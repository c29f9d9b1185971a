"""A miner that keeps the blobs of its last blocks only: what goes, what stays, and what an audit says of it then."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from coordinator.application import Application
from coordinator.cli import main
from coordinator.events import BlockCertified
from coordinator.ledger.blobs import BlobStore
from coordinator.ledger.replay import verify_directory
from coordinator.ledger.rows import BlockRow, UploadRow
from coordinator.ledger.store import LedgerStore
from coordinator.pruning import Pruner
from edge_sdk.errors import CorruptLedgerError
from edge_sdk.protocol import cose, wire
from edge_sdk.protocol.digest import sha256, update_digest
from edge_sdk.protocol.ids import DeviceId, Digest, MinerId
from edge_sdk.protocol.messages import UpdateManifest, Verdict
from tests.support.chain import CREATED_S, Names, toy_payload
from tests.support.chain_world import World

MINER = MinerId("miner-1")
VERSIONS = 5


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A kept run of four miners and some blocks, on a faultless network."""
    root = tmp_path_factory.mktemp("kept")
    world = World(Names(), seed=5, devices=("dev-a", "dev-b", "dev-c"), folder=root, drop=0.0)
    while world.miners[0].app.state.version < VERSIONS:
        world.step()
    world.close()
    return root


class Site:
    """Ledger and blobs of one miner of a copied run."""

    def __init__(self, root: Path) -> None:
        self._is_closed = False
        self.root = root
        self.folder = root / "miners" / MINER
        self.blobs = BlobStore(self.folder / "blobs")
        self.store = LedgerStore.open(self.folder / "ledger.sqlite3", genesis=Names().genesis, miner_id=MINER)
        self.blocks = self.store.blocks()
        self.models = {row.blob_digest for row in self.store.models()}
        manifests = [
            (update_digest(tx), wire.from_bytes(UpdateManifest, cose.peek(tx).payload))
            for row in self.store.heights()
            for tx in row.txs
            if cose.peek(tx).domain.endswith("update")
        ]
        self.blob_of = {digest: manifest.blob_digest for digest, manifest in manifests}

    def close(self) -> None:
        if not self._is_closed:
            self.store.close()
            self._is_closed = True

    @property
    def last(self) -> int:
        return self.blocks[-1].header.index

    def here(self) -> set[Digest]:
        return {Digest(bytes.fromhex(path.name)) for path in self.blobs.files()}

    def blobs_of(self, wanted: Callable[[BlockRow], bool]) -> set[Digest]:
        return {self.blob_of[entry.update_digest] for row in self.blocks if wanted(row) for entry in row.entries}

    def fed(self, *, blocks_kept: int) -> Pruner:
        """Return a pruner that has seen the run as it happened, not from the log."""
        pruner = Pruner(self.store, self.blobs, blocks_kept=blocks_kept)
        for digest, blob in self.blob_of.items():
            pruner.listed(digest, blob)
        return pruner


@pytest.fixture
def site(kept: Path, tmp_path: Path) -> Iterator[Site]:
    site = Site(Path(shutil.copytree(kept, tmp_path / "run")))
    yield site
    site.close()


@pytest.mark.parametrize("blocks_kept", [1, 2])
def test_blobs_of_the_last_blocks_and_every_model_stay(site: Site, blocks_kept: int) -> None:
    before, oldest_kept = site.here(), site.last - blocks_kept + 1
    assert site.blobs_of(lambda _: True) <= before
    site.fed(blocks_kept=blocks_kept).certified(site.last)
    gone = site.blobs_of(lambda row: row.header.index < oldest_kept)
    assert gone
    assert site.here() == before - gone
    assert site.blobs_of(lambda row: row.header.index >= oldest_kept) | site.models <= site.here()


def test_blobs_go_one_block_at_a_time(site: Site) -> None:
    pruner, seen = site.fed(blocks_kept=2), []
    for row in site.blocks:
        pruner.certified(row.header.index)
        seen.append(len(site.here()))
    assert seen[0] == seen[1] > seen[2] > seen[-1]
    assert seen == sorted(seen, reverse=True)


def test_a_restarted_miner_prunes_from_its_log(site: Site) -> None:
    site.fed(blocks_kept=3).certified(site.last)
    after_first = site.here()
    Pruner(site.store, site.blobs, blocks_kept=2).certified(site.last)
    assert site.here() < after_first
    assert site.here() == after_first - site.blobs_of(lambda row: row.header.index <= site.last - 2)


def test_nothing_goes_by_default(site: Site) -> None:
    before = site.here()
    site.fed(blocks_kept=0).certified(site.last)
    assert site.here() == before


def test_a_blob_that_another_update_waits_with_stays(site: Site) -> None:
    """Two updates may have the same bytes; the second one's promise holds, on the ledger or not yet on it."""
    listed, held, *_ = sorted(site.blobs_of(lambda row: row.header.index == 1))
    pruner = site.fed(blocks_kept=1)
    pruner.listed(Digest(b"\1" * 32), listed)
    site.store.put_upload(
        UploadRow(
            update_digest=Digest(b"\2" * 32),
            device_id=DeviceId("dev-a"),
            seq=99,
            envelope=b"",
            blob_digest=held,
            blob_bytes=1,
            received_s=CREATED_S,
        )
    )
    pruner.certified(site.last)
    assert {listed, held} <= site.here()
    assert site.here() & site.blobs_of(lambda row: row.header.index < site.last) == {listed, held}


def test_an_open_update_keeps_its_blob(site: Site) -> None:
    blob = wire.to_bytes(toy_payload(77))
    site.blobs.put(blob)
    pruner = site.fed(blocks_kept=1)
    pruner.listed(Digest(b"\3" * 32), sha256(blob))
    pruner.certified(site.last)
    assert sha256(blob) in site.here()


def first_merge(site: Site) -> tuple[str, int]:
    """The first blob that an audit needs on its way from genesis, and the height at which its block is certified."""
    application = Application(Names().genesis)
    for row in site.store.heights():
        finalized = application.finalize(row.height, row.time_s, row.txs)
        for event in finalized.events:
            if isinstance(event, BlockCertified):
                merged = [entry.update_digest for entry in event.entries if entry.verdict is Verdict.MERGED]
                if merged:
                    return site.blob_of[merged[0]].hex(), row.height
        application.commit(finalized)
    raise AssertionError("nothing was merged")


def test_an_audit_names_the_first_blob_that_is_gone(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    blob, height = first_merge(site)
    site.fed(blocks_kept=2).certified(site.last)
    site.close()
    place = f"blobs/sha256/{blob}"
    with pytest.raises(
        CorruptLedgerError, match=r"missing, perhaps by \[retention\] blob_blocks of its miner"
    ) as caught:
        verify_directory(site.folder)
    assert (caught.value.place, caught.value.height) == (place, height)
    with pytest.raises(CorruptLedgerError) as caught:
        verify_directory(site.root)
    assert caught.value.place == f"miners/{MINER}/{place}"
    capsys.readouterr()  # what the pruner logged
    assert main(["ledger", "verify", str(site.root)]) == 1
    printed = capsys.readouterr().err
    assert printed.count(place) == 1
    assert f"miners/{MINER}/{place}, height {height}: missing" in printed
    assert "Traceback" not in printed


def test_what_was_pruned_is_still_proven(site: Site) -> None:
    """Log, certificates and models of a pruned miner are whole; the other miners' merges are computed again."""
    site.fed(blocks_kept=2).certified(site.last)
    assert all(row.certificate is not None for row in site.store.blocks()[:-1])
    assert [row.version for row in site.store.models()][: VERSIONS + 1] == list(range(VERSIONS + 1))
    site.close()
    for other in ("miner-0", "miner-2", "miner-3"):
        (report,) = verify_directory(site.root / "miners" / other).miners
        assert report.merges_recomputed == VERSIONS
