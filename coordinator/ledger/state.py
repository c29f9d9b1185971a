"""The state that all miners share: frozen values with canonical bytes, whose hash every miner compares at every height.

Three parts: the ``Core`` (versions, the round in progress, evidence), the registry of devices and the undecided
updates. The two tables keep their records' encodings, so that hashing a height costs what has changed, plus one
digest per record.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from functools import cached_property
from typing import Final, TypeVar

from coordinator.ledger import records
from coordinator.ledger.registry import DeviceRecord
from edge_sdk.errors import DecodeError
from edge_sdk.protocol import codec
from edge_sdk.protocol.digest import genesis_digest, sha256
from edge_sdk.protocol.ids import DeviceId, Digest, MinerId
from edge_sdk.protocol.limits import DEVICES_MAX, PENDING_UPDATES_MAX
from edge_sdk.protocol.messages import (
    BlockEntry,
    BlockHeader,
    CertificateStatement,
    CutCause,
    Genesis,
    Phase,
    Scores,
)

RECORD_BYTES_MAX: Final = 256 * 1024
"""Largest encoded record of a device or an update; a full window takes 3 kB."""
CORE_BYTES_MAX: Final = 16 * 1024 * 1024
_FRAME_BYTES: Final = 4
Key = TypeVar("Key", DeviceId, int)
RecordT = TypeVar("RecordT", DeviceRecord, "UpdateRecord")


class UpdateStatus(IntEnum):
    """Where an undecided update is."""

    WAITING = 1
    """The manifest is on the ledger; too few miners hold the blob."""
    PENDING = 2
    """Miners with more than 2/3 of the power hold the blob."""
    IN_BLOCK = 3


class EvidenceKind(StrEnum):
    """What was found. Only those marked *proof* are two signed statements that cannot both be honest."""

    DEVICE_EQUIVOCATION = "device-equivocation"  # proof: one seq, two digests
    COMMIT_EQUIVOCATION = "commit-equivocation"  # proof: two commitments for one block
    BAD_REVEAL = "bad-reveal"  # proof: scores that do not open the commitment
    VOTE_EQUIVOCATION = "vote-equivocation"  # proof: two model roots for one block
    ROOT_DISSENT = "root-dissent"  # proof: signed another root than the quorum
    RECEIPT_WITHOUT_BLOB = "receipt-without-blob"  # signed that it stores an update, then that it has none
    SCORE_OUTLIER = "score-outlier"  # contradicts the quorum's verdict by far
    WITHHELD = "withheld"  # committed and did not reveal
    ABSENT = "absent"  # did not commit; reported as an event only, since silence may be the network's


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """One finding about a device or a miner."""

    kind: EvidenceKind
    height: int
    subject: str
    detail: str


@dataclass(frozen=True, kw_only=True)
class UpdateRecord:
    """An undecided update; replaced, never changed."""

    update_digest: Digest
    device_id: DeviceId
    seq: int
    base_version: int
    blob_digest: Digest
    blob_bytes: int
    order: int
    """Rises with each admitted update: the oldest go into a block first."""
    expiry_height: int
    stored_by: tuple[MinerId, ...] = ()
    status: UpdateStatus = UpdateStatus.WAITING

    @cached_property
    def encoded(self) -> bytes:
        """Canonical bytes."""
        return records.to_bytes(self)

    @cached_property
    def digest(self) -> Digest:
        """SHA-256 of the canonical bytes."""
        return sha256(self.encoded)


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """An update that is being scored. ``weight`` is what it gets in the merge if it is accepted."""

    update_digest: Digest
    device_id: DeviceId
    seq: int
    base_version: int
    weight: int
    blob_digest: Digest
    blob_bytes: int
    stored_by: tuple[MinerId, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class MinerCommit:
    """One miner's commitment."""

    miner_id: MinerId
    commitment: Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class MinerScores:
    """One miner's revealed scores."""

    miner_id: MinerId
    scores: Scores


@dataclass(frozen=True, slots=True, kw_only=True)
class Vote:
    """One miner's signature over the statement with this root."""

    miner_id: MinerId
    model_root: Digest
    signature: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeEntry:
    """One accepted update."""

    update_digest: Digest
    weight: int
    blob_digest: Digest
    blob_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MergePlan:
    """Everything that a miner needs to compute the next model: no choice is left."""

    block_index: int
    base_version: int
    base_root: Digest
    entries: tuple[MergeEntry, ...]
    total_weight: int
    server_rate_q16: int
    version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """A block after its verdict, while votes for the root are collected. ``plan`` is None when nothing is merged."""

    header: BlockHeader
    entries: tuple[BlockEntry, ...]
    plan: MergePlan | None
    expiry_s: int
    votes: tuple[Vote, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """A block between its cut and its certificate."""

    block_index: int
    phase: Phase
    cause: CutCause
    cut_height: int
    base_version: int
    base_root: Digest
    refused: tuple[BlockEntry, ...]
    """Refused at the cut."""
    candidates: tuple[Candidate, ...]
    attempt: int = 0
    ticks: tuple[MinerId, ...] = ()
    commits: tuple[MinerCommit, ...] = ()
    reveals: tuple[MinerScores, ...] = ()
    decision: Decision | None = None


@dataclass(frozen=True, kw_only=True)
class Core:
    """The part of the state that has no table."""

    height: int
    time_s: int
    version: int
    model_roots: tuple[Digest, ...]
    """Roots of the versions that are not stale, the current one last."""
    block_index: int
    """Of the block that is collected or scored."""
    previous_hash: Digest
    """Hash of the last certified block; of genesis at first."""
    next_order: int
    collect_ticks: tuple[MinerId, ...] = ()
    round: Round | None = None
    last_statement: CertificateStatement | None = None
    evidence: tuple[Evidence, ...] = ()


@dataclass(frozen=True, kw_only=True)
class State:
    """The shared state after a height."""

    core: Core
    registry: Mapping[DeviceId, DeviceRecord] = field(default_factory=dict)
    """Sorted by device id."""
    updates: Mapping[Digest, UpdateRecord] = field(default_factory=dict)
    """Undecided ones, in the order of arrival."""

    @classmethod
    def initial(cls, genesis: Genesis) -> State:
        """Return the state before height 1."""
        core = Core(
            height=0,
            time_s=genesis.created_s,
            version=0,
            model_roots=(genesis.model_root,),
            block_index=1,
            previous_hash=genesis_digest(genesis),
            next_order=0,
        )
        return cls(core=core)

    @property
    def height(self) -> int:
        """Height of the ordered log."""
        return self.core.height

    @property
    def version(self) -> int:
        """Version of the certified global model."""
        return self.core.version

    @property
    def model_root(self) -> Digest:
        """Root of the certified global model."""
        return self.core.model_roots[-1]

    @property
    def round(self) -> Round | None:
        """The block that is being scored or certified."""
        return self.core.round

    @property
    def phase(self) -> Phase:
        """Phase of the open block."""
        return Phase.COLLECT if self.core.round is None else self.core.round.phase

    @property
    def block_index(self) -> int:
        """Index of the open block."""
        return self.core.block_index

    @property
    def evidence(self) -> tuple[Evidence, ...]:
        """Findings, oldest first, bounded."""
        return self.core.evidence

    @cached_property
    def root(self) -> Digest:
        """Hash of the whole state: what miners compare after every height."""
        devices = sha256(*(record.digest for record in self.registry.values()))
        updates = sha256(*(record.digest for record in self.updates.values()))
        return sha256(codec.encode([sha256(records.to_bytes(self.core)), devices, updates]))

    def to_bytes(self) -> bytes:
        """Encode the state: core, registry, updates, each record after its length."""
        head = codec.encode([len(self.registry), len(self.updates)])
        parts = [head, records.to_bytes(self.core)]
        parts += [record.encoded for record in self.registry.values()]
        parts += [record.encoded for record in self.updates.values()]
        return b"".join(len(part).to_bytes(_FRAME_BYTES) + part for part in parts)

    @classmethod
    def from_bytes(cls, data: bytes) -> State:
        """Decode a state.

        Raises:
            DecodeError: the bytes are not a state in its canonical form.
        """
        frames = _frames(data)
        if len(frames) < 2:
            raise DecodeError("a state has at least two parts")
        counts = records.unpack(tuple[int, int], codec.decode(frames[0], bytes_max=RECORD_BYTES_MAX))
        if min(counts) < 0 or sum(counts) != len(frames) - 2:
            raise DecodeError(f"a state with {counts} records has {len(frames)} parts")
        core = records.from_bytes(Core, frames[1], bytes_max=CORE_BYTES_MAX)
        return cls.assemble(core, frames[2 : 2 + counts[0]], frames[2 + counts[0] :])

    @classmethod
    def assemble(cls, core: Core, devices: Iterable[bytes], updates: Iterable[bytes]) -> State:
        """Build a state from encoded records in canonical order.

        Raises:
            DecodeError: a record does not decode, or the order is not canonical.
        """
        device_records = [_loaded(DeviceRecord, item) for item in devices]
        update_records = [_loaded(UpdateRecord, item) for item in updates]
        _check_rising([record.device_id for record in device_records])
        _check_rising([record.order for record in update_records])
        registry = {record.device_id: record for record in device_records}
        undecided = {record.update_digest: record for record in update_records}
        if len(undecided) != len(update_records) or not core.model_roots:
            raise DecodeError("a state with an update twice or without a model root")
        return cls(core=core, registry=registry, updates=undecided)


def _loaded(cls: type[RecordT], data: bytes) -> RecordT:
    """Decode a record and keep its bytes: the codec accepts one encoding of each value only."""
    record = records.from_bytes(cls, data, bytes_max=RECORD_BYTES_MAX)
    record.__dict__["encoded"] = data
    return record


def _frames(data: bytes) -> list[bytes]:
    frames: list[bytes] = []
    position = 0
    while position < len(data):
        start = position + _FRAME_BYTES
        position = start + int.from_bytes(data[position:start])
        if position > len(data) or len(frames) > DEVICES_MAX + PENDING_UPDATES_MAX + 2:
            raise DecodeError("a state is cut off or has too many parts")
        frames.append(data[start:position])
    return frames


def _check_rising(keys: Sequence[Key]) -> None:
    if list(keys) != sorted(set(keys)):
        raise DecodeError("the records of a state are not in canonical order")
