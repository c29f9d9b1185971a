"""Committed state as the HTTP interface asks for it: ``ChainView`` over ledger, library and blob store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from coordinator.application import Application
from coordinator.ledger.blobs import BlobStore
from coordinator.ledger.rows import BlockRow, ModelRow
from coordinator.ledger.state import UpdateStatus
from coordinator.ledger.store import LedgerStore
from coordinator.serving.view import DeviceView, Health, ModelView
from edge_sdk.errors import LedgerError
from edge_sdk.protocol import wire
from edge_sdk.protocol.cose import Signer, sign
from edge_sdk.protocol.ids import DeviceId, Digest
from edge_sdk.protocol.messages import Announcement, Certificate, Domain

SCAN_BLOCKS: Final = 256


class MinerView:
    """What one miner shows. Holds one certificate for each version, the newest that names it."""

    def __init__(
        self,
        application: Application,
        store: LedgerStore,
        blobs: BlobStore,
        *,
        signer: Signer,
        public_url: str,
        problem: Callable[[], str],
    ) -> None:
        """Read the certificates of the ledger; ``problem`` says why the miner cannot serve, empty when it can."""
        self._application = application
        self._store = store
        self._blobs = blobs
        self._signer = signer
        self._public_url = public_url
        self._problem = problem
        self._genesis_bytes = wire.to_bytes(application.genesis)
        self._certificates: dict[int, Certificate] = {}
        first = 1
        while rows := store.blocks(first, SCAN_BLOCKS):
            for row in rows:
                if row.certificate is not None:
                    self.certified(row.certificate)
            first = rows[-1].header.index + 1

    def certified(self, certificate: Certificate) -> None:
        """Take in a new certificate; a block that merged nothing renews that of its version."""
        self._certificates[certificate.statement.version] = certificate

    def announcement(self) -> Announcement:
        """Describe the newest certified model whose bytes are here."""
        return self._announcement(self._latest_row())

    def latest(self) -> ModelView:
        """Return the newest certified model whose bytes are here."""
        return self._model_view(self._latest_row())

    def model(self, version: int) -> ModelView | None:
        """Return one certified version."""
        row = self._store.model(version)
        return None if row is None or not self._is_certified(row) else self._model_view(row)

    def block(self, index: int) -> BlockRow | None:
        """Return one decided block."""
        return self._store.block(index)

    def blocks(self, first: int, limit: int) -> Sequence[BlockRow]:
        """Return decided blocks in rising order."""
        return self._store.blocks(first, limit)

    def outcome(self, update_digest: Digest) -> bytes | None:
        """Return the certified outcome of an update."""
        outcome = self._store.outcome(update_digest)
        return None if outcome is None else wire.to_bytes(outcome)

    def blob_path(self, digest: Digest) -> Path | None:
        """Return the file of a blob."""
        return self._blobs.path(digest) if self._blobs.has(digest) else None

    def genesis(self) -> bytes:
        """Return the bytes of the genesis."""
        return self._genesis_bytes

    def device(self, device_id: DeviceId) -> DeviceView | None:
        """Return a device's entry in the registry."""
        record = self._application.state.registry.get(device_id)
        if record is None:
            return None
        return DeviceView(
            device_id=device_id,
            key=record.key,
            serial=record.serial,
            revoked=record.revoked,
            equivocated=record.equivocated,
        )

    def equivocators(self) -> list[DeviceId]:
        """Devices in the registry against which there is evidence under their present key."""
        return [record.device_id for record in self._application.state.registry.values() if record.equivocated]

    def health(self) -> Health:
        """Return the state in numbers."""
        state, note = self._application.state, self._problem()
        return Health(
            ready=not note,
            note=note,
            miner_id=self._store.miner_id,
            chain_id=self._application.genesis.chain_id,
            height=state.height,
            version=state.version,
            block_index=state.block_index,
            pending=sum(update.status is UpdateStatus.PENDING for update in state.updates.values()),
        )

    def _latest_row(self) -> ModelRow:
        for row in reversed(self._store.models()):
            if self._is_certified(row):
                return row
        raise LedgerError("no certified model is here, not even that of genesis")

    def _is_certified(self, row: ModelRow) -> bool:
        """Whether a stored model is the certified one; a version that was merged and not yet certified is not shown."""
        if row.version == 0:
            return True
        certificate = self._certificates.get(row.version)
        return certificate is not None and certificate.statement.model_root == row.model_root

    def _announcement(self, row: ModelRow) -> Announcement:
        return Announcement(
            miner_id=self._store.miner_id,
            certificate=self._certificates.get(row.version),
            version=row.version,
            height=self._application.state.height,
            model_digest=row.blob_digest,
            model_bytes=row.blob_bytes,
            artifact_digest=self._application.genesis.artifact_digest,
            urls=(self._public_url,),
        )

    def _model_view(self, row: ModelRow) -> ModelView:
        certificate = self._certificates.get(row.version)
        announcement = sign(
            wire.to_bytes(self._announcement(row)),
            signer=self._signer,
            domain=Domain.ANNOUNCEMENT,
            chain_id=self._application.genesis.chain_id,
            sender=self._store.miner_id,
        )
        return ModelView(
            version=row.version,
            model_root=row.model_root,
            model_digest=row.blob_digest,
            model_bytes=row.blob_bytes,
            artifact_digest=self._application.genesis.artifact_digest,
            certificate=None if certificate is None else wire.to_bytes(certificate),
            announcement=announcement,
        )
