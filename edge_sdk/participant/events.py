"""What can happen to a participant, and what it can ask for.

Every event carries ``now_ms``, the monotonic time at which the app saw it: the machine has no clock. Messages arrive
decoded and with a verified envelope; certificates and proofs are verified by the machine itself, because they are
what it decides by. The digest of an update names it everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias

from edge_sdk.protocol.ids import Digest
from edge_sdk.protocol.messages import Announcement, Outcome, Reason, Receipt, Resume, Verdict


class Mode(Enum):
    """What the resource governor allows."""

    TRAIN = "train"
    UPLOAD_ONLY = "upload-only"
    PAUSE = "pause"


@dataclass(frozen=True, slots=True)
class Model:
    """A model that passed its certificate and its self-test."""

    version: int
    root: Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedUpdate:
    """An update as the outbox keeps it over a restart."""

    digest: Digest
    seq: int
    base_version: int
    blob_bytes: int
    expiry_height: int
    age_ms: int
    stored_by: frozenset[str]
    refused_by: tuple[tuple[str, Reason], ...]
    is_of_old_key: bool = False
    """This device has another key since it signed the update: no miner that does not hold it will take it any more."""


# --- events ---


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """The process has started and read its disk; always the first event."""

    now_ms: int
    installed: Model | None
    version_floor: int
    """No older model is ever installed; -1 before the first."""
    last_trained: int
    """Base version of the newest update, -1 before the first."""
    next_seq: int
    updates: tuple[SavedUpdate, ...]
    job_base: int | None
    """Base version of a job with a checkpoint."""


@dataclass(frozen=True, slots=True)
class LinkUp:
    """A broker session stands."""

    now_ms: int


@dataclass(frozen=True, slots=True)
class LinkDown:
    """The broker session ended."""

    now_ms: int


@dataclass(frozen=True, slots=True)
class ModelAnnounced:
    """A miner offers a model. ``time_s`` is the calendar clock, which may be wrong."""

    now_ms: int
    time_s: int
    announcement: Announcement


@dataclass(frozen=True, slots=True)
class ModelFetched:
    """The blob of the offered model is in the inactive slot: its digest and its model root hold."""

    now_ms: int
    version: int


@dataclass(frozen=True, slots=True)
class ModelFailed:
    """A fetch, self-test or installation did not succeed; the current model stays."""

    now_ms: int
    version: int
    why: str


@dataclass(frozen=True, slots=True)
class ModelTested:
    """The fetched model gives finite, sensible answers on local samples."""

    now_ms: int
    version: int


@dataclass(frozen=True, slots=True)
class ModelInstalled:
    """The slot pointer names the new model, durably."""

    now_ms: int
    model: Model


@dataclass(frozen=True, slots=True)
class ModeChanged:
    """The governor allows something else."""

    now_ms: int
    mode: Mode


@dataclass(frozen=True, slots=True)
class TrainingEnded:
    """The local steps are done."""

    now_ms: int
    base_version: int


@dataclass(frozen=True, slots=True)
class TrainingFailed:
    """No update will come of this job."""

    now_ms: int
    base_version: int
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateMade:
    """Delta, residual, blob and signed manifest exist in memory."""

    now_ms: int
    digest: Digest
    seq: int
    base_version: int
    blob_bytes: int
    expiry_height: int


@dataclass(frozen=True, slots=True)
class UpdateStored:
    """Residual, ``seq`` and outbox row are one durable transaction."""

    now_ms: int
    digest: Digest


@dataclass(frozen=True, slots=True)
class StoreFailed:
    """The transaction did not happen (disk full); it can be tried again."""

    now_ms: int
    digest: Digest
    why: str


@dataclass(frozen=True, slots=True)
class ChunkSent:
    """The broker confirmed a chunk: room in the window, nothing more."""

    now_ms: int
    digest: Digest


@dataclass(frozen=True, slots=True)
class ReceiptArrived:
    """A miner's signed word on one of our updates."""

    now_ms: int
    receipt: Receipt


@dataclass(frozen=True, slots=True)
class ResumeArrived:
    """A miner asks for byte ranges."""

    now_ms: int
    resume: Resume


@dataclass(frozen=True, slots=True)
class OutcomeArrived:
    """The certified end of an update, from anywhere."""

    now_ms: int
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class UpdateSettled:
    """Outcome and residual are one durable transaction."""

    now_ms: int
    digest: Digest


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""

    now_ms: int


Event: TypeAlias = (
    Restored
    | LinkUp
    | LinkDown
    | ModelAnnounced
    | ModelFetched
    | ModelFailed
    | ModelTested
    | ModelInstalled
    | ModeChanged
    | TrainingEnded
    | TrainingFailed
    | UpdateMade
    | UpdateStored
    | StoreFailed
    | ChunkSent
    | ReceiptArrived
    | ResumeArrived
    | OutcomeArrived
    | UpdateSettled
    | Tick
)


# --- effects ---


@dataclass(frozen=True, slots=True)
class FetchModel:
    """Bring the blob into the inactive slot, check digest and root. Answer: ``ModelFetched`` or ``ModelFailed``."""

    announcement: Announcement
    model: Model


@dataclass(frozen=True, slots=True)
class SelfTest:
    """Run the fetched model on local samples. Answer: ``ModelTested`` or ``ModelFailed``."""

    version: int


@dataclass(frozen=True, slots=True)
class InstallModel:
    """Switch the slots. Answer: ``ModelInstalled`` or ``ModelFailed``."""

    model: Model


@dataclass(frozen=True, slots=True)
class TrainLocally:
    """Run a job, from its checkpoint if there is one. Answer: ``TrainingEnded`` or ``TrainingFailed``."""

    base_version: int
    is_resumed: bool


@dataclass(frozen=True, slots=True)
class PauseTraining:
    """Hold a running job after its current step."""


@dataclass(frozen=True, slots=True)
class ContinueTraining:
    """Let a held job go on."""


@dataclass(frozen=True, slots=True)
class MakeUpdate:
    """Turn the finished job into a signed update. Answer: ``UpdateMade`` or ``TrainingFailed``."""

    base_version: int
    seq: int
    expiry_height: int


@dataclass(frozen=True, slots=True)
class StoreInOutbox:
    """Store the update that was made. Answer: ``UpdateStored`` or ``StoreFailed``."""

    digest: Digest


@dataclass(frozen=True, slots=True)
class DropJob:
    """Forget the checkpoint of a job: its update is stored, or it is worth nothing any more."""

    base_version: int


@dataclass(frozen=True, slots=True)
class PublishManifest:
    """Publish the signed manifest."""

    digest: Digest


@dataclass(frozen=True, slots=True)
class PublishChunk:
    """Publish bytes ``offset`` .. ``offset + size`` of the blob. Answer: ``ChunkSent``."""

    digest: Digest
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class SaveReceipt:
    """Keep a receipt, so that a restart knows the quorum."""

    receipt: Receipt


@dataclass(frozen=True, slots=True, kw_only=True)
class Settle:
    """End an update: keep the outcome, drop the blob, and where ``returns_delta`` add it to the residual.

    One transaction. Answer: ``UpdateSettled``.
    """

    digest: Digest
    verdict: Verdict
    reason: Reason
    returns_delta: bool
    outcome: Outcome | None
    """None where a quorum of refusals or old age ended it."""


@dataclass(frozen=True, slots=True)
class AskOutcome:
    """Ask a miner what became of an update."""

    digest: Digest


@dataclass(frozen=True, slots=True)
class Report:
    """Something that an operator wants to know, counted by ``kind``."""

    kind: str
    text: str


Effect: TypeAlias = (
    FetchModel
    | SelfTest
    | InstallModel
    | TrainLocally
    | PauseTraining
    | ContinueTraining
    | MakeUpdate
    | StoreInOutbox
    | DropJob
    | PublishManifest
    | PublishChunk
    | SaveReceipt
    | Settle
    | AskOutcome
    | Report
)
