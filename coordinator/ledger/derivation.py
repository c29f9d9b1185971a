"""What follows from a log: state, blocks, entries, certified model roots, and the merges computed again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from coordinator.aggregation.merge import merge
from coordinator.application import Application, Finalized
from coordinator.events import BlockCertified, BlockDecided
from coordinator.ledger import rows
from coordinator.ledger.blobs import BlobStore
from coordinator.ledger.places import BLOBS_FOLDER, Places
from coordinator.ledger.rows import BlockRow, HeightRow
from coordinator.ledger.state import MergePlan
from coordinator.transactions import TransactionReader
from edge_sdk.protocol import wire
from edge_sdk.protocol.certificate import verify_certificate
from edge_sdk.protocol.digest import sha256
from edge_sdk.protocol.ids import Digest, MinerId
from edge_sdk.protocol.messages import Genesis, ModelParams, UpdatePayload
from edge_sdk.protocol.model import model_root

RETENTION: Final = "[retention] blob_blocks of its miner"
"""A setting that trades this audit for space: the missing blob is named, and not passed over."""

ModelBlob = Callable[[int], Digest | None]
"""Digest of the blob with a version's bytes, where the miner says that it holds it."""


class Derivation:
    """Replays heights one after the other; nothing of the miner but its log and its blobs is used."""

    def __init__(
        self,
        genesis: Genesis,
        miner_id: MinerId,
        *,
        blobs: BlobStore,
        model_blob: ModelBlob,
        places: Places,
        reader: TransactionReader,
    ) -> None:
        self.app = Application(genesis, reader=reader)
        self.blocks: dict[int, BlockRow] = {}
        self.entry_places: list[tuple[Digest, int, int]] = []
        self.roots: dict[int, Digest] = {0: genesis.model_root}
        """Certified model root of each version."""
        self.signed_versions: set[int] = set()
        """Versions whose certificate carries this miner's signature: it has merged them."""
        self.merges_recomputed = 0
        self.merges_skipped = 0
        self._miner_id = miner_id
        self._blobs = blobs
        self._model_blob = model_blob
        self._places = places
        self._link = rows.first_link(genesis, miner_id)
        self._params = self._held_model(0)

    def follow(self, row: HeightRow) -> Finalized:
        """Execute one height of the log.

        Raises:
            CorruptLedgerError: the row, or something it certifies, does not hold.
        """
        txs = rows.pack_txs(row.txs)
        link = rows.chain_hash(
            self._link, height=row.height, time_s=row.time_s, proposer=row.proposer, txs=txs, state_root=row.state_root
        )
        if row.chain_hash != link:
            raise self._places.corrupt_table("heights", "the chain hash does not hold", row.height)
        self._link = link
        finalized = self.app.finalize(row.height, row.time_s, row.txs)
        for position, result in enumerate(finalized.results):
            if not result.belongs:
                what = f"transaction {position} is refused: {result.code.name} {result.info}"
                raise self._places.corrupt_table("heights", what, row.height)
        if finalized.state_root != row.state_root:
            raise self._places.corrupt_table("heights", "the state root is not that of the replay", row.height)
        for event in finalized.events:
            if isinstance(event, BlockDecided):
                index = event.header.index
                self.blocks[index] = BlockRow(header=event.header, entries=event.entries, certificate=None)
                self.entry_places += [(e.update_digest, index, place) for place, e in enumerate(event.entries)]
            elif isinstance(event, BlockCertified):
                self._certified(event, row.height)
        self.app.commit(finalized)
        return finalized

    def held_params(self, version: int, blob_digest: Digest) -> ModelParams | None:
        """Return a certified version from its blob; None where the blob does not hold that model."""
        params = wire.from_bytes(ModelParams, self._blobs.get(blob_digest))
        return params if model_root(params) == self.roots.get(version) else None

    def _certified(self, event: BlockCertified, height: int) -> None:
        index = event.header.index
        self.blocks[index] = BlockRow(header=event.header, entries=event.entries, certificate=event.certificate)
        with self._places.table(f"blocks, index {index}", height):
            verify_certificate(event.certificate, self.app.genesis)
        round_ = self.app.state.round
        assert round_ is not None  # a certificate ends the round that the state before it holds
        assert round_.decision is not None
        plan = round_.decision.plan
        if plan is not None:
            self.roots[plan.version] = event.certificate.statement.model_root
            if self._miner_id in (signature.miner_id for signature in event.certificate.signatures):
                self.signed_versions.add(plan.version)
            self._recompute(plan, height)

    def _recompute(self, plan: MergePlan, height: int) -> None:
        """Merge again; only what this miner took from others, already certified, is not."""
        missing = [entry.blob_digest for entry in plan.entries if not self._blobs.has(entry.blob_digest)]
        if self._params is None or missing:
            if self._params is not None and plan.version in self.signed_versions:
                place = f"{BLOBS_FOLDER}/sha256/{missing[0].hex()}"
                what = f"missing, perhaps by {RETENTION}; without it version {plan.version} cannot be merged again"
                raise self._places.corrupt(place, what, height)
            self.merges_skipped += 1
            self._params = self._held_model(plan.version)
            return
        with self._places.table(f"blocks, index {plan.block_index}", height):
            updates = [
                (entry.weight, wire.from_bytes(UpdatePayload, self._blobs.get(entry.blob_digest)))
                for entry in plan.entries
            ]
            carried = self.app.genesis.params.carried
            self._params = merge(self._params, updates, plan.total_weight, plan.server_rate_q16, carried)
        if model_root(self._params) != self.roots[plan.version]:
            table = f"blocks, index {plan.block_index}"
            raise self._places.corrupt_table(table, "the merge does not give the certified model root", height)
        self.merges_recomputed += 1

    def _held_model(self, version: int) -> ModelParams | None:
        digest = self._model_blob(version)
        if digest is None or not self._blobs.has(digest):
            return None
        with self._places.table(f"models, version {version}"):
            return self.held_params(version, digest)


def txs_digest(row: HeightRow) -> Digest:
    """Digest of a height's transactions, to compare miners."""
    return sha256(rows.pack_txs(row.txs))
