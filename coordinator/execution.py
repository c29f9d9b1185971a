"""The effect of one transaction on the state under change, or the reason why it has none.

A transaction *belongs* on the ledger when it is valid, or when it is evidence: two signed statements that cannot both
be honest. Everything else is refused with a reason, keeps the state as it is, and makes a proposal that carries it
invalid.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, TypeVar, assert_never

from coordinator import admission, rounds
from coordinator.events import DeviceEnrolled, DeviceRevoked, UpdateAccepted, UpdatePending, UpdateRefused
from coordinator.ledger import registry
from coordinator.ledger.block import candidates_digest
from coordinator.ledger.draft import Draft
from coordinator.ledger.registry import DeviceRecord
from coordinator.ledger.state import (
    EvidenceKind,
    MinerCommit,
    MinerScores,
    UpdateRecord,
    UpdateStatus,
    Vote,
)
from coordinator.rounds import Chain
from coordinator.transactions import Transaction, TransactionReader
from edge_sdk.errors import DecodeError
from edge_sdk.protocol.cose import SENDER_REGISTRAR
from edge_sdk.protocol.digest import commitment
from edge_sdk.protocol.ids import MinerId
from edge_sdk.protocol.limits import DEVICES_MAX
from edge_sdk.protocol.messages import (
    CertificateStatement,
    Commit,
    Enrol,
    Phase,
    Reason,
    Receipt,
    ReceiptStatus,
    Reveal,
    Revoke,
    Scores,
    Tick,
    UpdateManifest,
)

_PERCENT_MAX: Final = 100
_CLASS_ABSENT: Final = 255


@dataclass(frozen=True, slots=True)
class TxResult:
    """What became of a transaction; ``NONE`` is success."""

    code: Reason
    info: str = ""
    is_evidence: bool = False
    """Refused, and still kept on the ledger as proof against its author."""

    @property
    def belongs(self) -> bool:
        """Whether the transaction may stand on the ledger."""
        return self.code is Reason.NONE or self.is_evidence


ACCEPTED: Final = TxResult(Reason.NONE)


def execute(draft: Draft, chain: Chain, reader: TransactionReader, tx: bytes) -> TxResult:
    """Apply a transaction to the draft.

    Args:
        draft: Changed only if the result belongs on the ledger.
        chain: Rules and members.
        reader: Remembers what has been read and verified.
        tx: Untrusted bytes.
    """
    try:
        transaction = reader.read(tx)
    except DecodeError as error:
        return TxResult(error.reason or Reason.MALFORMED, str(error))
    match transaction.body:
        case UpdateManifest() as manifest:
            return _update(draft, chain, reader, tx, transaction, manifest)
        case Enrol() | Revoke() as message:
            if transaction.sender != SENDER_REGISTRAR or not reader.is_signed_by(
                tx, transaction, chain.genesis.registrar
            ):
                return TxResult(Reason.BAD_SIGNATURE, "not signed by the registrar")
            return _enrol(draft, message) if isinstance(message, Enrol) else _revoke(draft, message)
        case message:
            return _by_miner(draft, chain, reader, tx, transaction, message)


def _by_miner(
    draft: Draft,
    chain: Chain,
    reader: TransactionReader,
    tx: bytes,
    transaction: Transaction,
    message: Receipt | Tick | Commit | Reveal | CertificateStatement,
) -> TxResult:
    miner_id = MinerId(transaction.sender)
    if miner_id not in chain.miners:
        return TxResult(Reason.UNKNOWN_MINER, f"{miner_id} is not a miner of this chain")
    if not isinstance(message, CertificateStatement) and message.miner_id != miner_id:
        return TxResult(Reason.BAD_SIGNATURE, f"{miner_id} speaks for {message.miner_id}")
    if not reader.is_signed_by(tx, transaction, chain.miners.key(miner_id)):
        return TxResult(Reason.BAD_SIGNATURE, f"the signature of {miner_id} does not hold")
    match message:
        case Receipt():
            return _receipt(draft, chain, message)
        case Tick():
            return _tick(draft, message)
        case Commit():
            return _commit(draft, message)
        case Reveal():
            return _reveal(draft, chain, message)
        case CertificateStatement():
            return _vote(draft, chain, miner_id, message, transaction.envelope.signature)
        case _:
            assert_never(message)


def _update(
    draft: Draft,
    chain: Chain,
    reader: TransactionReader,
    tx: bytes,
    transaction: Transaction,
    manifest: UpdateManifest,
) -> TxResult:
    view = admission.AdmissionView(draft.core, draft.devices, draft.updates)
    reason = admission.sender_reason(view, chain.genesis, manifest, transaction.sender)
    if reason is not Reason.NONE:
        return TxResult(reason, f"device {manifest.device_id}")
    record = draft.devices[manifest.device_id]
    if not reader.is_signed_by(tx, transaction, record.key):
        return TxResult(Reason.BAD_SIGNATURE, f"the signature of {manifest.device_id} does not hold")
    digest = transaction.update_digest()
    reason = admission.ledger_reason(view, chain.genesis, manifest, digest)
    if reason is Reason.EQUIVOCATION and not record.equivocated:
        draft.devices[record.device_id] = replace(record, equivocated=True)
        draft.add_evidence(EvidenceKind.DEVICE_EQUIVOCATION, record.device_id, f"seq {manifest.seq}")
        draft.events.append(
            UpdateRefused(update_digest=digest, device_id=record.device_id, seq=manifest.seq, reason=reason)
        )
        return TxResult(reason, f"device {record.device_id}, seq {manifest.seq}", is_evidence=True)
    if reason is not Reason.NONE:
        return TxResult(reason, f"device {manifest.device_id}, seq {manifest.seq}")
    draft.devices[record.device_id] = registry.use_seq(record, manifest.seq, digest)
    draft.updates[digest] = UpdateRecord(
        update_digest=digest,
        device_id=manifest.device_id,
        seq=manifest.seq,
        base_version=manifest.base_version,
        blob_digest=manifest.blob_digest,
        blob_bytes=manifest.blob_bytes,
        order=draft.core.next_order,
        expiry_height=min(manifest.expiry_height, draft.height + chain.genesis.params.expiry_heights),
    )
    draft.core = replace(draft.core, next_order=draft.core.next_order + 1)
    draft.events.append(
        UpdateAccepted(
            update_digest=digest, device_id=manifest.device_id, seq=manifest.seq, blob_digest=manifest.blob_digest
        )
    )
    return ACCEPTED


def _receipt(draft: Draft, chain: Chain, receipt: Receipt) -> TxResult:
    record = draft.updates.get(receipt.update_digest)
    if record is None:
        return TxResult(Reason.UNKNOWN_UPDATE, f"no open update {receipt.update_digest.hex()[:16]}")
    if receipt.status is not ReceiptStatus.STORED or (receipt.device_id, receipt.seq) != (record.device_id, record.seq):
        return TxResult(Reason.WRONG_STATEMENT, "only a receipt `stored` for the same device and seq counts")
    if receipt.miner_id in record.stored_by:
        return TxResult(Reason.DUPLICATE)
    stored_by = (*record.stored_by, receipt.miner_id)
    status = record.status
    if status is UpdateStatus.WAITING and chain.miners.is_quorum(stored_by):
        status = UpdateStatus.PENDING
        draft.events.append(UpdatePending(update_digest=record.update_digest))
    draft.updates[record.update_digest] = replace(record, stored_by=stored_by, status=status)
    return ACCEPTED


def _tick(draft: Draft, tick: Tick) -> TxResult:
    core = draft.core
    phase, attempt, ticks = rounds.open_attempt(core)
    if (tick.block_index, tick.phase, tick.attempt) != (core.block_index, phase, attempt):
        return TxResult(Reason.WRONG_PHASE, f"block {core.block_index} is in {phase.name}, attempt {attempt}")
    if not rounds.is_tick_valid(core, draft.updates.values()):
        return TxResult(Reason.WRONG_PHASE, f"nothing waits for a tick in {phase.name}")
    if tick.miner_id in ticks:
        return TxResult(Reason.DUPLICATE)
    if core.round is None:
        draft.core = replace(core, collect_ticks=(*ticks, tick.miner_id))
    else:
        draft.core = replace(core, round=replace(core.round, ticks=(*ticks, tick.miner_id)))
    return ACCEPTED


def _commit(draft: Draft, commit: Commit) -> TxResult:
    round_ = draft.core.round
    if round_ is None or round_.block_index != commit.block_index:
        return TxResult(Reason.WRONG_PHASE, f"block {commit.block_index} is not being scored")
    known = _find(round_.commits, commit.miner_id)
    if known is not None and known.commitment == commit.commitment:
        return TxResult(Reason.DUPLICATE)
    if known is not None:
        return _lie(draft, EvidenceKind.COMMIT_EQUIVOCATION, Reason.EQUIVOCATION, commit.miner_id, commit.block_index)
    if round_.phase is not Phase.COMMIT:
        return TxResult(Reason.WRONG_PHASE, f"block {commit.block_index} is in {round_.phase.name}")
    entry = MinerCommit(miner_id=commit.miner_id, commitment=commit.commitment)
    draft.core = replace(draft.core, round=replace(round_, commits=(*round_.commits, entry)))
    return ACCEPTED


def _reveal(draft: Draft, chain: Chain, reveal: Reveal) -> TxResult:
    round_ = draft.core.round
    if round_ is None or round_.block_index != reveal.block_index or round_.phase is not Phase.REVEAL:
        return TxResult(Reason.WRONG_PHASE, f"block {reveal.block_index} is not being revealed")
    commit = _find(round_.commits, reveal.miner_id)
    if commit is None:
        return TxResult(Reason.WRONG_PHASE, f"{reveal.miner_id} did not commit to block {reveal.block_index}")
    if _find(round_.reveals, reveal.miner_id) is not None:
        return TxResult(Reason.DUPLICATE)
    expected = commitment(
        chain.genesis.chain_id,
        reveal.block_index,
        candidates_digest(round_.candidates),
        reveal.miner_id,
        reveal.scores,
        reveal.salt,
    )
    if commit.commitment != expected or not _is_well_formed(reveal.scores, len(round_.candidates)):
        return _lie(draft, EvidenceKind.BAD_REVEAL, Reason.BAD_REVEAL, reveal.miner_id, reveal.block_index)
    entry = MinerScores(miner_id=reveal.miner_id, scores=reveal.scores)
    draft.core = replace(draft.core, round=replace(round_, reveals=(*round_.reveals, entry)))
    return ACCEPTED


def _is_well_formed(scores: Scores, candidate_count: int) -> bool:
    """Check counts and the percentages of classes; ``wire`` has checked the ranges of the scores."""
    percents = (percent for row in scores.classes for percent in row)
    return len(scores.updates) == candidate_count and all(p <= _PERCENT_MAX or p == _CLASS_ABSENT for p in percents)


def _vote(draft: Draft, chain: Chain, miner_id: MinerId, statement: CertificateStatement, signature: bytes) -> TxResult:
    core = draft.core
    round_ = core.round
    if round_ is not None and round_.decision is not None and round_.block_index == statement.block_index:
        decision = round_.decision
        root_is_free = decision.plan is not None
        if statement != chain.statement(decision, statement.model_root if root_is_free else round_.base_root):
            return TxResult(Reason.WRONG_STATEMENT, f"another block {statement.block_index} than the decided one")
        known = _find(decision.votes, miner_id)
        if known is not None and known.model_root == statement.model_root:
            return TxResult(Reason.DUPLICATE)
        if known is not None:
            return _lie(draft, EvidenceKind.VOTE_EQUIVOCATION, Reason.EQUIVOCATION, miner_id, statement.block_index)
        vote = Vote(miner_id=miner_id, model_root=statement.model_root, signature=signature)
        voted = replace(decision, votes=(*decision.votes, vote))
        draft.core = replace(core, round=replace(round_, decision=voted))
        return ACCEPTED
    certified = core.last_statement
    if certified is None or certified.block_index != statement.block_index:
        return TxResult(Reason.WRONG_PHASE, f"no votes are wanted for block {statement.block_index}")
    if replace(statement, model_root=certified.model_root) != certified:
        return TxResult(Reason.WRONG_STATEMENT, f"another block {statement.block_index} than the certified one")
    if statement.model_root == certified.model_root:
        return TxResult(Reason.DUPLICATE, "already certified")
    return _lie(draft, EvidenceKind.ROOT_DISSENT, Reason.WRONG_STATEMENT, miner_id, statement.block_index)


def _enrol(draft: Draft, message: Enrol) -> TxResult:
    known = draft.devices.get(message.device_id)
    if known is None and len(draft.devices) >= DEVICES_MAX:
        return TxResult(Reason.CAPACITY, f"{DEVICES_MAX} devices are registered")
    record = registry.enrol(known, message)
    if not isinstance(record, DeviceRecord):
        return TxResult(record, f"device {message.device_id}, serial {message.serial}")
    draft.devices[message.device_id] = record
    draft.events.append(DeviceEnrolled(device_id=message.device_id, serial=message.serial))
    return ACCEPTED


def _revoke(draft: Draft, message: Revoke) -> TxResult:
    record = draft.devices.get(message.device_id)
    if record is None or record.serial != message.serial:
        return TxResult(Reason.UNKNOWN_DEVICE, f"no enrolment {message.serial} of {message.device_id}")
    if record.revoked:
        return TxResult(Reason.DUPLICATE)
    draft.devices[message.device_id] = replace(record, revoked=True)
    draft.events.append(DeviceRevoked(device_id=message.device_id, serial=message.serial))
    return ACCEPTED


def _lie(draft: Draft, kind: EvidenceKind, reason: Reason, miner_id: MinerId, block_index: int) -> TxResult:
    """Record a miner's lie once per block; repetitions are duplicates, so that they cannot fill the ledger."""
    detail = f"block {block_index}"
    if draft.has_evidence(kind, miner_id, detail):
        return TxResult(Reason.DUPLICATE, f"{kind} of {miner_id} is recorded")
    draft.add_evidence(kind, miner_id, detail)
    return TxResult(reason, f"{kind} of {miner_id} in {detail}", is_evidence=True)


_Statement = TypeVar("_Statement", MinerCommit, MinerScores, Vote)


def _find(statements: tuple[_Statement, ...], miner_id: MinerId) -> _Statement | None:
    return next((statement for statement in statements if statement.miner_id == miner_id), None)
