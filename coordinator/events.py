"""What the application tells its host after a height: facts, in the order in which they happened."""

from __future__ import annotations

from dataclasses import dataclass

from coordinator.ledger.state import Evidence
from edge_sdk.protocol.ids import DeviceId, Digest
from edge_sdk.protocol.messages import BlockEntry, BlockHeader, Certificate, CutCause, Phase, Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateAccepted:
    """A manifest is on the ledger."""

    update_digest: Digest
    device_id: DeviceId
    seq: int
    blob_digest: Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdatePending:
    """Miners with more than 2/3 of the power hold the blob: the update waits for a block."""

    update_digest: Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateRefused:
    """A block decided against an update."""

    update_digest: Digest
    device_id: DeviceId
    seq: int
    reason: Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockCut:
    """A block was cut; its candidates are to be scored."""

    block_index: int
    cause: CutCause
    candidate_count: int
    refused_count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseOpened:
    """The open block entered a phase."""

    block_index: int
    phase: Phase


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundExtended:
    """Too few acted before the ticks; the phase goes on."""

    block_index: int
    phase: Phase
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundVoided:
    """No quorum after all extensions: the candidates wait for another block."""

    block_index: int
    phase: Phase


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockDecided:
    """The verdict is on the ledger; the model root is to be certified."""

    header: BlockHeader
    entries: tuple[BlockEntry, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockCertified:
    """More than 2/3 of the power signed the block and the same model root."""

    certificate: Certificate
    header: BlockHeader
    entries: tuple[BlockEntry, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceEnrolled:
    """A device key counts from this height on."""

    device_id: DeviceId
    serial: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceRevoked:
    """A device no longer counts."""

    device_id: DeviceId
    serial: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EvidenceFound:
    """A lie or a failure, with its author."""

    evidence: Evidence


Event = (
    UpdateAccepted
    | UpdatePending
    | UpdateRefused
    | BlockCut
    | PhaseOpened
    | RoundExtended
    | RoundVoided
    | BlockDecided
    | BlockCertified
    | DeviceEnrolled
    | DeviceRevoked
    | EvidenceFound
)
