"""What each digest covers. All are SHA-256; a label keeps digests of different things apart."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from edge_sdk.protocol.codec import encode
from edge_sdk.protocol.cose import peek
from edge_sdk.protocol.ids import ChainId, Digest, MinerId
from edge_sdk.protocol.messages import BlockHeader, Domain, Genesis, MinerRecord, PublicKey, Scores
from edge_sdk.protocol.wire import to_bytes

_BLOCK_LABEL = "fl/block"
_MINER_SET_LABEL = "fl/miner-set"


def sha256(*parts: bytes) -> Digest:
    """SHA-256 of the parts one after the other."""
    state = hashlib.sha256()
    for part in parts:
        state.update(part)
    return Digest(state.digest())


def genesis_digest(genesis: Genesis) -> Digest:
    """Trust anchor of a chain: the SHA-256 of its genesis file, so that ``sha256sum`` shows it."""
    return sha256(to_bytes(genesis))


def key_fingerprint(key: PublicKey) -> str:
    """SHA-256 of a public key in hex: what people compare."""
    return sha256(key.data).hex()


def update_digest(envelope: bytes) -> Digest:
    """Name of an update: protected header and payload.

    Not the signature, because ES256 can sign the same content many times.

    Raises:
        DecodeError: not an envelope.
    """
    parts = peek(envelope)
    return sha256(encode([parts.protected, parts.payload]))


def miner_set_hash(miners: Sequence[MinerRecord]) -> Digest:
    """Digest of a miner set, whatever the order of its members."""
    ordered = sorted(miners, key=lambda miner: miner.miner_id)
    return sha256(encode([_MINER_SET_LABEL, *(to_bytes(miner) for miner in ordered)]))


def block_hash(header: BlockHeader) -> Digest:
    """Digest that certificates and the next header name a block by."""
    return sha256(encode([_BLOCK_LABEL, to_bytes(header)]))


def commitment(
    chain_id: ChainId, block_index: int, candidates_digest: Digest, miner_id: MinerId, scores: Scores, salt: bytes
) -> Digest:
    """Hash that a miner publishes before it reveals its scores.

    It names chain, block, candidates and miner, so that no miner can copy another's commitment and reveal, or reuse its
    own.
    """
    return sha256(encode([Domain.COMMIT, chain_id, block_index, candidates_digest, miner_id, to_bytes(scores), salt]))
