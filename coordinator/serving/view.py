"""The read side of a miner, as its HTTP interface needs it.

The miner implements ``ChainView`` over its ledger and blob store; tests implement it over a dictionary. Every method
answers at once from committed state: none waits, none mutates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from coordinator.ledger.rows import BlockRow
from edge_sdk.protocol.ids import ChainId, DeviceId, Digest, MinerId
from edge_sdk.protocol.messages import PublicKey


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelView:
    """One certified version of the global model, without its bytes."""

    version: int
    model_root: Digest
    model_digest: Digest
    model_bytes: int
    artifact_digest: Digest
    certificate: bytes | None
    """Wire bytes of the ``Certificate``; None for version 0, which the trust anchor itself fixes."""
    announcement: bytes
    """Signed envelope of the ``Announcement``, as it is retained on the broker."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceView:
    """What the ledger says of one device."""

    device_id: DeviceId
    key: PublicKey
    serial: int
    revoked: bool
    equivocated: bool = False
    """Signed two updates with one number under this key: two boards hold it, or one that lies."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """State of one miner in a few numbers. ``ready`` is False while it cannot serve its task; ``note`` says why."""

    ready: bool
    note: str
    miner_id: MinerId
    chain_id: ChainId
    height: int
    version: int
    block_index: int
    """Index of the block that is open now."""
    pending: int
    """Updates with a storage quorum that no block has taken yet."""


class ChainView(Protocol):
    """Read access to committed state."""

    def latest(self) -> ModelView:
        """Return the newest certified model."""

    def model(self, version: int) -> ModelView | None:
        """Return one certified version, or None where it does not exist."""

    def block(self, index: int) -> BlockRow | None:
        """Return one decided block; indices start at 1."""

    def blocks(self, first: int, limit: int) -> Sequence[BlockRow]:
        """Return up to ``limit`` decided blocks in rising order, from index ``first`` on."""

    def outcome(self, update_digest: Digest) -> bytes | None:
        """Return the wire bytes of the certified ``Outcome`` of an update, or None while there is none."""

    def blob_path(self, digest: Digest) -> Path | None:
        """Return the file of a blob whose name is its digest, or None where this miner does not hold it."""

    def genesis(self) -> bytes:
        """Return the wire bytes of the genesis."""

    def device(self, device_id: DeviceId) -> DeviceView | None:
        """Return a device's entry in the committed registry."""

    def health(self) -> Health:
        """Return the present state in numbers."""


class Submitted(Protocol):
    """Answer to a submitted transaction; ``coordinator.ordering.rpc.Submission`` is one."""

    @property
    def code(self) -> int:
        """A ``Reason``; 0, ``Reason.NONE``, when the transaction was taken."""

    @property
    def info(self) -> str:
        """Text for a log, safe to show."""


class Submit(Protocol):
    """Hand a signed transaction to the ordered log."""

    async def __call__(self, tx: bytes, /) -> Submitted:
        """Return the verdict of the first check.

        Raises:
            TransportError: the log cannot be reached now.
            RemoteProtocolError: its answer is none.
        """
