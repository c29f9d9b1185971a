"""Transactions: signed envelopes, read and verified once per process.

A transaction comes by many times - check, proposal, vote on a proposal, execution - and a signature costs more than
all other rules together. So what has been read and which key verified it are kept, bounded, by the SHA-256 of the
bytes.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from edge_sdk.errors import DecodeError, SignatureError
from edge_sdk.protocol import cose, wire
from edge_sdk.protocol.codec import encode
from edge_sdk.protocol.digest import sha256
from edge_sdk.protocol.ids import ChainId, Digest
from edge_sdk.protocol.limits import HEIGHT_TXS_MAX, TX_BYTES_MAX, UPDATE_ENVELOPE_BYTES_MAX
from edge_sdk.protocol.messages import (
    CertificateStatement,
    Commit,
    Domain,
    Enrol,
    PublicKey,
    Reason,
    Receipt,
    Reveal,
    Revoke,
    Tick,
    UpdateManifest,
)

Body = UpdateManifest | Receipt | Tick | Commit | Reveal | CertificateStatement | Enrol | Revoke

_BODIES: Final[dict[Domain, type[Body]]] = {
    Domain.UPDATE: UpdateManifest,
    Domain.RECEIPT: Receipt,
    Domain.TICK: Tick,
    Domain.COMMIT: Commit,
    Domain.REVEAL: Reveal,
    Domain.CERTIFICATE: CertificateStatement,
    Domain.ENROL: Enrol,
    Domain.REVOKE: Revoke,
}
_CACHE_SIZE: Final = 2 * HEIGHT_TXS_MAX
_CACHE_BYTES_MAX: Final = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Transaction:
    """A well-formed transaction; its signature is another question."""

    envelope: cose.Envelope
    body: Body
    size_bytes: int

    @property
    def sender(self) -> str:
        """Who claims to have signed."""
        return self.envelope.sender

    def update_digest(self) -> Digest:
        """Digest of the update, when this is one: the protected header and the payload."""
        return sha256(encode([self.envelope.protected, self.envelope.payload]))


class TransactionReader:
    """Reads and verifies, remembering both within a bound.

    What is remembered holds for these bytes, and so for their domain, for this chain and for the key that was asked
    for: several replays of one chain may share a reader.
    """

    def __init__(self, chain_id: ChainId) -> None:
        self.chain_id = chain_id
        self._read: OrderedDict[Digest, Transaction] = OrderedDict()
        self._verified: dict[Digest, PublicKey] = {}
        self._bytes = 0

    def read(self, tx: bytes) -> Transaction:
        """Take a transaction apart.

        Raises:
            DecodeError: it is none; ``reason`` says why.
        """
        key = sha256(tx)
        known = self._read.get(key)
        if known is not None:
            self._read.move_to_end(key)
            return known
        transaction = _read(tx)
        self._read[key] = transaction
        self._bytes += transaction.size_bytes
        while len(self._read) > _CACHE_SIZE or self._bytes > _CACHE_BYTES_MAX:
            oldest, dropped = self._read.popitem(last=False)
            self._verified.pop(oldest, None)
            self._bytes -= dropped.size_bytes
        return transaction

    def is_signed_by(self, tx: bytes, transaction: Transaction, key: PublicKey) -> bool:
        """Whether the transaction carries a signature of this key for its domain and this chain."""
        name = sha256(tx)
        if self._verified.get(name) == key:
            return True
        envelope = transaction.envelope
        try:
            cose.verify(envelope, key=key, domain=envelope.domain, chain_id=self.chain_id)
        except SignatureError:
            return False
        if name in self._read:
            self._verified[name] = key
        return True


def _read(tx: bytes) -> Transaction:
    envelope = cose.peek(tx, bytes_max=TX_BYTES_MAX)
    body_class = _BODIES.get(envelope.domain)
    if body_class is None:
        raise DecodeError(f"{envelope.domain} is not a transaction", reason=Reason.MALFORMED)
    if body_class is UpdateManifest and len(tx) > UPDATE_ENVELOPE_BYTES_MAX:
        raise DecodeError(f"an update envelope of {len(tx)} bytes", reason=Reason.OVERSIZE)
    body = wire.from_bytes(body_class, envelope.payload)
    return Transaction(envelope=envelope, body=body, size_bytes=len(tx))
