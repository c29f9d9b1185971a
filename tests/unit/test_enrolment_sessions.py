"""Copied cards: what alternating sessions prove, and what they do not."""

from coordinator.enrolment.sessions import STRAYS, SessionWatch
from edge_sdk.protocol.ids import DeviceId
from edge_sdk.protocol.messages import Algorithm, PublicKey, Status

D1 = DeviceId("d1")
KEY = PublicKey(algorithm=Algorithm.EDDSA, data=bytes(32))
RUN = 2**20


def births(watch: SessionWatch, *sessions: int, key: PublicKey = KEY, online: bool = True) -> list[str]:
    """Evidence found while a device reports these sessions."""
    statuses = [Status(sender=D1, session=n, online=online, installed_version=0, note="") for n in sessions]
    return [found for found in (watch.observe(D1, key, status) for status in statuses) if found is not None]


def test_one_board_is_never_suspected() -> None:
    watch = SessionWatch()
    one = [run * RUN + 777 + at for run in range(1, 6) for at in range(5)]
    assert births(watch, *one) == []
    assert births(watch, *one[-5:], *one[-5:]) == []  # a retained status, and births repeated after an install


def test_two_boards_that_take_each_others_session() -> None:
    """The copy started one run later: every new session of the first board lies below."""
    watch = SessionWatch()
    (evidence,) = births(watch, RUN + 5, 2 * RUN + 9, RUN + 6, 2 * RUN + 10, RUN + 7, 2 * RUN + 11, RUN + 8)
    assert evidence == f"sessions {RUN + 6}, {RUN + 7}, {RUN + 8} began after session {2 * RUN + 11}"


def test_two_boards_in_the_same_run_differ_by_their_offset() -> None:
    watch = SessionWatch()
    found = births(watch, *(number for at in range(STRAYS + 1) for number in (RUN + 90_000 + at, RUN + 400 + at)))
    assert len(found) == 1


def test_late_messages_of_another_broker_are_no_evidence() -> None:
    watch = SessionWatch()
    assert births(watch, RUN + 1, 2 * RUN, RUN + 2, RUN + 3, RUN + 2, RUN + 3) == []


def test_wills_and_old_keys_do_not_count() -> None:
    watch = SessionWatch()
    assert births(watch, 5 * RUN) == []
    assert births(watch, *range(RUN, RUN + 10), online=False) == []
    other = PublicKey(algorithm=Algorithm.EDDSA, data=bytes(31) + b"\x01")
    assert births(watch, RUN, RUN + 1, RUN + 2, RUN + 3, key=other) == []  # a new key starts anew
