"""What a block commits to: candidates before the scores, entries and header after the verdict, a statement to sign."""

from __future__ import annotations

from collections.abc import Sequence

from coordinator.ledger.miner_set import MinerSet
from coordinator.ledger.state import Candidate, Decision
from edge_sdk.protocol import merkle
from edge_sdk.protocol.digest import block_hash, sha256
from edge_sdk.protocol.ids import Digest
from edge_sdk.protocol.limits import SCORE_UNAVAILABLE
from edge_sdk.protocol.messages import (
    BlockEntry,
    BlockHeader,
    Certificate,
    CertificateStatement,
    Genesis,
    Outcome,
    Reason,
    Verdict,
)
from edge_sdk.protocol.wire import to_bytes


def candidates_digest(candidates: Sequence[Candidate]) -> Digest:
    """Digest of the updates that are scored, in their order: a commitment names it."""
    return sha256(*(candidate.update_digest for candidate in candidates))


def entries_root(entries: Sequence[BlockEntry]) -> Digest:
    """Merkle root over the entries of a block."""
    return merkle.root([to_bytes(entry) for entry in entries])


def refused_entry(candidate: Candidate, reason: Reason, *, score: int = SCORE_UNAVAILABLE) -> BlockEntry:
    """Entry of an update that is not merged."""
    return BlockEntry(
        update_digest=candidate.update_digest,
        device_id=candidate.device_id,
        seq=candidate.seq,
        base_version=candidate.base_version,
        verdict=Verdict.REFUSED,
        reason=reason,
        score=score,
        weight=0,
    )


def merged_entry(candidate: Candidate, *, score: int) -> BlockEntry:
    """Entry of an update that is merged."""
    return BlockEntry(
        update_digest=candidate.update_digest,
        device_id=candidate.device_id,
        seq=candidate.seq,
        base_version=candidate.base_version,
        verdict=Verdict.MERGED,
        reason=Reason.NONE,
        score=score,
        weight=candidate.weight,
    )


def statement(genesis: Genesis, miners: MinerSet, decision: Decision, model_root: Digest) -> CertificateStatement:
    """Return what a miner signs for a decided block; only the model root was not fixed by the state."""
    header = decision.header
    return CertificateStatement(
        chain_id=genesis.chain_id,
        task=genesis.task,
        version=header.version,
        height=header.decided_height,
        block_index=header.index,
        block_hash=block_hash(header),
        model_root=model_root,
        miner_set_hash=miners.hash,
        expiry_s=decision.expiry_s,
    )


def outcome(header: BlockHeader, entries: Sequence[BlockEntry], certificate: Certificate, position: int) -> Outcome:
    """Certified outcome of the entry at ``position``."""
    leaves = [to_bytes(entry) for entry in entries]
    proof = merkle.inclusion_proof(leaves, position)
    return Outcome(entry=entries[position], proof=proof, header=header, certificate=certificate)
