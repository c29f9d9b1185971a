"""Quorum certificates: what lets a device trust a model and an outcome without trusting whoever sent it.

More than 2/3 of the voting power is the quorum: with at most 1/3 of it faulty, two quorums share an honest miner, and
an honest miner signs one statement per block.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edge_sdk.errors import InvalidCertificateError, SignatureError
from edge_sdk.protocol import merkle
from edge_sdk.protocol.cose import verify_vote
from edge_sdk.protocol.digest import block_hash, miner_set_hash
from edge_sdk.protocol.ids import MinerId
from edge_sdk.protocol.messages import (
    BlockEntry,
    Certificate,
    CertificateStatement,
    Genesis,
    MinerRecord,
    MinerSignature,
    Outcome,
)
from edge_sdk.protocol.wire import to_bytes


def quorum_power(miners: Sequence[MinerRecord]) -> int:
    """Smallest voting power that is more than 2/3 of the whole."""
    return 2 * sum(miner.power for miner in miners) // 3 + 1


def assemble(statement: CertificateStatement, votes: Mapping[MinerId, bytes]) -> Certificate:
    """Put the miners' signatures under their common statement, in the order of their names."""
    signatures = (MinerSignature(miner_id=miner, signature=votes[miner]) for miner in sorted(votes))
    return Certificate(statement=statement, signatures=tuple(signatures))


def verify_certificate(certificate: Certificate, genesis: Genesis) -> None:
    """Check a certificate against the trust anchor.

    Expiry and version floor need a clock and a memory, and are the caller's.

    Raises:
        InvalidCertificateError: ``reason`` is ``chain``, ``task``, ``version``, ``miner-set``, ``duplicate``,
        ``quorum`` or ``signature``.

    Cost: one signature check per signer, after everything cheaper.
    """
    statement = certificate.statement
    _check_statement(statement, genesis)
    miners = {miner.miner_id: miner for miner in genesis.miners}
    signers = [signature.miner_id for signature in certificate.signatures]
    if len(set(signers)) != len(signers):
        raise InvalidCertificateError("a miner signs twice", reason="duplicate")
    strangers = [name for name in signers if name not in miners]
    if strangers:
        raise InvalidCertificateError(f"{strangers[0]} is not a miner of this chain", reason="miner-set")
    power, needed = sum(miners[name].power for name in signers), quorum_power(genesis.miners)
    if power < needed:
        raise InvalidCertificateError(f"voting power {power}, needed {needed}", reason="quorum")
    statement_bytes = to_bytes(statement)
    for vote in certificate.signatures:
        try:
            verify_vote(
                statement_bytes,
                vote.signature,
                key=miners[vote.miner_id].key,
                miner_id=vote.miner_id,
                chain_id=genesis.chain_id,
            )
        except SignatureError as error:
            raise InvalidCertificateError(str(error), reason="signature") from error


def verify_outcome(outcome: Outcome, genesis: Genesis) -> BlockEntry:
    """Return what the quorum decided about an update; every step from the entry to the certificate is checked.

    Raises:
        InvalidCertificateError: as ``verify_certificate``, or ``reason`` is ``block`` (the header is not the certified
        one) or ``proof``.
    """
    verify_certificate(outcome.certificate, genesis)
    header = outcome.header
    if block_hash(header) != outcome.certificate.statement.block_hash:
        raise InvalidCertificateError("the header is not that of the certified block", reason="block")
    try:
        merkle.verify_inclusion(to_bytes(outcome.entry), outcome.proof, header.entries_root, size=header.entry_count)
    except SignatureError as error:
        raise InvalidCertificateError(str(error), reason="proof") from error
    return outcome.entry


def _check_statement(statement: CertificateStatement, genesis: Genesis) -> None:
    if statement.chain_id != genesis.chain_id:
        raise InvalidCertificateError(f"for chain {statement.chain_id}, this is {genesis.chain_id}", reason="chain")
    if statement.task != genesis.task:
        raise InvalidCertificateError(f"for task {statement.task}, this is {genesis.task}", reason="task")
    if statement.version > statement.block_index:
        raise InvalidCertificateError("more versions than blocks", reason="version")
    if statement.version == 0 and statement.model_root != genesis.model_root:
        raise InvalidCertificateError("another version 0 than that of the trust anchor", reason="version")
    if statement.miner_set_hash != miner_set_hash(genesis.miners):
        raise InvalidCertificateError("for another miner set", reason="miner-set")
