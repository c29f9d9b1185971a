"""The participant, step by step."""

from dataclasses import replace

import pytest

from edge_sdk.participant import events as e
from edge_sdk.participant.machine import next_due_ms
from edge_sdk.participant.state import add_ranges, backoff_ms, claimed_height, subtract_ranges
from edge_sdk.protocol.digest import sha256
from edge_sdk.protocol.ids import ChainId, Digest
from edge_sdk.protocol.messages import Reason, Verdict
from tests.support.fake_miners import MINERS
from tests.support.participant import CHAIN_OF, NOW_S, Driver, announcement, outcome, receipt, resume, root, rules

FIRST = sha256(b"update1")
SECOND = sha256(b"update2")


def kinds(effects: list[e.Effect]) -> list[str]:
    return [type(effect).__name__ for effect in effects]


def test_the_whole_way_of_an_update() -> None:
    driver = Driver()
    assert kinds(driver.ready()) == [
        "FetchModel",
        "SelfTest",
        "InstallModel",
        "TrainLocally",
        "MakeUpdate",
        "StoreInOutbox",
        "DropJob",
        "PublishManifest",
        "PublishChunk",
        "PublishChunk",
        "PublishChunk",
    ]
    chunks = [
        (effect.offset, effect.size) for effect in driver.of(e.PublishChunk) if isinstance(effect, e.PublishChunk)
    ]
    assert chunks == [(0, 65_536), (65_536, 65_536), (131_072, 150_000 - 131_072)]
    for miner in MINERS[:3]:
        driver.feed(e.ReceiptArrived(1, receipt(FIRST, 1, miner)))
    assert driver.tick(10_000) == []  # confirmed: no resend
    assert kinds(driver.feed(e.OutcomeArrived(driver.now_ms, outcome(FIRST, 1, 0)))) == ["Settle"]
    assert driver.settled[FIRST].verdict is Verdict.MERGED
    assert driver.state.updates == ()


def test_nothing_is_published_before_it_is_stored() -> None:
    driver = Driver(withheld=frozenset({e.StoreInOutbox}))
    driver.ready()
    assert driver.of(e.PublishManifest) == []
    driver.feed(e.StoreFailed(0, FIRST, "disk full"))
    assert kinds(driver.tick(4_999)) == []
    assert kinds(driver.tick(1)) == ["StoreInOutbox"]


def test_two_receipts_of_four_do_not_stop_the_sending() -> None:
    driver = Driver()
    driver.ready()
    for miner in (*MINERS[:2], *MINERS[:2]):  # repetitions do not count
        driver.feed(e.ReceiptArrived(0, receipt(FIRST, 1, miner)))
    assert kinds(driver.tick(4_000)) == ["PublishManifest"]
    driver.feed(e.ReceiptArrived(0, receipt(FIRST, 1, MINERS[2])))
    assert driver.tick(9_000) == []


def test_every_third_attempt_sends_all_chunks() -> None:
    driver = Driver()
    driver.ready()
    driver.feed(e.ChunkSent(0, FIRST))
    driver.feed(e.ChunkSent(0, FIRST))
    driver.feed(e.ChunkSent(0, FIRST))
    sent = []
    for _ in range(3):
        due = next_due_ms(driver.state, driver.now_ms)
        assert due is not None
        sent.append(kinds(driver.tick(due - driver.now_ms)))
    assert sent == [["PublishManifest"], ["PublishManifest"], ["PublishManifest", *["PublishChunk"] * 3]]


def test_window_bounds_the_chunks_in_flight() -> None:
    driver = Driver(blob_bytes=1_000_000)
    driver.ready()
    assert len(driver.of(e.PublishChunk)) == 8
    driver.feed(e.ChunkSent(0, FIRST))
    assert len(driver.of(e.PublishChunk)) == 9


def test_resume_sends_the_missing_bytes_once_for_all_miners() -> None:
    driver = Driver()
    driver.ready()
    for _ in range(3):
        driver.feed(e.ChunkSent(0, FIRST))
    driver.now_ms = 2_000
    first = driver.feed(e.ResumeArrived(2_000, resume(FIRST, (10, 20), (140_000, 999_999))))
    assert [(f.offset, f.size) for f in first if isinstance(f, e.PublishChunk)] == [(10, 10), (140_000, 10_000)]
    assert driver.feed(e.ResumeArrived(2_100, resume(FIRST, (10, 20), miner=MINERS[1]))) == []
    assert len(driver.feed(e.ResumeArrived(5_000, resume(FIRST, (10, 20), miner=MINERS[1])))) >= 1


@pytest.mark.parametrize(
    ("reasons", "expected"),
    [
        ([Reason.STALE] * 3, (Reason.STALE, True)),
        ([Reason.SHAPE] * 2 + [Reason.STALE], (Reason.SHAPE, False)),
        ([Reason.BAD_SIGNATURE, Reason.EXPIRED, Reason.EXPIRED], (Reason.EXPIRED, True)),
    ],
)
def test_quorum_of_refusals_ends_an_update(reasons: list[Reason], expected: tuple[Reason, bool]) -> None:
    driver = Driver()
    driver.ready()
    for miner, reason in zip(MINERS, reasons, strict=False):
        driver.feed(e.ReceiptArrived(0, receipt(FIRST, 1, miner, reason)))
    end = driver.settled[FIRST]
    assert (end.verdict, (end.reason, end.returns_delta)) == (Verdict.REFUSED, expected)


def test_two_refusals_do_not_end_it() -> None:
    """f+1 = 2 refusals hold an honest one, yet two miners may still store and merge it."""
    driver = Driver()
    driver.ready()
    for miner in MINERS[:2]:
        driver.feed(e.ReceiptArrived(0, receipt(FIRST, 1, miner, Reason.STALE)))
    assert driver.settled == {}


def test_stored_after_refused_counts() -> None:
    driver = Driver()
    driver.ready()
    driver.feed(e.ReceiptArrived(0, receipt(FIRST, 1, MINERS[0], Reason.FUTURE_BASE)))
    for miner in MINERS[:3]:
        driver.feed(e.ReceiptArrived(0, receipt(FIRST, 1, miner)))
    assert driver.tick(9_000) == []


@pytest.mark.parametrize(
    ("reason", "returns"),
    [(Reason.STALE, True), (Reason.QUALITY, False), (Reason.OUT_OF_BOUNDS, False), (Reason.BASE_REUSED, True)],
)
def test_refused_outcome_returns_the_delta_by_its_reason(reason: Reason, *, returns: bool) -> None:
    driver = Driver()
    driver.ready()
    driver.feed(e.OutcomeArrived(0, outcome(FIRST, 1, 0, verdict=Verdict.REFUSED, reason=reason)))
    assert driver.settled[FIRST].returns_delta is returns


def test_forged_outcome_changes_nothing() -> None:
    driver = Driver()
    driver.ready()
    true = outcome(FIRST, 1, 0)
    forged = replace(true, entry=replace(true.entry, verdict=Verdict.REFUSED, reason=Reason.QUALITY))
    (report,) = driver.feed(e.OutcomeArrived(0, forged))
    assert isinstance(report, e.Report)
    assert report.kind == "outcome.refused.proof"
    assert driver.settled == {}


def test_next_version_is_trained_while_the_last_update_waits() -> None:
    driver = Driver()
    driver.ready()
    driver.feed(e.ModelAnnounced(0, NOW_S, announcement(1)))
    assert [effect.base_version for effect in driver.of(e.TrainLocally) if isinstance(effect, e.TrainLocally)] == [0, 1]
    driver.feed(e.ModelAnnounced(0, NOW_S, announcement(2)))  # two in flight: no third job
    assert len(driver.of(e.TrainLocally)) == 2
    driver.feed(e.OutcomeArrived(0, outcome(FIRST, 1, 0)))
    assert len(driver.of(e.TrainLocally)) == 3


def test_refused_base_is_tried_again_with_growing_pauses() -> None:
    driver = Driver()
    driver.ready()
    driver.feed(e.OutcomeArrived(0, outcome(FIRST, 1, 0, verdict=Verdict.REFUSED, reason=Reason.QUALITY)))
    assert "TrainLocally" not in kinds(driver.tick(4_999))
    assert "TrainLocally" in kinds(driver.tick(5_001))
    driver.feed(e.OutcomeArrived(driver.now_ms, outcome(SECOND, 2, 0, verdict=Verdict.REFUSED, reason=Reason.QUALITY)))
    assert "TrainLocally" not in kinds(driver.tick(9_999))
    assert "TrainLocally" in kinds(driver.tick(10_001))


def test_merged_base_is_not_tried_again() -> None:
    driver = Driver()
    driver.ready()
    driver.feed(e.OutcomeArrived(0, outcome(FIRST, 1, 0)))
    driver.tick(10_000_000)
    assert len(driver.of(e.TrainLocally)) == 1


def test_old_update_that_nobody_took_is_given_up() -> None:
    """The delta comes back only when the ledger can no longer merge it; else it is dropped, not counted twice."""
    for height, returns in ((5_000, True), (5, False)):
        driver = Driver()
        driver.ready()
        for miner in MINERS[:2]:
            driver.feed(e.ReceiptArrived(0, receipt(FIRST, 1, miner, height=height)))
        driver.tick(rules().outbox_age_ms_max + 1)
        assert driver.settled[FIRST].reason is Reason.TIMEOUT
        assert driver.settled[FIRST].returns_delta is returns


def test_one_lying_miner_cannot_move_the_height() -> None:
    driver = Driver()
    driver.ready()
    driver.feed(e.ReceiptArrived(0, receipt(FIRST, 1, MINERS[0], height=10**9)))
    assert claimed_height(driver.state) < 10**9
    driver.feed(e.ReceiptArrived(0, receipt(FIRST, 1, MINERS[1], height=70)))
    assert claimed_height(driver.state) == 70


def test_confirmed_update_is_kept_and_asked_about() -> None:
    driver = Driver()
    driver.ready()
    for miner in MINERS[:3]:
        driver.feed(e.ReceiptArrived(0, receipt(FIRST, 1, miner)))
    asked = driver.tick(rules().outbox_age_ms_max + 1)
    assert kinds(asked) == ["AskOutcome"]
    assert driver.settled == {}


def test_offline_device_trains_and_sends_later() -> None:
    driver = Driver()
    driver.ready()
    driver.feed(e.LinkDown(0))
    driver.feed(e.ModelAnnounced(0, NOW_S, announcement(1)))
    published = len(driver.of(e.PublishManifest))
    assert len(driver.of(e.StoreInOutbox)) == 2
    assert driver.tick(100_000) == []
    again = kinds(driver.feed(e.LinkUp(driver.now_ms)))
    assert again.count("PublishManifest") == 2
    assert published == 1


def test_governor_holds_and_releases_a_job() -> None:
    driver = Driver(withheld=frozenset({e.TrainLocally}))
    driver.ready()
    assert kinds(driver.feed(e.ModeChanged(0, e.Mode.UPLOAD_ONLY))) == ["PauseTraining"]
    assert kinds(driver.feed(e.ModeChanged(0, e.Mode.PAUSE))) == []
    assert kinds(driver.feed(e.ModeChanged(0, e.Mode.TRAIN))) == ["ContinueTraining"]


def test_full_outbox_starts_no_job() -> None:
    driver = Driver()
    driver.state = replace(driver.state, rules=rules(outbox_bytes_max=100_000))
    driver.ready()
    driver.feed(e.ModelAnnounced(0, NOW_S, announcement(1)))
    assert len(driver.of(e.TrainLocally)) == 1


def test_restart_takes_everything_up_again() -> None:
    driver = Driver()
    driver.ready()
    driver.feed(e.ReceiptArrived(0, receipt(FIRST, 1, MINERS[0])))
    driver.feed(e.ReceiptArrived(0, receipt(FIRST, 1, MINERS[1])))
    driver.restart()
    assert driver.state.next_seq == 2
    assert "PublishManifest" in kinds(driver.feed(e.LinkUp(0)))
    driver.feed(e.ReceiptArrived(0, receipt(FIRST, 1, MINERS[2])))  # the third, over the restart
    assert driver.state.updates[0].stored_by == set(MINERS[:3])
    assert driver.tick(9_000) == []


def test_update_of_an_old_key_that_no_quorum_took_is_given_up_and_the_device_goes_on() -> None:
    driver = Driver()
    driver.ready()
    driver.feed(e.ReceiptArrived(0, receipt(FIRST, 1, MINERS[0])))
    driver.disk[FIRST] = replace(driver.disk[FIRST], is_of_old_key=True)
    assert "Settle" in kinds(driver.restart())
    end = driver.settled[FIRST]
    assert (end.verdict, end.reason) == (Verdict.REFUSED, Reason.BAD_SIGNATURE)
    assert not end.returns_delta, "the miner that has it may have brought it to the ledger"
    driver.feed(e.LinkUp(0))
    driver.tick(600_000)
    assert [update.digest for update in driver.state.updates] == [SECOND], "trained again on the same base"


def test_update_of_an_old_key_that_a_quorum_took_is_waited_for() -> None:
    driver = Driver()
    driver.ready()
    for miner in MINERS[:3]:
        driver.feed(e.ReceiptArrived(0, receipt(FIRST, 1, miner)))
    driver.disk[FIRST] = replace(driver.disk[FIRST], is_of_old_key=True)
    driver.restart()
    driver.feed(e.OutcomeArrived(driver.now_ms, outcome(FIRST, 1, 0)))
    assert driver.settled[FIRST].verdict is Verdict.MERGED


def test_restart_resumes_a_job_and_drops_a_finished_one() -> None:
    driver = Driver(withheld=frozenset({e.TrainLocally}))
    driver.ready()
    driver.job_base = 0
    assert kinds(driver.restart()) == ["TrainLocally"]
    driver.last_trained = 0
    assert kinds(driver.restart()) == ["DropJob"]


def test_restarted_device_waits_a_moment_for_a_newer_model() -> None:
    driver = Driver()
    driver.installed, driver.floor = e.Model(3, root(3)), 3
    assert driver.restart() == []
    driver.feed(e.LinkUp(0))
    effects = driver.feed(e.ModelAnnounced(0, NOW_S, announcement(9)))
    assert kinds(effects)[:1] == ["FetchModel"]
    driver.tick(2_000)
    assert [effect.base_version for effect in driver.of(e.TrainLocally) if isinstance(effect, e.TrainLocally)] == [9]


# --- models ---


def refused(driver: Driver, kind: str) -> bool:
    reports = [effect for effect in driver.of(e.Report) if isinstance(effect, e.Report)]
    return [report.kind for report in reports] == [f"model.refused.{kind}"] and driver.installed == e.Model(2, root(2))


@pytest.fixture
def at_two() -> Driver:
    driver = Driver()
    driver.ready(2)
    driver.effects.clear()
    return driver


def test_highest_version_wins(at_two: Driver) -> None:
    driver = Driver(withheld=frozenset({e.FetchModel}))
    driver.restart()
    for version, miner in ((3, MINERS[0]), (5, MINERS[1]), (4, MINERS[2])):
        driver.feed(e.ModelAnnounced(0, NOW_S, announcement(version, miner)))
    driver.feed(e.ModelFailed(0, 3, "gone"))
    fetched = [effect.model.version for effect in driver.of(e.FetchModel) if isinstance(effect, e.FetchModel)]
    assert fetched == [3, 5]


def test_older_version_is_never_installed(at_two: Driver) -> None:
    for version in (0, 1, 2):
        at_two.feed(e.ModelAnnounced(0, NOW_S, announcement(version, MINERS[1])))
    assert at_two.of(e.FetchModel) == []
    assert at_two.installed == e.Model(2, root(2))


def test_certificate_below_quorum(at_two: Driver) -> None:
    weak = CHAIN_OF.certify(3, root(3), signers=MINERS[:2], expiry_s=NOW_S + 3_600)
    at_two.feed(e.ModelAnnounced(0, NOW_S, announcement(3, certificate=weak)))
    assert refused(at_two, "quorum")


def test_certificate_of_another_chain(at_two: Driver) -> None:
    good = announcement(3)
    assert good.certificate is not None
    statement = replace(good.certificate.statement, chain_id=ChainId("other"))
    at_two.feed(e.ModelAnnounced(0, NOW_S, replace(good, certificate=replace(good.certificate, statement=statement))))
    assert refused(at_two, "chain")


def test_certificate_of_another_version(at_two: Driver) -> None:
    at_two.feed(e.ModelAnnounced(0, NOW_S, replace(announcement(3), version=4)))
    assert refused(at_two, "version")


def test_missing_certificate(at_two: Driver) -> None:
    at_two.feed(e.ModelAnnounced(0, NOW_S, announcement(3, certificate=None)))
    assert refused(at_two, "missing")


def test_other_artifact(at_two: Driver) -> None:
    at_two.feed(e.ModelAnnounced(0, NOW_S, announcement(3, artifact_digest=Digest(b"\1" * 32))))
    assert refused(at_two, "artifact")


@pytest.mark.parametrize(
    ("time_s", "kind"),
    [
        (NOW_S + 10 * 365 * 86_400, "expired"),
        (NOW_S - 10 * 365 * 86_400, "clock"),
        (0, "clock"),
    ],
)
def test_clock_years_off_keeps_the_model(at_two: Driver, time_s: int, kind: str) -> None:
    at_two.feed(e.ModelAnnounced(0, time_s, announcement(3)))
    assert refused(at_two, kind)
    at_two.effects.clear()
    at_two.feed(e.ModelAnnounced(0, NOW_S, announcement(3)))  # the clock is right again
    assert at_two.installed == e.Model(3, root(3))


def test_failed_fetch_is_retried_elsewhere_and_later(at_two: Driver) -> None:
    """A true certificate beside a false blob digest: only this miner's offer is set back."""
    at_two.withheld = frozenset({e.FetchModel})
    at_two.feed(e.ModelAnnounced(0, NOW_S, announcement(3, MINERS[0], model_digest=Digest(b"\2" * 32))))
    at_two.feed(e.ModelAnnounced(0, NOW_S, announcement(3, MINERS[1])))
    at_two.feed(e.ModelFailed(0, 3, "model root does not match"))
    asked = [effect.announcement.miner_id for effect in at_two.of(e.FetchModel) if isinstance(effect, e.FetchModel)]
    assert asked == [MINERS[0], MINERS[1]]
    at_two.feed(e.ModelFailed(0, 3, "truncated"))
    assert at_two.installed == e.Model(2, root(2))
    at_two.tick(1_000)
    assert len(at_two.of(e.FetchModel)) == 3


def test_lost_newest_model_is_fetched_again_but_none_older() -> None:
    driver = Driver(installed=e.Model(1, root(1)), floor=2)  # rolled back to the other slot
    driver.restart()
    driver.feed(e.ModelAnnounced(0, NOW_S, announcement(1)))
    assert driver.of(e.FetchModel) == []
    driver.feed(e.ModelAnnounced(0, NOW_S, announcement(2, MINERS[1])))
    assert driver.installed == e.Model(2, root(2))


# --- arithmetic ---


def test_ranges() -> None:
    assert add_ranges(((0, 5), (10, 20)), ((5, 10), (30, 40))) == ((0, 20), (30, 40))
    assert subtract_ranges(((0, 10), (20, 30)), ((5, 25),)) == ((0, 5), (25, 30))
    assert subtract_ranges(((0, 10),), ((0, 10),)) == ()
    assert subtract_ranges(((0, 10),), ()) == ((0, 10),)


def test_backoff_doubles_within_its_bounds_and_differs_between_devices() -> None:
    pauses = [backoff_ms(1_000, 60_000, attempt, b"a") for attempt in range(40)]
    for attempt, pause in enumerate(pauses):
        whole = min(60_000, 1_000 * 2**attempt)
        assert whole // 2 <= pause <= whole
    assert len({backoff_ms(1_000, 60_000, 0, bytes([device])) for device in range(50)}) > 40
