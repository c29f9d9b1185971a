"""When to train, and how a finished job becomes an update.

One job at a time, one update per base version: it is the newest model that is worth training on, and the ledger
merges at most one update per device and base. Only when that one was refused may the same base be tried again, with
growing pauses, so that a fleet whose updates were all refused does not stand still.
"""

from __future__ import annotations

from dataclasses import replace

from edge_sdk.participant.events import (
    ContinueTraining,
    DropJob,
    Effect,
    MakeUpdate,
    Mode,
    PauseTraining,
    Report,
    StoreInOutbox,
    TrainLocally,
    UpdateMade,
)
from edge_sdk.participant.models import Step
from edge_sdk.participant.state import Job, Outgoing, Sending, Stage, State, backoff_ms, claimed_height
from edge_sdk.participant.updates import find
from edge_sdk.protocol.ids import Digest


def take_up(state: State, base_version: int) -> Step:
    """Continue a job with a checkpoint, unless its update was stored already or would be stale on arrival."""
    newest = -1 if state.installed is None else state.installed.version
    is_stale = newest - base_version > state.rules.genesis.params.staleness_max
    if base_version <= state.last_trained or is_stale:
        return state, (DropJob(base_version),)
    effects: tuple[Effect, ...] = (TrainLocally(base_version, is_resumed=True),)
    if state.mode is not Mode.TRAIN:
        effects = (PauseTraining(), *effects)
    return replace(state, job=Job(base_version, Stage.TRAINING)), effects


def start(state: State, now_ms: int) -> Step:
    """Begin a job when there is a model worth it, room for the update, and leave of the governor."""
    job = state.job
    if job is not None:
        if job.made is None or job.store_due_ms is None or job.store_due_ms > now_ms:
            return state, ()
        return replace(state, job=replace(job, store_due_ms=None)), (StoreInOutbox(job.made.digest),)
    is_free = state.mode is Mode.TRAIN and state.installing is None and now_ms >= state.quiet_until_ms
    if state.installed is None or not is_free or not _has_room(state):
        return state, ()
    base = state.installed.version
    is_again = base == state.last_trained and state.retrain_ms is not None and state.retrain_ms <= now_ms
    if base <= state.last_trained and not is_again:
        return state, ()
    refusals = state.refusals if is_again else 0
    state = replace(state, job=Job(base, Stage.TRAINING), retrain_ms=None, refusals=refusals)
    return state, (TrainLocally(base, is_resumed=False),)


def mode_changed(state: State, mode: Mode) -> Step:
    """Hold a running job, or let it go on."""
    was, state = state.mode, replace(state, mode=mode)
    is_training = state.job is not None and state.job.stage is Stage.TRAINING
    if not is_training or (was is Mode.TRAIN) == (mode is Mode.TRAIN):
        return state, ()
    return state, ((ContinueTraining(),) if mode is Mode.TRAIN else (PauseTraining(),))


def ended(state: State, base_version: int) -> Step:
    """Make the update."""
    job = state.job
    if job is None or job.base_version != base_version or job.stage is not Stage.TRAINING:
        return state, ()
    expiry_height = claimed_height(state) + state.rules.genesis.params.expiry_heights
    making = replace(state, job=replace(job, stage=Stage.MAKING))
    return making, (MakeUpdate(base_version, state.next_seq, expiry_height),)


def failed(state: State, base_version: int, why: str, now_ms: int) -> Step:
    """Leave this base, after a while try it again."""
    if state.job is None or state.job.base_version != base_version:
        return state, ()
    state = replace(state, job=None, last_trained=max(state.last_trained, base_version))
    state = allow_again(state, base_version, now_ms)
    return state, (Report("training.failed", f"base {base_version}: {why}"), DropJob(base_version))


def made(state: State, event: UpdateMade) -> Step:
    """Store the update before anybody hears of it."""
    job = state.job
    is_expected = job is not None and job.stage is Stage.MAKING and job.base_version == event.base_version
    if job is None or not is_expected or event.seq != state.next_seq:
        return state, ()
    update = Outgoing(
        digest=event.digest,
        seq=event.seq,
        base_version=event.base_version,
        blob_bytes=event.blob_bytes,
        expiry_height=event.expiry_height,
        created_ms=event.now_ms,
    )
    return replace(state, job=replace(job, stage=Stage.STORING, made=update)), (StoreInOutbox(event.digest),)


def stored(state: State, digest: Digest, now_ms: int) -> Step:
    """The update is durable: send it."""
    job = state.job
    if job is None or job.made is None or job.made.digest != digest:
        return state, ()
    update = replace(job.made, due_ms=now_ms)
    state = replace(
        state,
        job=None,
        next_seq=update.seq + 1,
        last_trained=max(state.last_trained, update.base_version),
        updates=(*state.updates, update),
    )
    return state, (DropJob(update.base_version),)


def store_failed(state: State, digest: Digest, why: str, now_ms: int) -> Step:
    """Keep the update in memory and the job on disk, and try again."""
    job = state.job
    if job is None or job.made is None or job.made.digest != digest:
        return state, ()
    waiting = replace(job, store_due_ms=now_ms + state.rules.store_retry_ms)
    return replace(state, job=waiting), (Report("outbox.failed", why),)


def settled(state: State, digest: Digest, now_ms: int) -> Step:
    """Forget an update whose end is durable; its base may be tried again if nothing newer came."""
    update = find(state, digest)
    if update is None or update.sending is not Sending.SETTLING:
        return state, ()
    state = replace(state, updates=tuple(item for item in state.updates if item.digest != digest))
    return (allow_again(state, update.base_version, now_ms) if update.may_retry else state), ()


def allow_again(state: State, base_version: int, now_ms: int) -> State:
    """Let the newest base be trained on once more, later."""
    if base_version != state.last_trained:
        return state
    rules = state.rules
    pause_ms = backoff_ms(rules.retrain_first_ms, rules.retrain_max_ms, state.refusals, rules.device_id.encode())
    return replace(state, refusals=state.refusals + 1, retrain_ms=now_ms + pause_ms)


def _has_room(state: State) -> bool:
    """Whether one more update fits; its size is bounded by that of the model."""
    bytes_held = sum(update.blob_bytes for update in state.updates)
    fits = bytes_held + state.rules.genesis.model_bytes <= state.rules.outbox_bytes_max
    return fits and len(state.updates) < state.rules.in_flight_max
