"""The participant: one step of the device's protocol.

``apply(state, event)`` gives the next state and what to do about it. It neither waits nor touches anything; the app
carries out the effects in order and brings the answers back as events. After every event the machine looks at what it
owes (``_advance``), so that nothing depends on an effect having been carried out before a crash: a restart with
``Restored`` finds the same duties.
"""

from __future__ import annotations

from dataclasses import replace
from typing import assert_never

from edge_sdk.participant import events as e
from edge_sdk.participant import models, training, updates
from edge_sdk.participant.models import Step
from edge_sdk.participant.state import State


def apply(state: State, event: e.Event) -> Step:
    """Step the machine.

    Returns:
        The next state, and the effects in the order in which they must be carried out.
    """
    state, first = _react(state, event)
    state, then = _advance(state, event.now_ms)
    return state, (*first, *then)


def next_due_ms(state: State, now_ms: int) -> int | None:
    """When the next ``Tick`` is due after ``now_ms``; None when only an event can change anything.

    A time that has passed without effect waits for something else, and every event looks at it again.
    """
    times = [state.quiet_until_ms, *(offer.due_ms for offer in state.offers)]
    for update in state.updates:
        times += [update.due_ms, update.created_ms + state.rules.outbox_age_ms_max + 1]
    if state.retrain_ms is not None:
        times.append(state.retrain_ms)
    if state.job is not None and state.job.store_due_ms is not None:
        times.append(state.job.store_due_ms)
    return min((time for time in times if time > now_ms), default=None)


def _react(state: State, event: e.Event) -> Step:  # noqa: C901, PLR0911, PLR0912 - one case per event
    """What this event changes by itself."""
    match event:
        case e.Restored():
            return _restore(state, event)
        case e.LinkUp(now_ms):
            return updates.reconnected(replace(state, is_linked=True), now_ms), ()
        case e.LinkDown():
            return replace(state, is_linked=False), ()
        case e.ModelAnnounced(_, time_s, announcement):
            return models.consider(state, announcement, time_s=time_s)
        case e.ModelFetched(_, version):
            return models.fetched(state, version)
        case e.ModelTested(now_ms, version):
            return models.tested(state, version, now_ms)
        case e.ModelFailed(now_ms, version, why):
            return models.failed(state, version, why, now_ms)
        case e.ModelInstalled(_, model):
            return models.installed(state, model)
        case e.ModeChanged(_, mode):
            return training.mode_changed(state, mode)
        case e.TrainingEnded(_, base_version):
            return training.ended(state, base_version)
        case e.TrainingFailed(now_ms, base_version, why):
            return training.failed(state, base_version, why, now_ms)
        case e.UpdateMade():
            return training.made(state, event)
        case e.UpdateStored(now_ms, digest):
            return training.stored(state, digest, now_ms)
        case e.StoreFailed(now_ms, digest, why):
            return training.store_failed(state, digest, why, now_ms)
        case e.ChunkSent(_, digest):
            return updates.chunk_sent(state, digest), ()
        case e.ReceiptArrived(now_ms, receipt):
            return updates.receipt(state, receipt, now_ms)
        case e.ResumeArrived(now_ms, resume):
            return updates.resume(state, resume, now_ms)
        case e.OutcomeArrived(_, outcome):
            return updates.outcome(state, outcome)
        case e.UpdateSettled(now_ms, digest):
            return training.settled(state, digest, now_ms)
        case e.Tick():
            return state, ()
        case _:
            assert_never(event)


def _advance(state: State, now_ms: int) -> Step:
    """What is owed by now, whatever happened."""
    effects: tuple[e.Effect, ...] = ()
    for owed in (models.choose, training.start, updates.drive):
        state, more = owed(state, now_ms)
        effects = (*effects, *more)
    return state, effects


def _restore(state: State, event: e.Restored) -> Step:
    # The slot is switched before the floor is raised: a power cut in between leaves the slot ahead.
    running = -1 if event.installed is None else event.installed.version
    state = replace(
        state,
        installed=event.installed,
        version_floor=max(event.version_floor, running),
        last_trained=event.last_trained,
        next_seq=event.next_seq,
        quiet_until_ms=0 if event.installed is None else event.now_ms + state.rules.quiet_ms,
        updates=tuple(updates.restore(saved, event.now_ms) for saved in event.updates),
    )
    effects: tuple[e.Effect, ...] = ()
    old = {saved.digest for saved in event.updates if saved.is_of_old_key}
    for update in state.updates:  # a quorum may have been complete before the restart
        state, more = updates.judge(state, update, event.now_ms)
        if update.digest in old:
            state, further = updates.give_up_old_key(state, update.digest)
            more = (*more, *further)
        effects = (*effects, *more)
    # Outcomes may have passed by while nobody listened: ask for them as soon as there is a link.
    state = replace(state, updates=tuple(replace(update, due_ms=event.now_ms) for update in state.updates))
    if event.job_base is not None:
        state, more = training.take_up(state, event.job_base)
        effects = (*effects, *more)
    if all(update.base_version != state.last_trained for update in state.updates):
        state = training.allow_again(state, state.last_trained, event.now_ms)  # it may have been refused
    return state, effects
