"""Blobs and models that a miner holds, and how it gets those that it does not.

A blob is trusted by its digest alone, each time it is read: a rotten file is moved out of the way, said loudly, and
fetched from a peer like one that never arrived. A version of the model counts as held when its bytes are here and have
the certified root.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from coordinator.ledger.rows import ModelRow
from edge_sdk.errors import DecodeError, LedgerError, StoreError
from edge_sdk.protocol import model, wire
from edge_sdk.protocol.digest import sha256
from edge_sdk.protocol.ids import Digest, MinerId
from edge_sdk.protocol.messages import Genesis, ModelParams

if TYPE_CHECKING:
    from coordinator.ledger.blobs import BlobStore
    from coordinator.ledger.store import LedgerStore
    from coordinator.merging import MergedModel
    from coordinator.peers import Peers

log = logging.getLogger(__name__)

MODELS_IN_MEMORY: Final = 2
"""The one that serves and the one that is being merged."""


class Library:
    """Blob store, model versions and peers behind one door."""

    def __init__(self, genesis: Genesis, blobs: BlobStore, store: LedgerStore, peers: Peers) -> None:
        """Join the parts."""
        self._genesis = genesis
        self._blobs = blobs
        self._store = store
        self._peers = peers
        self._params: dict[int, ModelParams] = {}

    def add_genesis_model(self, blob: bytes) -> ModelParams:
        """Take in version 0 and return it.

        Raises:
            LedgerError: it is not the model that genesis names.
        """
        genesis = self._genesis
        if sha256(blob) != genesis.model_digest:
            raise LedgerError("the model of version 0 is not the one that genesis names")
        params = wire.from_bytes(ModelParams, blob)
        if model.model_root(params) != genesis.model_root:
            raise LedgerError("the root of version 0 is not the one that genesis names")
        self._keep(0, params, blob, genesis.model_root)
        return params

    def add_merged(self, version: int, merged: MergedModel) -> None:
        """Make a merged model durable, before its root is signed."""
        self._keep(version, merged.params, merged.blob, merged.root)

    def held(self, digest: Digest) -> bytes | None:
        """Return a blob of our own store, None where it is missing or rotten."""
        if not self._blobs.has(digest):
            return None
        try:
            blob = self._blobs.get(digest)
        except StoreError as error:
            log.error("blob %s cannot be read: %s", digest.hex(), error)  # noqa: TRY400 - one line is what helps
            return None
        if sha256(blob) == digest:
            return blob
        log.error("blob %s has other content than its name says: removed", digest.hex())
        self._blobs.delete(digest)
        return None

    def public(self, digest: Digest) -> bytes | None:
        """Return a blob that any device may have - a model or the artifact - and None for an update's."""
        is_public = digest == self._genesis.artifact_digest or any(
            row.blob_digest == digest for row in self._store.models()
        )
        return self.held(digest) if is_public else None

    async def blob(self, digest: Digest, size_bytes: int, preferred: Sequence[MinerId] = ()) -> bytes | None:
        """Return a blob from here or from a peer; a fetched one is kept. None when nobody gave it."""
        blob = self.held(digest)
        if blob is None:
            blob = await self._peers.fetch(digest, bytes_expected=size_bytes, preferred=preferred)
            if blob is not None:
                self._blobs.put(blob)
        return blob

    async def params(self, version: int, root: Digest) -> ModelParams | None:
        """Return a certified version of the model, fetched from a peer where it is missing; None when nobody has it."""
        known = self._params.get(version)
        if known is not None and self._is_held(version, root):
            return known
        row = self._store.model(version)
        if row is not None and row.model_root == root:
            blob = self.held(row.blob_digest)
            if blob is not None:
                params = wire.from_bytes(ModelParams, blob)
                self._remember(version, params)
                return params
        if row is not None:
            log.error("version %d of this miner is not the certified one: fetched from a peer", version)
            self._store.drop_model(version)
            self._params.pop(version, None)
        return await self._fetch(version, root)

    async def _fetch(self, version: int, root: Digest) -> ModelParams | None:
        for offer in await self._peers.model_offers(version):
            blob = await self._peers.fetch(offer.digest, bytes_expected=offer.size_bytes, preferred=(offer.miner_id,))
            if blob is None:
                continue
            try:
                params = wire.from_bytes(ModelParams, blob)
            except DecodeError as error:
                log.warning("%s offers no model as version %d: %s", offer.miner_id, version, error)
                continue
            if model.model_root(params) != root:
                log.warning("%s offers a model with another root as version %d", offer.miner_id, version)
                continue
            self._keep(version, params, blob, root)
            return params
        return None

    def _keep(self, version: int, params: ModelParams, blob: bytes, root: Digest) -> None:
        digest = self._blobs.put(blob)
        known = self._store.model(version)
        if known is not None and known.model_root != root:
            self._store.drop_model(version)
        self._store.put_model(ModelRow(version=version, model_root=root, blob_digest=digest, blob_bytes=len(blob)))
        self._remember(version, params)

    def _remember(self, version: int, params: ModelParams) -> None:
        self._params[version] = params
        for old in sorted(self._params)[:-MODELS_IN_MEMORY]:
            del self._params[old]

    def _is_held(self, version: int, root: Digest) -> bool:
        row = self._store.model(version)
        return row is not None and row.model_root == root
