"""An update on its way: sent until a quorum stored it, kept until its outcome is certified.

A PUBACK of the broker only makes room in the window of chunks. What ends the sending is receipts of more than 2/3 of
the voting power. What ends an update is its certified outcome or, before any quorum stored it, lasting refusals of
more than 2/3 of the power. (Refusals of more than 1/3 would already hold an honest one; the larger quorum is the safe
rule, because then no quorum can have stored the update and the delta cannot be merged after it went back to the
residual. A refusal that may pass - no room, a miner behind the others - does not count: a copy that is still on its
way may be stored a moment later.)
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Final

from edge_sdk.errors import InvalidCertificateError
from edge_sdk.participant.events import (
    AskOutcome,
    Effect,
    PublishChunk,
    PublishManifest,
    Report,
    SavedUpdate,
    SaveReceipt,
    Settle,
)
from edge_sdk.participant.models import Step, note_height
from edge_sdk.participant.state import (
    Outgoing,
    Sending,
    State,
    add_ranges,
    backoff_ms,
    claimed_height,
    subtract_ranges,
)
from edge_sdk.protocol.certificate import verify_outcome
from edge_sdk.protocol.ids import Digest
from edge_sdk.protocol.limits import ASSEMBLY_FRAGMENTS_MAX
from edge_sdk.protocol.messages import Outcome, Reason, Receipt, ReceiptStatus, Resume, Verdict

_PASSING: Final = frozenset({Reason.FUTURE_BASE, Reason.QUOTA, Reason.CAPACITY, Reason.DIGEST_MISMATCH})
"""Refusals after which the same miner may still store the same update; it turns stale or expires if it never does."""
_FULL_SEND_EVERY: Final = 3
"""Every third attempt sends all chunks; the others the manifest alone, which a miner answers with what it misses."""


def restore(saved: SavedUpdate, now_ms: int) -> Outgoing:
    """Take an update up again after a restart."""
    return Outgoing(
        digest=saved.digest,
        seq=saved.seq,
        base_version=saved.base_version,
        blob_bytes=saved.blob_bytes,
        expiry_height=saved.expiry_height,
        created_ms=now_ms - saved.age_ms,
        stored_by=saved.stored_by,
        refused_by=saved.refused_by,
        due_ms=now_ms,
    )


def find(state: State, digest: Digest) -> Outgoing | None:
    """The update of that name, if it is still on its way."""
    return next((update for update in state.updates if update.digest == digest), None)


def put(state: State, update: Outgoing) -> State:
    """Replace an update by its next state."""
    updates = tuple(update if item.digest == update.digest else item for item in state.updates)
    return replace(state, updates=updates)


def reconnected(state: State, now_ms: int) -> State:
    """What the link had not confirmed is forgotten: everything open is due again."""

    def again(update: Outgoing) -> Outgoing:
        is_open = update.sending is Sending.OPEN
        return replace(update, open_chunks=0, recent=(), due_ms=now_ms if is_open else update.due_ms)

    return replace(state, updates=tuple(again(update) for update in state.updates))


def receipt(state: State, message: Receipt, now_ms: int) -> Step:
    """Count a miner's word; decide when the quorum is there."""
    state = note_height(state, message.miner_id, message.height)
    update = find(state, message.update_digest)
    is_ours = update is not None and message.device_id == state.rules.device_id and message.seq == update.seq
    if update is None or not is_ours or state.rules.power(message.miner_id) == 0:
        return state, ()
    if message.miner_id in update.stored_by or update.sending is Sending.SETTLING:
        return state, ()  # again: at-least-once delivery is normal
    refused_by = tuple(item for item in update.refused_by if item[0] != message.miner_id)
    if message.status is ReceiptStatus.STORED:
        update = replace(update, stored_by=update.stored_by | {message.miner_id}, refused_by=refused_by)
    else:
        if (message.miner_id, message.reason) in update.refused_by:
            return state, ()
        update = replace(update, refused_by=(*refused_by, (message.miner_id, message.reason)))
    state, effects = judge(state, update, now_ms)
    return state, (SaveReceipt(message), *effects)


def judge(state: State, update: Outgoing, now_ms: int) -> Step:
    """Draw the conclusion from the receipts of an update."""
    rules = state.rules
    if update.sending is Sending.OPEN and sum(map(rules.power, update.stored_by)) >= rules.quorum:
        pause_ms = backoff_ms(rules.outcome_first_ms, rules.outcome_max_ms, 0, update.digest)
        confirmed = replace(update, sending=Sending.CONFIRMED, wanted=(), attempt=0, due_ms=now_ms + pause_ms)
        return put(state, confirmed), ()
    power_of: Counter[Reason] = Counter()
    for miner_id, reason in update.refused_by:
        if reason not in _PASSING:
            power_of[reason] += rules.power(miner_id)
    if update.sending is Sending.OPEN and power_of.total() >= rules.quorum:
        reason = min(power_of, key=lambda item: (-power_of[item], item))
        return settle(state, update, Verdict.REFUSED, reason)
    return put(state, update), ()


def give_up_old_key(state: State, digest: Digest) -> Step:
    """End an update that no quorum stored before this device got another key; one that a quorum stored has its outcome.

    Single miners may hold it and may have brought it to the ledger under the old key: its delta does not return.
    """
    update = find(state, digest)
    if update is None or update.sending is not Sending.OPEN:
        return state, ()
    return settle(state, update, Verdict.REFUSED, Reason.BAD_SIGNATURE, returns_delta=False)


def outcome(state: State, message: Outcome) -> Step:
    """End an update, if the outcome proves itself."""
    update = find(state, message.entry.update_digest)
    if update is None or update.sending is Sending.SETTLING or message.entry.device_id != state.rules.device_id:
        return state, ()
    try:
        entry = verify_outcome(message, state.rules.genesis)
    except InvalidCertificateError as error:
        return state, (Report(f"outcome.refused.{error.reason}", str(error)),)
    return settle(state, update, entry.verdict, entry.reason, certified=message)


def settle(
    state: State,
    update: Outgoing,
    verdict: Verdict,
    reason: Reason,
    *,
    returns_delta: bool = True,
    certified: Outcome | None = None,
) -> Step:
    """Ask for the transaction that ends an update; ``returns_delta`` False drops the delta whatever the reason."""
    is_refused = verdict is Verdict.REFUSED
    may_retry = is_refused and reason is not Reason.BASE_REUSED
    end = Settle(
        digest=update.digest,
        verdict=verdict,
        reason=reason,
        returns_delta=is_refused and returns_delta and reason.returns_delta,
        outcome=certified,
    )
    return put(state, replace(update, sending=Sending.SETTLING, wanted=(), may_retry=may_retry)), (end,)


def resume(state: State, message: Resume, now_ms: int) -> Step:
    """Send byte ranges again that a miner misses."""
    update = find(state, message.update_digest)
    is_ours = message.device_id == state.rules.device_id and state.rules.power(message.miner_id) > 0
    if update is None or not is_ours or update.sending is not Sending.OPEN:
        return state, ()
    asked = tuple((start, min(stop, update.blob_bytes)) for start, stop in message.ranges if start < update.blob_bytes)
    if now_ms - update.recent_ms > state.rules.resume_memory_ms:
        update = replace(update, recent=(), recent_ms=now_ms)
    wanted = add_ranges(update.wanted, subtract_ranges(add_ranges(asked, ()), update.recent))
    if len(wanted) > ASSEMBLY_FRAGMENTS_MAX:  # no honest miner has so many gaps: bound what a hostile one can pile up
        wanted = ((wanted[0][0], wanted[-1][1]),)
    return put(state, replace(update, wanted=wanted)), ()


def chunk_sent(state: State, digest: Digest) -> State:
    """There is room for one more chunk."""
    update = find(state, digest)
    if update is None:
        return state
    return put(state, replace(update, open_chunks=max(0, update.open_chunks - 1)))


def drive(state: State, now_ms: int) -> Step:
    """Do for each update what is due: age limit, next attempt, chunks into the window."""
    effects: list[Effect] = []
    for digest in [update.digest for update in state.updates]:
        for act in (_expire, _attempt, _fill_window):
            update = find(state, digest)
            if update is not None:
                state, more = act(state, update, now_ms)
                effects += more
    return state, tuple(effects)


def _expire(state: State, update: Outgoing, now_ms: int) -> Step:
    """Give up an update that no quorum took, or of which no outcome came, for too long."""
    is_old = now_ms - update.created_ms > state.rules.outbox_age_ms_max
    if update.sending is Sending.SETTLING or not is_old:
        return state, ()
    # Single miners may hold it and could still bring it to the ledger until it expires there: only after that is it
    # safe to use the delta again. Otherwise it is lost rather than counted twice.
    is_dead = claimed_height(state) > update.expiry_height
    if update.sending is Sending.OPEN:
        return settle(state, update, Verdict.REFUSED, Reason.TIMEOUT, returns_delta=is_dead)
    # A quorum stored it, so it may have been merged: its delta never returns. But it must not hold its place for ever
    # if the ledger cannot take it any more, for instance because the device has another key since.
    return settle(state, update, Verdict.REFUSED, Reason.TIMEOUT, returns_delta=False) if is_dead else (state, ())


def _attempt(state: State, update: Outgoing, now_ms: int) -> Step:
    if not state.is_linked or update.due_ms > now_ms or update.sending is Sending.SETTLING:
        return state, ()
    rules = state.rules
    is_open = update.sending is Sending.OPEN
    first_ms, max_ms = (
        (rules.resend_first_ms, rules.resend_max_ms) if is_open else (rules.outcome_first_ms, rules.outcome_max_ms)
    )
    pause_ms = backoff_ms(first_ms, max_ms, update.attempt, update.digest)
    later = replace(update, attempt=update.attempt + 1, due_ms=now_ms + pause_ms)
    if not is_open:
        return put(state, later), (AskOutcome(update.digest),)
    if update.attempt % _FULL_SEND_EVERY == 0:
        later = replace(later, wanted=((0, update.blob_bytes),), recent=(), recent_ms=now_ms)
    return put(state, later), (PublishManifest(update.digest),)


def _fill_window(state: State, update: Outgoing, now_ms: int) -> Step:
    if not state.is_linked or not update.wanted:
        return state, ()
    effects: list[Effect] = []
    wanted, recent = update.wanted, update.recent
    room = state.rules.chunk_window - update.open_chunks
    while wanted and room > len(effects):
        start, stop = wanted[0]
        size = min(stop - start, state.rules.chunk_bytes)
        effects.append(PublishChunk(update.digest, start, size))
        wanted = ((start + size, stop), *wanted[1:]) if start + size < stop else wanted[1:]
        recent = add_ranges(recent, ((start, start + size),))
    sent = replace(
        update,
        wanted=wanted,
        recent=recent,
        recent_ms=now_ms if effects else update.recent_ms,
        open_chunks=update.open_chunks + len(effects),
    )
    return put(state, sent), tuple(effects)
