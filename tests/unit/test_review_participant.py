"""What a hostile miner, a power cut or an ill-timed message could do to a participant."""

from dataclasses import replace

import pytest

from edge_sdk.participant import events as e
from edge_sdk.participant.models import lowest_wanted
from edge_sdk.participant.state import State
from edge_sdk.protocol.digest import sha256
from edge_sdk.protocol.limits import ASSEMBLY_FRAGMENTS_MAX
from edge_sdk.protocol.messages import Reason
from tests.support.fake_miners import MINERS
from tests.support.participant import NOW_S, Driver, announcement, receipt, resume, root, rules

FIRST = sha256(b"update1")
EXPIRED_S = NOW_S + 3_601
"""After the certificates of ``announcement``."""


@pytest.mark.parametrize("reason", [Reason.FUTURE_BASE, Reason.QUOTA, Reason.CAPACITY, Reason.DIGEST_MISMATCH])
def test_refusals_that_may_pass_do_not_end_an_update(reason: Reason) -> None:
    """A repetition that is still with the broker may be stored next: the delta would be merged and used again."""
    driver = Driver()
    driver.ready()
    for miner in MINERS:
        driver.feed(e.ReceiptArrived(0, receipt(FIRST, 1, miner, reason)))
    assert driver.settled == {}
    for miner in MINERS[:3]:
        driver.feed(e.ReceiptArrived(1, receipt(FIRST, 1, miner)))
    assert driver.tick(9_000) == []  # confirmed: only its certified outcome ends it now


def test_a_refusal_that_passed_gives_way_to_a_lasting_one() -> None:
    driver = Driver()
    driver.ready()
    for reason in (Reason.CAPACITY, Reason.EXPIRED):
        for miner in MINERS[:3]:
            driver.feed(e.ReceiptArrived(0, receipt(FIRST, 1, miner, reason)))
    end = driver.settled[FIRST]
    assert (end.reason, end.returns_delta) == (Reason.EXPIRED, True)


def confirmed(expiry_height: int, age_ms_max: int) -> Driver:
    driver = Driver(state=State(rules=rules(outbox_age_ms_max=age_ms_max)))
    driver.ready()
    for miner in MINERS[:3]:
        driver.feed(e.ReceiptArrived(0, receipt(FIRST, 1, miner)))
    update = replace(driver.state.updates[0], expiry_height=expiry_height)
    driver.state = replace(driver.state, updates=(update,))
    return driver


def test_a_stored_update_waits_for_its_outcome_while_the_ledger_may_take_it() -> None:
    driver = confirmed(expiry_height=50, age_ms_max=60_000)
    driver.tick(120_000)
    assert driver.settled == {}


def test_a_stored_update_without_any_outcome_does_not_hold_its_place_for_ever() -> None:
    """It may have been merged, so its delta must not come back."""
    driver = confirmed(expiry_height=50, age_ms_max=60_000)
    driver.tick(60_001)
    for miner in MINERS[:2]:
        driver.feed(e.ModelAnnounced(driver.now_ms, NOW_S, announcement(0, miner, height=51)))
    assert (driver.settled[FIRST].reason, driver.settled[FIRST].returns_delta) == (Reason.TIMEOUT, False)
    assert driver.state.updates == ()


def test_the_floor_holds_after_a_power_cut_between_slot_and_floor() -> None:
    driver = Driver()
    driver.installed, driver.floor, driver.last_trained = e.Model(5, root(5)), 3, 5
    driver.restart()
    assert driver.state.version_floor == 5
    assert lowest_wanted(driver.state) == 6
    assert not any(
        isinstance(effect, e.FetchModel)
        for version in (4, 5)
        for effect in driver.feed(e.ModelAnnounced(0, NOW_S, announcement(version)))
    )


def test_an_offer_whose_certificate_expires_is_not_tried_again() -> None:
    driver = Driver(withheld=frozenset({e.FetchModel}))
    driver.restart()
    driver.feed(e.ModelAnnounced(0, NOW_S, announcement(1)))
    driver.feed(e.ModelFailed(0, 1, "no miner has it"))
    driver.feed(e.ModelAnnounced(0, EXPIRED_S, announcement(1)))
    assert driver.state.offers == ()
    assert not any(isinstance(effect, e.FetchModel) for effect in driver.tick(3_600_000))


def test_a_model_whose_certificate_expired_in_the_queue_is_not_installed() -> None:
    driver = Driver(withheld=frozenset({e.SelfTest}))
    driver.restart()
    driver.feed(e.ModelAnnounced(0, NOW_S, announcement(1)))
    driver.feed(e.ModelAnnounced(0, EXPIRED_S, announcement(1)))
    after = driver.feed(e.ModelTested(0, 1))
    assert [effect.kind for effect in after if isinstance(effect, e.Report)] == ["model.failed"]
    assert driver.of(e.InstallModel) == []


def test_a_miner_that_asks_for_crumbs_cannot_fill_the_memory() -> None:
    driver = Driver(blob_bytes=1_000_000)
    driver.ready()
    driver.now_ms = 5_000
    for start in range(0, 100_000, 128):
        crumbs = tuple((offset, offset + 1) for offset in range(start, start + 128, 2))
        driver.feed(e.ResumeArrived(driver.now_ms, resume(FIRST, *crumbs)))
    (update,) = driver.state.updates
    assert len(update.wanted) <= ASSEMBLY_FRAGMENTS_MAX
