"""Which model a device takes: the highest version whose certificate holds; never an older one, nor by a wrong clock.

A certificate binds the model root, not the blob: a miner can put a false blob digest beside a true certificate. So
offers are kept per miner, a failed one is set back alone, and another miner's offer of the same version is tried
next.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from edge_sdk.errors import InvalidCertificateError
from edge_sdk.participant.events import Effect, FetchModel, InstallModel, Model, Report, SelfTest
from edge_sdk.participant.state import Offer, Rules, State, backoff_ms
from edge_sdk.protocol.certificate import verify_certificate
from edge_sdk.protocol.messages import Announcement

Step = tuple[State, tuple[Effect, ...]]

_CLOCK: Final = "clock"


def consider(state: State, announcement: Announcement, *, time_s: int) -> Step:
    """Take an announcement in, if it offers something newer that holds."""
    state = note_height(state, announcement.miner_id, announcement.height)
    current = tuple(offer for offer in state.offers if not _has_expired(offer.announcement, time_s))
    state = replace(state, time_s=time_s, offers=current)
    known = next((offer for offer in state.offers if offer.announcement.miner_id == announcement.miner_id), None)
    if known is not None and _is_same(known.announcement, announcement):
        return state, ()
    if announcement.version < lowest_wanted(state):
        if known is not None and known.announcement.version > announcement.version:
            return state, (_refusal(announcement, "version", "older than what this miner offered before"),)
        return state, ()  # a miner that is behind, or the model that we run
    if state.rules.power(announcement.miner_id) == 0:
        return state, (_refusal(announcement, "miner", "not a miner of this chain"),)
    try:
        check_offer(announcement, state.rules, time_s=time_s)
    except InvalidCertificateError as error:
        return state, (_refusal(announcement, error.reason, str(error)),)
    offer = Offer(announcement, offered_model(announcement, state.rules))
    others = tuple(item for item in state.offers if item.announcement.miner_id != announcement.miner_id)
    return replace(state, offers=(*others, offer)), ()


def check_offer(announcement: Announcement, rules: Rules, *, time_s: int) -> None:
    """Verify the certificate of an announcement, and that it is about what is announced.

    Raises:
        InvalidCertificateError: ``reason`` as of ``verify_certificate``, or ``missing``, ``artifact``, ``genesis``,
            ``version``, ``expired``, ``clock``.
    """
    genesis = rules.genesis
    if announcement.artifact_digest != genesis.artifact_digest:
        raise InvalidCertificateError("for another artifact than the trust anchor's", reason="artifact")
    certificate = announcement.certificate
    if announcement.version == 0:
        if (announcement.model_digest, announcement.model_bytes) != (genesis.model_digest, genesis.model_bytes):
            raise InvalidCertificateError("another version 0 than the trust anchor's", reason="genesis")
        return
    if certificate is None:
        raise InvalidCertificateError("no certificate", reason="missing")
    statement = certificate.statement
    if statement.version != announcement.version:
        raise InvalidCertificateError(f"certificate of version {statement.version}", reason="version")
    verify_certificate(certificate, genesis)
    # Only after the signatures: what a quorum signed is also a hint about our own clock.
    issued_s = statement.expiry_s - genesis.params.certificate_ttl_s
    if time_s < max(genesis.created_s, issued_s) - rules.clock_skew_s_max:
        text = f"this clock says {time_s}, the quorum signed at {issued_s}: the clock is behind"
        raise InvalidCertificateError(text, reason=_CLOCK)
    if _has_expired(announcement, time_s):
        text = f"expired {time_s - statement.expiry_s} s ago, or this clock is ahead"
        raise InvalidCertificateError(text, reason="expired")


def offered_model(announcement: Announcement, rules: Rules) -> Model:
    """Version and model root that the fetched blob must have."""
    if announcement.certificate is None:
        return Model(0, rules.genesis.model_root)
    return Model(announcement.version, announcement.certificate.statement.model_root)


def choose(state: State, now_ms: int) -> Step:
    """Start to fetch the best offer, when none is under way."""
    if state.installing is not None:
        return state, ()
    lowest = lowest_wanted(state)
    ready = [offer for offer in state.offers if offer.model.version >= lowest and offer.due_ms <= now_ms]
    if not ready:
        return state, ()
    best = max(ready, key=lambda offer: (offer.model.version, -offer.failures))
    return replace(state, installing=best), (FetchModel(best.announcement, best.model),)


def lowest_wanted(state: State) -> int:
    """Oldest version worth a fetch: above the floor, or at it when that model is lost (a broken slot, a rollback)."""
    has_newest = state.installed is not None and state.installed.version >= state.version_floor
    return state.version_floor + 1 if has_newest else max(0, state.version_floor)


def fetched(state: State, version: int) -> Step:
    """The blob is here: test it."""
    return state, ((SelfTest(version),) if _is_installing(state, version) else ())


def tested(state: State, version: int, now_ms: int) -> Step:
    """The blob works: switch to it, unless its certificate expired while it waited for the work thread."""
    if not _is_installing(state, version) or state.installing is None:
        return state, ()
    if _has_expired(state.installing.announcement, state.time_s):
        return failed(state, version, "its certificate has expired meanwhile", now_ms)
    return state, (InstallModel(state.installing.model),)


def failed(state: State, version: int, why: str, now_ms: int) -> Step:
    """Keep the model that runs, set this offer back, and look at the others."""
    if not _is_installing(state, version) or state.installing is None:
        return state, ()
    offer, rules = state.installing, state.rules
    miner_id = offer.announcement.miner_id
    pause_ms = backoff_ms(rules.fetch_first_ms, rules.fetch_max_ms, offer.failures, miner_id.encode())
    later = replace(offer, failures=offer.failures + 1, due_ms=now_ms + pause_ms)
    offers = tuple(later if _is_same(item.announcement, offer.announcement) else item for item in state.offers)
    report = Report("model.failed", f"version {version} of {miner_id}: {why}")
    return replace(state, installing=None, offers=offers), (report,)


def installed(state: State, model: Model) -> Step:
    """The new model runs; offers that it overtook are forgotten."""
    offers = tuple(offer for offer in state.offers if offer.model.version > model.version)
    floor = max(state.version_floor, model.version)
    return replace(state, installing=None, installed=model, version_floor=floor, offers=offers), ()


def note_height(state: State, miner_id: str, height: int) -> State:
    """Remember the highest log height that a miner claims."""
    if state.rules.power(miner_id) == 0:
        return state
    claims = dict(state.heights)
    if claims.get(miner_id, -1) >= height:
        return state
    return replace(state, heights=tuple(sorted((claims | {miner_id: height}).items())))


def _is_installing(state: State, version: int) -> bool:
    return state.installing is not None and state.installing.model.version == version


def _has_expired(announcement: Announcement, time_s: int) -> bool:
    """Whether the certificate is no longer good; the trust anchor's version 0 has none."""
    return announcement.certificate is not None and time_s > announcement.certificate.statement.expiry_s


def _is_same(one: Announcement, other: Announcement) -> bool:
    """Whether two announcements offer the same bytes from the same places."""
    return (one.miner_id, one.version, one.model_digest, one.urls) == (
        other.miner_id,
        other.version,
        other.model_digest,
        other.urls,
    )


def _refusal(announcement: Announcement, kind: str, text: str) -> Report:
    return Report(f"model.refused.{kind}", f"version {announcement.version} of {announcement.miner_id}: {text}")
