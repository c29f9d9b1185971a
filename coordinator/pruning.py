"""Blobs of old updates, removed where the operator asks for it.

By default every blob stays, since an audit from genesis recomputes every merge. With ``[retention] blob_blocks`` the
blobs of updates go once that many certified blocks have followed; models, log, blocks and certificates stay, so that
what was merged can still be proven, but no longer recomputed here.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from coordinator.transactions import TransactionReader
from edge_sdk.errors import DecodeError
from edge_sdk.protocol.ids import ChainId, Digest
from edge_sdk.protocol.messages import UpdateManifest

if TYPE_CHECKING:
    from coordinator.ledger.blobs import BlobStore
    from coordinator.ledger.store import LedgerStore

log = logging.getLogger(__name__)


class Pruner:
    """Keeps the blobs of the last blocks."""

    def __init__(self, store: LedgerStore, blobs: BlobStore, *, blocks_kept: int) -> None:
        """Read from the log which blob is which update's; ``blocks_kept`` 0 keeps everything and reads nothing."""
        self._store = store
        self._blobs = blobs
        self._blocks_kept = blocks_kept
        self._blob_of: dict[Digest, Digest] = {}
        self._next = 1
        if blocks_kept:
            self._read_log()

    def listed(self, update_digest: Digest, blob_digest: Digest) -> None:
        """Take in an update that the ledger has taken."""
        if self._blocks_kept:
            self._blob_of[update_digest] = blob_digest

    def certified(self, block_index: int) -> None:
        """Remove blobs that are old enough after this block, but none that an update still waits with."""
        if not self._blocks_kept:
            return
        last = block_index - self._blocks_kept
        rows = self._store.blocks(self._next, max(0, last - self._next + 1))
        held = {upload.blob_digest for upload in self._store.uploads()} if rows else set()
        for row in rows:
            if row.header.index > last:
                break
            digests = [self._blob_of.pop(entry.update_digest, None) for entry in row.entries]
            needed = held.union(self._blob_of.values())
            for digest in digests:
                if digest is not None and digest not in needed:
                    self._blobs.delete(digest)
            log.info("block %d: blobs of %d updates removed", row.header.index, len(digests))
            self._next = row.header.index + 1

    def _read_log(self) -> None:
        reader = TransactionReader(ChainId(self._store.genesis.chain_id))
        for height in self._store.heights():
            for tx in height.txs:
                try:
                    transaction = reader.read(tx)
                except DecodeError:
                    continue  # refused then, refused now
                if isinstance(transaction.body, UpdateManifest):
                    self._blob_of[transaction.update_digest()] = transaction.body.blob_digest
