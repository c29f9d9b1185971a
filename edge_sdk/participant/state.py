"""State of a participant and the rules it plays by."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

from edge_sdk.participant.events import Mode, Model
from edge_sdk.protocol.certificate import quorum_power
from edge_sdk.protocol.digest import sha256
from edge_sdk.protocol.ids import DeviceId, Digest
from edge_sdk.protocol.limits import CHUNK_DATA_BYTES_MAX, OUTBOX_AGE_S_MAX, OUTBOX_BYTES_MAX
from edge_sdk.protocol.messages import Announcement, Genesis, Reason

Ranges = tuple[tuple[int, int], ...]
"""Half-open byte ranges, ascending, disjoint, not touching."""

BACKOFF_EXPONENT_MAX: Final = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What does not change while the process runs. Times in milliseconds."""

    genesis: Genesis
    device_id: DeviceId
    in_flight_max: int = 2
    """Updates without an outcome at which no further job starts."""
    chunk_bytes: int = CHUNK_DATA_BYTES_MAX
    chunk_window: int = 8
    """Chunks that wait for the broker's confirmation, per update."""
    resend_first_ms: int = 4_000
    resend_max_ms: int = 300_000
    resume_memory_ms: int = 1_000
    """A range sent this short ago is not sent again: all miners read the same topic, so one answer serves them all."""
    outcome_first_ms: int = 20_000
    outcome_max_ms: int = 300_000
    fetch_first_ms: int = 500
    fetch_max_ms: int = 60_000
    retrain_first_ms: int = 10_000
    """After a refusal of its last update on this base a device may try again; each refusal doubles the pause."""
    retrain_max_ms: int = 600_000
    store_retry_ms: int = 5_000
    quiet_ms: int = 2_000
    """After a restart no job starts for so long: miners may have a newer model than the one on the disk."""
    outbox_bytes_max: int = OUTBOX_BYTES_MAX
    outbox_age_ms_max: int = OUTBOX_AGE_S_MAX * 1_000
    clock_skew_s_max: int = 300

    @property
    def quorum(self) -> int:
        """Smallest voting power that is more than 2/3."""
        return quorum_power(self.genesis.miners)

    def power(self, miner_id: str) -> int:
        """Voting power of a miner, 0 of a stranger."""
        return next((miner.power for miner in self.genesis.miners if miner.miner_id == miner_id), 0)


class Sending(Enum):
    """Where an update is on its way."""

    OPEN = "open"
    """No quorum has stored it: it is sent again and again."""
    CONFIRMED = "confirmed"
    """A quorum stored it: only the outcome is missing."""
    SETTLING = "settling"
    """The outcome is known and being stored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outgoing:
    """One update of the outbox."""

    digest: Digest
    seq: int
    base_version: int
    blob_bytes: int
    expiry_height: int
    created_ms: int
    sending: Sending = Sending.OPEN
    stored_by: frozenset[str] = frozenset()
    refused_by: tuple[tuple[str, Reason], ...] = ()
    attempt: int = 0
    due_ms: int = 0
    """When to send again, or to ask for the outcome."""
    wanted: Ranges = ()
    """Bytes that wait for room in the window."""
    open_chunks: int = 0
    recent: Ranges = ()
    """Bytes handed to the link since ``recent_ms``."""
    recent_ms: int = 0
    may_retry: bool = False
    """Whether its end lets the device train on the same base once more."""


class Stage(Enum):
    """How far a job is."""

    TRAINING = "training"
    MAKING = "making"
    STORING = "storing"


@dataclass(frozen=True, slots=True)
class Job:
    """One run of local training on one base."""

    base_version: int
    stage: Stage
    made: Outgoing | None = None
    store_due_ms: int | None = None
    """When to try again to store it, after a full disk."""


@dataclass(frozen=True, slots=True)
class Offer:
    """A model that a miner announced and whose certificate holds."""

    announcement: Announcement
    model: Model
    failures: int = 0
    due_ms: int = 0
    """Not tried before, after a failure."""


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """Everything that the machine remembers. At most one offer per miner; few updates, see ``Rules.in_flight_max``."""

    rules: Rules
    is_linked: bool = False
    mode: Mode = Mode.TRAIN
    installed: Model | None = None
    version_floor: int = -1
    offers: tuple[Offer, ...] = ()
    installing: Offer | None = None
    job: Job | None = None
    last_trained: int = -1
    refusals: int = 0
    """Refusals in a row on the base ``last_trained``."""
    retrain_ms: int | None = None
    """When the base ``last_trained`` may be trained on again."""
    next_seq: int = 1
    quiet_until_ms: int = 0
    time_s: int = 0
    """Calendar clock at the last announcement."""
    updates: tuple[Outgoing, ...] = ()
    heights: tuple[tuple[str, int], ...] = ()
    """Log height that each miner last claimed."""


def backoff_ms(first_ms: int, max_ms: int, attempt: int, key: bytes) -> int:
    """Pause before attempt ``attempt + 1``: doubling, between half and the whole of it.

    The jitter is a hash of who waits for what, so that devices spread out and a run repeats exactly.
    """
    whole = min(max_ms, first_ms << min(attempt, BACKOFF_EXPONENT_MAX))
    draw = int.from_bytes(sha256(key, attempt.to_bytes(8))[:4])
    return whole // 2 + draw % (whole - whole // 2 + 1)


def claimed_height(state: State) -> int:
    """Largest log height that miners with more than 1/3 of the power have reached: at least one of them is honest."""
    genesis = state.rules.genesis
    needed = sum(miner.power for miner in genesis.miners) // 3 + 1
    power = 0
    for miner_id, height in sorted(state.heights, key=lambda claim: claim[1], reverse=True):
        power += state.rules.power(miner_id)
        if power >= needed:
            return height
    return 0


def add_ranges(one: Ranges, other: Ranges) -> Ranges:
    """Union of byte ranges."""
    merged: list[tuple[int, int]] = []
    for start, stop in sorted((*one, *other)):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], stop))
        elif start < stop:
            merged.append((start, stop))
    return tuple(merged)


def subtract_ranges(one: Ranges, other: Ranges) -> Ranges:
    """Bytes of ``one`` that are not in ``other``."""
    left = list(one)
    for cut_start, cut_stop in other:
        kept: list[tuple[int, int]] = []
        for start, stop in left:
            pieces = ((start, min(stop, cut_start)), (max(start, cut_stop), stop))
            kept += [(low, high) for low, high in pieces if low < high]
        left = kept
    return tuple(left)
