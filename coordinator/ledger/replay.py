"""The auditor: replays a miner's ledger from genesis and compares everything stored with what follows from the log.

Nothing is taken from the miner but bytes. Every height is executed again and its state root compared; every block,
entry, certificate, model row and snapshot record has to be what the replay derives; every merge is computed again
from the blobs of its updates to the certified model root; every blob has to hash to its name. The file is opened
read-only.

The miners of a run are replayed side by side, height by height: what they have in common - the bytes of a
transaction, the signature under them - is read and verified once, while it is at hand.

What cannot be derived is a promise, and is checked as such: a held update against its signed manifest and its blob,
the scores of an open block against the commitment on the log.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from coordinator.ledger.blobs import BlobStore
from coordinator.ledger.block import candidates_digest
from coordinator.ledger.derivation import Derivation, txs_digest
from coordinator.ledger.places import BLOBS_FOLDER, LEDGER_FILE, Places
from coordinator.ledger.rows import UploadRow
from coordinator.ledger.store import LedgerStore
from coordinator.transactions import TransactionReader
from edge_sdk.adapters.durable_files import TEMPORARY_SUFFIX
from edge_sdk.errors import StoreError
from edge_sdk.protocol import cose, wire
from edge_sdk.protocol.digest import commitment, sha256, update_digest
from edge_sdk.protocol.ids import ChainId, Digest, MinerId
from edge_sdk.protocol.limits import BLOB_BYTES_MAX
from edge_sdk.protocol.messages import Domain, UpdateManifest

__all__ = ["LEDGER_FILE", "MINERS_FOLDER", "MinerReport", "VerifyReport", "verify_directory"]

GENESIS_FILE: Final = "genesis.cbor"
ARTIFACT_FILE: Final = "artifact.flm"
MINERS_FOLDER: Final = "miners"

Progress = Callable[[MinerId, int, int], None]
"""Called with miner, height done and last height."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MinerReport:
    """What was verified of one miner."""

    miner_id: MinerId
    path: Path
    heights: int
    blocks: int
    version: int
    model_root: Digest
    state_root: Digest
    merges_recomputed: int
    merges_skipped: int
    """Of versions that this miner took from others, already certified: it never held the updates."""
    blobs: int
    open_updates: int


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport:
    """What was verified; returned only when everything holds."""

    miners: tuple[MinerReport, ...]


Link = tuple[int, str, Digest, Digest]
"""What miners must have in common at a height: time, proposer, transactions, state root."""


def verify_directory(path: Path, *, progress: Progress | None = None) -> VerifyReport:
    """Verify a miner's directory, or all miners of a kept run and that they agree.

    Args:
        path: A folder with ``ledger.sqlite3``, or one with ``miners/<id>/ledger.sqlite3``.
        progress: Called while the log is replayed.

    Raises:
        CorruptLedgerError: something does not hold; ``place`` and ``height`` say where.
        StoreError: there is no ledger here.
    """
    found = [(path, Places(""))] if (path / LEDGER_FILE).is_file() else list(_miner_folders(path))
    with ExitStack() as stack:
        shared = _Shared({}, {}, progress)
        auditors = [stack.enter_context(closing(_Auditor(folder, places, shared))) for folder, places in found]
        for height in range(1, max(auditor.last_height for auditor in auditors) + 1):
            shared.links.clear()
            for auditor in auditors:
                auditor.follow(height)
        return VerifyReport(miners=tuple(auditor.finish() for auditor in auditors))


def _miner_folders(path: Path) -> Iterator[tuple[Path, Places]]:
    folders = sorted(folder for folder in (path / MINERS_FOLDER).glob("*") if folder.is_dir())
    if not folders:
        raise StoreError(f"{path}: expected {LEDGER_FILE}, or {MINERS_FOLDER}/<id>/{LEDGER_FILE}")
    for folder in folders:
        places = Places(f"{MINERS_FOLDER}/{folder.name}/")
        if not (folder / LEDGER_FILE).is_file():
            raise places.corrupt(LEDGER_FILE, "missing")
        yield folder, places


@dataclass(frozen=True, slots=True)
class _Shared:
    """What the verification of several miners has in common."""

    links: dict[int, Link]
    """Of the height that is being followed, from the first miner that has it."""
    readers: dict[ChainId, TransactionReader]
    progress: Progress | None

    def reader(self, chain_id: ChainId) -> TransactionReader:
        """One for each chain: two ledgers of one folder may claim to be of different ones."""
        return self.readers.setdefault(chain_id, TransactionReader(chain_id))


class _Auditor:
    """Verification of one miner's directory."""

    def __init__(self, folder: Path, places: Places, shared: _Shared) -> None:
        """Check what needs no replay: blobs, pages, files."""
        self._folder = folder
        self._places = places
        self._shared = shared
        self._blobs = BlobStore(folder / BLOBS_FOLDER, read_only=True)
        self._blob_count = self._check_blobs()
        with self._places.table("meta"):
            self._store = LedgerStore.open(self._folder / LEDGER_FILE, read_only=True)
        try:
            with self._places.table("pages"):
                self._store.check_integrity()
            self._check_files(self._store)
            self._derived = self._begin(self._store)
            with self._places.table("meta"):
                self.last_height = self._store.height()
        except BaseException:
            self._store.close()
            raise

    def close(self) -> None:
        """Close the ledger."""
        self._store.close()

    def follow(self, height: int) -> None:
        """Execute one height of the log, if there is one."""
        if height > self.last_height:
            return
        places, shared = self._places, self._shared
        with places.table("heights", height):
            row = self._store.height_row(height)
            if row is None:
                raise places.corrupt_table("heights", "missing", height)
            self._derived.follow(row)
        link = (row.time_s, row.proposer, txs_digest(row), row.state_root)
        if shared.links.setdefault(height, link) != link:
            raise places.corrupt_table("heights", "differs from another miner's", height)
        if shared.progress is not None:
            shared.progress(self._store.miner_id, height, self.last_height)

    def finish(self) -> MinerReport:
        """Compare what is stored with what the whole log gave."""
        store, derived = self._store, self._derived
        self._check_derived(store, derived)
        self._check_models(store, derived)
        self._check_uploads(store, derived)
        self._check_own_scores(store, derived)
        if self._places.prefix and self._folder.name != store.miner_id:
            raise self._places.corrupt_table("meta", f"the ledger of {store.miner_id}")
        state = derived.app.state
        return MinerReport(
            miner_id=store.miner_id,
            path=self._folder,
            heights=state.height,
            blocks=len(derived.blocks),
            version=state.version,
            model_root=state.model_root,
            state_root=state.root,
            merges_recomputed=derived.merges_recomputed,
            merges_skipped=derived.merges_skipped,
            blobs=self._blob_count,
            open_updates=len(state.updates),
        )

    def _check_blobs(self) -> int:
        """Hash every blob, one at a time."""
        count = 0
        for path in self._blobs.files():
            if path.suffix == TEMPORARY_SUFFIX:
                continue  # left by a power cut; the miner removes it when it starts
            place = f"{BLOBS_FOLDER}/{path.parent.name}/{path.name}"
            if not path.is_file() or path.stat().st_size > BLOB_BYTES_MAX:
                raise self._places.corrupt(place, "not a blob: no file, or too long")
            if sha256(path.read_bytes()).hex() != path.name:
                raise self._places.corrupt(place, "the content does not hash to the name")
            count += 1
        return count

    def _check_files(self, store: LedgerStore) -> None:
        """Compare the files that repeat what genesis fixes."""
        if all(miner.miner_id != store.miner_id for miner in store.genesis.miners):
            raise self._places.corrupt_table("meta", f"{store.miner_id} is not a miner of this chain")
        genesis = self._folder / GENESIS_FILE
        if genesis.is_file() and genesis.read_bytes() != wire.to_bytes(store.genesis):
            raise self._places.corrupt(GENESIS_FILE, "not the genesis of the ledger")
        artifact = self._folder / ARTIFACT_FILE
        if artifact.is_file() and sha256(artifact.read_bytes()) != store.genesis.artifact_digest:
            raise self._places.corrupt(ARTIFACT_FILE, "not the artifact that genesis names")

    def _begin(self, store: LedgerStore) -> Derivation:
        """Stand at genesis."""

        def model_blob(version: int) -> Digest | None:
            row = store.model(version)
            return None if row is None else row.blob_digest

        with self._places.table("meta"):
            return Derivation(
                store.genesis,
                store.miner_id,
                blobs=self._blobs,
                model_blob=model_blob,
                places=self._places,
                reader=self._shared.reader(store.genesis.chain_id),
            )

    def _check_derived(self, store: LedgerStore, derived: Derivation) -> None:
        """Compare snapshot, blocks and entries, in both directions."""
        height = derived.app.state.height
        with self._places.table("snapshot", height):
            state = store.load_state()
        if state is not None and state != derived.app.state:
            raise self._places.corrupt_table("snapshot", "not the state of the replay", height)
        with self._places.table("blocks"):
            indices = store.block_indices()
        if indices != tuple(sorted(derived.blocks)):
            raise self._places.corrupt_table("blocks", "other blocks than those of the replay", height)
        for index, expected in derived.blocks.items():
            table, decided = f"blocks, index {index}", expected.header.decided_height
            with self._places.table(table, decided):
                if store.block(index) != expected:
                    raise self._places.corrupt_table(table, "not the block of the replay", decided)
        with self._places.table("entries"):
            places = store.entry_places()
        if places != tuple(sorted(derived.entry_places, key=lambda place: place[1:])):
            raise self._places.corrupt_table("entries", "other entries than those of the replay", height)

    def _check_models(self, store: LedgerStore, derived: Derivation) -> None:
        """Compare every version that the miner says it holds; it holds at least the newest one it signed."""
        state = derived.app.state
        with self._places.table("models"):
            held = {row.version: row for row in store.models()}
        for version, row in held.items():
            table = f"models, version {version}"
            if version not in derived.roots:
                if not _is_being_certified(derived, version):
                    raise self._places.corrupt_table(table, "no such version", state.height)
                continue
            if row.model_root != derived.roots[version]:
                raise self._places.corrupt_table(table, "not the certified root", state.height)
            if not self._blobs.has(row.blob_digest):
                raise self._places.corrupt(_blob_place(row.blob_digest), f"missing: model version {version}")
            with self._places.table(table):
                size_bytes = self._blobs.path(row.blob_digest).stat().st_size
                if size_bytes != row.blob_bytes or derived.held_params(version, row.blob_digest) is None:
                    raise self._places.corrupt_table(table, "the blob is not the certified model", state.height)
        newest = max(derived.signed_versions, default=None)
        if newest == state.version and newest not in held:
            raise self._places.corrupt_table("models", f"version {newest} is missing", state.height)

    def _check_uploads(self, store: LedgerStore, derived: Derivation) -> None:
        """Check held updates against their signed manifests, and every promise `stored` against its blob."""
        with self._places.table("uploads"):
            uploads = store.uploads()
        for upload in uploads:
            table = f"uploads, {upload.update_digest.hex()[:16]}"
            with self._places.table(table):
                self._check_upload(upload, derived, table)
        for update in derived.app.state.updates.values():
            if store.miner_id in update.stored_by and not self._blobs.has(update.blob_digest):
                what = f"missing: receipted update {update.update_digest.hex()[:16]}"
                raise self._places.corrupt(_blob_place(update.blob_digest), what)

    def _check_upload(self, upload: UploadRow, derived: Derivation, table: str) -> None:
        envelope = cose.peek(upload.envelope)
        manifest = wire.from_bytes(UpdateManifest, envelope.payload)
        claimed = (upload.device_id, upload.seq, upload.blob_digest, upload.blob_bytes)
        signed = (manifest.device_id, manifest.seq, manifest.blob_digest, manifest.blob_bytes)
        if claimed != signed or update_digest(upload.envelope) != upload.update_digest:
            raise self._places.corrupt_table(table, "not what its manifest says")
        record = derived.app.state.registry.get(manifest.device_id)
        on_ledger = upload.update_digest in derived.app.state.updates
        if record is not None and not on_ledger and not record.revoked:  # on the ledger, the log holds the signature
            cose.verify(envelope, key=record.key, domain=Domain.UPDATE, chain_id=derived.app.genesis.chain_id)
        if not self._blobs.has(upload.blob_digest):
            raise self._places.corrupt(_blob_place(upload.blob_digest), f"missing: {table}")
        if self._blobs.path(upload.blob_digest).stat().st_size != upload.blob_bytes:
            raise self._places.corrupt_table(table, "the blob has another length")

    def _check_own_scores(self, store: LedgerStore, derived: Derivation) -> None:
        """Check the scores of the open block against this miner's commitment on the log."""
        state = derived.app.state
        with self._places.table("own_scores"):
            indices = store.own_score_blocks()
        commits = () if state.round is None else state.round.commits
        if state.block_index not in indices and any(c.miner_id == store.miner_id for c in commits):
            table = f"own_scores, block {state.block_index}"
            raise self._places.corrupt_table(table, "missing behind the commitment on the log", state.height)
        for index in indices:
            table = f"own_scores, block {index}"
            round_ = state.round
            if index < state.block_index:
                continue  # scored too late for its block: never committed, never used
            if index != state.block_index or round_ is None:
                raise self._places.corrupt_table(table, "the block is not open", state.height)
            with self._places.table(table):
                own = store.own_scores(index)
            committed = [c.commitment for c in round_.commits if c.miner_id == store.miner_id]
            if own is None or not committed:
                continue
            expected = commitment(
                derived.app.genesis.chain_id,
                index,
                candidates_digest(round_.candidates),
                store.miner_id,
                own.scores,
                own.salt,
            )
            if committed != [expected]:
                raise self._places.corrupt_table(table, "does not open the commitment on the log", state.height)


def _is_being_certified(derived: Derivation, version: int) -> bool:
    """Whether the open block will give this version: a miner stores what it merged before it votes."""
    round_ = derived.app.state.round
    decision = None if round_ is None else round_.decision
    return decision is not None and decision.plan is not None and decision.plan.version == version


def _blob_place(digest: Digest) -> str:
    return f"{BLOBS_FOLDER}/sha256/{digest.hex()}"
