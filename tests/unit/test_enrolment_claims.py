import sqlite3
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from coordinator.enrolment import store_file
from coordinator.enrolment.authority import DeviceRequest
from coordinator.enrolment.claims import TTL_S_MAX, ClaimStore
from coordinator.enrolment.records import EnrolmentRefusedError, Member, MemberStatus, Refusal
from edge_sdk.adapters.enrolment import Wait
from edge_sdk.errors import CorruptStoreError, StoreError
from edge_sdk.protocol.ids import DeviceId
from tests.support.enrolment import NOW_S, Issuer, make_request

D1 = DeviceId("d1")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ClaimStore]:
    store = ClaimStore.open(tmp_path / "claims.sqlite3")
    yield store
    store.close()


@pytest.fixture
def issuer() -> Issuer:
    return Issuer()


def claim(store: ClaimStore, device_id: DeviceId = D1) -> str:
    return store.issue_claim(device_id, now_s=NOW_S, ttl_s=3_600)


def refusal_of(store: ClaimStore, token: str, issuer: Issuer, *, name: str = "d1", now_s: int = NOW_S) -> Refusal:
    with pytest.raises(EnrolmentRefusedError) as caught:
        store.redeem(token, make_request(name), issue=issuer, now_s=now_s)
    return caught.value.refusal


def admit(store: ClaimStore, issuer: Issuer, key: Ed25519PrivateKey | None = None) -> Member:
    return store.redeem(claim(store), make_request("d1", key), issue=issuer, now_s=NOW_S)


def test_claim_admits_its_device(store: ClaimStore, issuer: Issuer) -> None:
    request = make_request()
    member = store.redeem(claim(store), request, issue=issuer, now_s=NOW_S)
    assert (member.status, member.serial, member.key, member.settled) == (
        MemberStatus.ENROLLED,
        1,
        request.key,
        False,
    )
    assert store.member(D1) == member
    assert store.unsettled() == [member]
    assert [one.used_s for one in store.claims()] == [NOW_S]


def test_token_is_not_in_the_file(store: ClaimStore, tmp_path: Path) -> None:
    token = claim(store)
    content = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert D1.encode() in content
    assert token.encode() not in content
    assert stat.S_IMODE((tmp_path / "claims.sqlite3").stat().st_mode) == 0o600


def test_lost_answer_is_given_again(store: ClaimStore, issuer: Issuer) -> None:
    token, request = claim(store), make_request()
    first = store.redeem(token, request, issue=issuer, now_s=NOW_S)
    assert store.redeem(token, request, issue=issuer, now_s=NOW_S + 1) == first
    assert issuer.count == 1
    assert store.alarms() == []


def test_second_key_raises_an_alarm_and_holds_the_device(store: ClaimStore, issuer: Issuer) -> None:
    token = claim(store)
    first = store.redeem(token, make_request(), issue=issuer, now_s=NOW_S)
    assert refusal_of(store, token, issuer) is Refusal.REUSED_CLAIM
    held = store.member(D1)
    assert held is not None
    assert (held.status, held.settled) == (MemberStatus.HELD, False)
    assert [(alarm.device_id, alarm.kind) for alarm in store.alarms()] == [(D1, Refusal.REUSED_CLAIM)]
    assert store.revoked_certificates(now_s=NOW_S) == [first.certificate_number]


def test_held_device_cannot_use_its_old_claim(store: ClaimStore, issuer: Issuer) -> None:
    token, request = claim(store), make_request()
    store.redeem(token, request, issue=issuer, now_s=NOW_S)
    refusal_of(store, token, issuer)
    with pytest.raises(EnrolmentRefusedError) as caught:
        store.redeem(token, request, issue=issuer, now_s=NOW_S)
    assert caught.value.refusal is Refusal.NOT_ENROLLED


def test_claim_of_another_device_is_an_alarm_and_stays_good(store: ClaimStore, issuer: Issuer) -> None:
    token = claim(store)
    assert refusal_of(store, token, issuer, name="d2") is Refusal.OTHER_DEVICE
    assert [alarm.kind for alarm in store.alarms()] == [Refusal.OTHER_DEVICE]
    assert store.member(DeviceId("d2")) is None
    assert store.redeem(token, make_request(), issue=issuer, now_s=NOW_S).serial == 1


def test_claims_that_are_no_good(store: ClaimStore, issuer: Issuer) -> None:
    token = claim(store)
    assert refusal_of(store, "guess", issuer) is Refusal.UNKNOWN_CLAIM
    assert refusal_of(store, token, issuer, now_s=NOW_S + 3_600) is Refusal.EXPIRED_CLAIM
    claim(store)  # withdraws the first
    assert refusal_of(store, token, issuer) is Refusal.UNKNOWN_CLAIM
    assert issuer.count == 0
    assert store.alarms() == []


@pytest.mark.parametrize("ttl_s", [0, -1, TTL_S_MAX + 1])
def test_life_of_a_claim_is_bounded(store: ClaimStore, ttl_s: int) -> None:
    with pytest.raises(ValueError, match="ttl_s"):
        store.issue_claim(D1, now_s=NOW_S, ttl_s=ttl_s)


def test_failure_while_issuing_leaves_the_claim_unused(store: ClaimStore, issuer: Issuer) -> None:
    token = claim(store)

    def fail() -> None:
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        store.redeem(token, make_request(), issue=fail, now_s=NOW_S)  # type: ignore[arg-type]
    assert store.member(D1) is None
    assert store.redeem(token, make_request(), issue=issuer, now_s=NOW_S).serial == 1


def test_renewal_with_the_same_key_changes_no_serial(store: ClaimStore, issuer: Issuer) -> None:
    key = Ed25519PrivateKey.generate()
    member = admit(store, issuer, key)
    store.mark_settled(member)
    renewed = store.renew(make_request("d1", key), current=member.key, issue=issuer)
    assert (renewed.serial, renewed.settled) == (1, True)
    assert renewed.certificate_number != member.certificate_number
    assert store.revoked_certificates(now_s=NOW_S) == []


def test_new_key_raises_the_serial_and_ends_the_old_certificate(store: ClaimStore, issuer: Issuer) -> None:
    member = admit(store, issuer)
    store.mark_settled(member)
    renewed = store.renew(make_request(), current=member.key, issue=issuer)
    assert (renewed.serial, renewed.settled) == (2, False)
    assert store.revoked_certificates(now_s=NOW_S) == [member.certificate_number]


def test_renewal_needs_the_present_key(store: ClaimStore, issuer: Issuer) -> None:
    member = admit(store, issuer)
    store.renew(make_request(), current=member.key, issue=issuer)
    for device, current in (("d1", member.key), ("d2", member.key)):
        with pytest.raises(EnrolmentRefusedError) as caught:
            store.renew(make_request(device), current=current, issue=issuer)
        assert caught.value.refusal is Refusal.NOT_ENROLLED


def test_revoked_device_stays_out_until_a_new_claim(store: ClaimStore, issuer: Issuer) -> None:
    key = Ed25519PrivateKey.generate()
    member = admit(store, issuer, key)
    open_claim = claim(store)
    revoked = store.revoke(D1, now_s=NOW_S)
    assert revoked is not None
    assert (revoked.status, revoked.settled) == (MemberStatus.REVOKED, False)
    assert refusal_of(store, open_claim, issuer) is Refusal.UNKNOWN_CLAIM
    with pytest.raises(EnrolmentRefusedError):
        store.renew(make_request("d1", key), current=member.key, issue=issuer)
    back = admit(store, issuer, key)
    assert (back.status, back.serial) == (MemberStatus.ENROLLED, 2)
    assert store.revoke(DeviceId("stranger"), now_s=NOW_S) is None


def test_settling_counts_for_the_state_that_was_seen_only(store: ClaimStore, issuer: Issuer) -> None:
    member = admit(store, issuer)
    store.revoke(D1, now_s=NOW_S)
    store.mark_settled(member)  # an answer that was under way meanwhile
    assert [one.status for one in store.unsettled()] == [MemberStatus.REVOKED]


def test_expired_certificates_leave_the_revocation_list(store: ClaimStore, issuer: Issuer) -> None:
    member = admit(store, issuer)
    store.revoke(D1, now_s=NOW_S)
    assert store.revoked_certificates(now_s=member.expiry_s - 1) == [member.certificate_number]
    assert store.revoked_certificates(now_s=member.expiry_s) == []


def test_everything_survives_a_restart(store: ClaimStore, issuer: Issuer, tmp_path: Path) -> None:
    token = claim(store)
    member = store.redeem(token, make_request(), issue=issuer, now_s=NOW_S)
    refusal_of(store, token, issuer)
    again = ClaimStore.open(tmp_path / "claims.sqlite3")
    found = again.member(D1)
    assert found is not None
    assert (found.key, found.status) == (member.key, MemberStatus.HELD)
    assert again.alarms() == store.alarms()
    again.close()


def test_of_many_keys_at_once_one_gets_in(store: ClaimStore, issuer: Issuer, tmp_path: Path) -> None:
    token = claim(store)
    requests = [make_request() for _ in range(8)]
    refused: list[Refusal] = []
    start = threading.Barrier(len(requests))

    def bring(index: int) -> None:
        own = ClaimStore.open(tmp_path / "claims.sqlite3")
        start.wait()
        try:
            own.redeem(token, requests[index], issue=Issuer(), now_s=NOW_S)
        except EnrolmentRefusedError as error:
            refused.append(error.refusal)
        finally:
            own.close()

    threads = [threading.Thread(target=bring, args=(index,)) for index in range(len(requests))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert refused == [Refusal.REUSED_CLAIM] * (len(requests) - 1)
    held = store.member(D1)
    assert held is not None
    assert held.status is MemberStatus.HELD


def test_foreign_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("not a database at all, but long enough to be looked at" * 50)
    with pytest.raises(CorruptStoreError):
        ClaimStore.open(tmp_path / "text")
    other = sqlite3.connect(tmp_path / "other.sqlite3")
    other.execute("PRAGMA user_version = 77")
    other.commit()
    other.close()
    with pytest.raises(CorruptStoreError, match="version 77"):
        ClaimStore.open(tmp_path / "other.sqlite3")
    with pytest.raises(StoreError):
        ClaimStore.open(tmp_path / "missing" / "claims.sqlite3")


def test_same_board_gets_its_answer_after_the_end_of_the_claim(store: ClaimStore, issuer: Issuer) -> None:
    """Its first answer was lost, and it was off for a week."""
    token, request = store.issue_claim(D1, now_s=NOW_S, ttl_s=60), make_request()
    first = store.redeem(token, request, issue=issuer, now_s=NOW_S)
    assert store.redeem(token, request, issue=issuer, now_s=NOW_S + 7 * 86_400) == first
    assert issuer.count == 1


def held(store: ClaimStore, issuer: Issuer) -> tuple[str, DeviceRequest]:
    """A device whose claim came from two boards; its token and the first board's request."""
    token, request = store.issue_claim(D1, now_s=NOW_S, ttl_s=60), make_request()
    store.redeem(token, request, issue=issuer, now_s=NOW_S)
    with pytest.raises(EnrolmentRefusedError):
        store.redeem(token, make_request(), issue=issuer, now_s=NOW_S)
    return token, request


def test_released_device_keeps_key_and_certificate_and_the_copy_stays_out(store: ClaimStore, issuer: Issuer) -> None:
    token, request = held(store, issuer)
    released = store.release(D1, now_s=NOW_S + 1)
    assert released is not None
    assert (released.status, released.serial, released.key) == (MemberStatus.ENROLLED, 2, request.key)
    assert not released.settled
    assert store.revoked_certificates(now_s=NOW_S) == []
    assert [alarm.cleared_s for alarm in store.alarms()] == [NOW_S + 1]
    with pytest.raises(EnrolmentRefusedError) as caught:
        store.redeem(token, make_request(), issue=issuer, now_s=NOW_S + 2)
    assert caught.value.refusal is Refusal.UNKNOWN_CLAIM
    member = store.member(D1)
    assert member is not None
    assert member.status is MemberStatus.ENROLLED
    assert store.release(D1, now_s=NOW_S + 3) is None


def test_alarm_that_comes_again_is_counted(store: ClaimStore, issuer: Issuer) -> None:
    token, _ = held(store, issuer)
    for later in (1, 2):
        with pytest.raises(EnrolmentRefusedError):
            store.redeem(token, make_request(), issue=issuer, now_s=NOW_S + later)
    (alarm,) = store.alarms()
    assert (alarm.count, alarm.time_s, alarm.last_s) == (3, NOW_S, NOW_S + 2)
    (attempt,) = store.attempts()
    assert (attempt.refusal, attempt.count) == (Refusal.REUSED_CLAIM, 3)


def test_key_of_two_boards_never_comes_back(store: ClaimStore, issuer: Issuer) -> None:
    token, request = store.issue_claim(D1, now_s=NOW_S, ttl_s=60), make_request()
    store.redeem(token, request, issue=issuer, now_s=NOW_S)
    assert not store.hold_clone(D1, make_request().key, "another key", now_s=NOW_S)
    assert store.hold_clone(D1, request.key, "evidence", now_s=NOW_S)
    assert not store.hold_clone(D1, request.key, "evidence", now_s=NOW_S)
    with pytest.raises(EnrolmentRefusedError):
        store.release(D1, now_s=NOW_S)
    again = store.issue_claim(D1, now_s=NOW_S, ttl_s=60)
    with pytest.raises(EnrolmentRefusedError) as caught:
        store.redeem(again, request, issue=issuer, now_s=NOW_S)
    assert caught.value.refusal is Refusal.CLONED_KEY
    fresh = store.redeem(again, make_request(), issue=issuer, now_s=NOW_S, waited={Wait.CLOCK: 5})
    assert (fresh.status, fresh.serial) == (MemberStatus.ENROLLED, 2)
    assert [(one.device_id, one.waited) for one in store.arrivals()] == [(D1, "clock=5")]
    assert store.attempts() == []


def test_names_that_nobody_knows_fill_nothing(store: ClaimStore, issuer: Issuer) -> None:
    for number in range(5):
        with pytest.raises(EnrolmentRefusedError):
            store.redeem("guess", make_request(f"stranger-{number}"), issue=issuer, now_s=NOW_S)
    assert store.attempts() == []


def test_file_of_the_first_version_keeps_its_members(tmp_path: Path, issuer: Issuer) -> None:
    path = tmp_path / "old.sqlite3"
    old = sqlite3.connect(path)
    old.executescript(store_file.STEPS[0])
    old.execute("PRAGMA user_version = 1")
    old.execute("INSERT INTO alarms VALUES (1, 7, 'd1', 'reused-claim', 'note')")
    old.commit()
    old.close()
    store = ClaimStore.open(path)
    try:
        (alarm,) = store.alarms()
        assert (alarm.time_s, alarm.last_s, alarm.count, alarm.cleared_s) == (7, 7, 1, None)
        store.redeem(store.issue_claim(D1, now_s=NOW_S, ttl_s=60), make_request(), issue=issuer, now_s=NOW_S)
    finally:
        store.close()
