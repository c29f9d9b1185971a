"""What holds for a participant whatever the network, the miners and the power do."""

from dataclasses import dataclass
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.participant import events as e
from edge_sdk.participant.machine import apply, next_due_ms
from edge_sdk.participant.state import Ranges, Sending, add_ranges, subtract_ranges
from edge_sdk.protocol.digest import sha256
from edge_sdk.protocol.messages import Reason, Verdict
from tests.support.fake_miners import MINERS
from tests.support.participant import NOW_S, Driver, announcement, outcome, receipt, resume, root

REASONS = (Reason.STALE, Reason.QUALITY, Reason.BASE_REUSED, Reason.FUTURE_BASE)


@dataclass(frozen=True)
class Action:
    """Something that happens to a device; ``a`` and ``b`` choose which."""

    kind: str
    a: int
    b: int


ACTIONS = st.builds(
    Action,
    st.sampled_from(
        ("receipt", "refusal", "outcome", "refused", "offer", "resume", "tick", "restart", "down", "up", "ack", "mode")
    ),
    st.integers(0, 7),
    st.integers(0, 3),
)


def play(driver: Driver, action: Action) -> None:  # noqa: C901 - one case per action
    """One action, on the update or version that it names; most name something that is not there."""
    seq, miner, now = action.a + 1, MINERS[action.b], driver.now_ms
    digest = sha256(b"update%d" % seq)
    saved = driver.disk.get(digest)
    base = 0 if saved is None else saved.base_version
    match action.kind:
        case "receipt":
            driver.feed(e.ReceiptArrived(now, receipt(digest, seq, miner)))
        case "refusal":
            driver.feed(e.ReceiptArrived(now, receipt(digest, seq, miner, REASONS[action.b])))
        case "outcome":
            driver.feed(e.OutcomeArrived(now, outcome(digest, seq, base)))
        case "refused":
            end = outcome(digest, seq, base, verdict=Verdict.REFUSED, reason=REASONS[action.b])
            driver.feed(e.OutcomeArrived(now, end))
        case "offer":
            driver.feed(e.ModelAnnounced(now, NOW_S, announcement(action.a, miner)))
        case "resume":
            driver.feed(e.ResumeArrived(now, resume(digest, (action.a * 1_000, action.a * 1_000 + 70_000))))
        case "tick":
            driver.tick(10 ** (action.b + 2))
        case "restart":
            driver.restart()
            driver.feed(e.LinkUp(now))
        case "down":
            driver.feed(e.LinkDown(now))
        case "up":
            driver.feed(e.LinkUp(now))
        case "ack":
            driver.feed(e.ChunkSent(now, digest))
        case "mode":
            driver.feed(e.ModeChanged(now, list(e.Mode)[action.b % 3]))


def check(driver: Driver, floor: int) -> None:
    """Invariants after each action."""
    state = driver.state
    assert driver.floor >= floor
    assert state.version_floor == driver.floor
    assert state.next_seq == driver.next_seq
    assert {update.digest for update in state.updates} == set(driver.disk)
    for update in state.updates:
        assert 0 <= update.open_chunks <= state.rules.chunk_window
        assert all(0 <= start < stop <= update.blob_bytes for start, stop in update.wanted)
        quorum = len(update.stored_by) >= 3
        assert (update.sending is Sending.CONFIRMED) == quorum


@given(st.lists(ACTIONS, max_size=60))
def test_invariants_under_any_history(actions: list[Action]) -> None:
    driver = Driver()
    driver.ready()
    for action in actions:
        floor = driver.floor
        play(driver, action)
        check(driver, floor)
    made = [effect for effect in driver.of(e.MakeUpdate) if isinstance(effect, e.MakeUpdate)]
    # One sequence number, one update; every update that was published had been stored first.
    assert [effect.seq for effect in made] == list(range(1, len(made) + 1))
    stored = {effect.digest for effect in driver.of(e.StoreInOutbox) if isinstance(effect, e.StoreInOutbox)}
    published = {effect.digest for effect in driver.of(e.PublishManifest) if isinstance(effect, e.PublishManifest)}
    assert published <= stored
    # A stored update is settled once or still there.
    assert stored == set(driver.disk) | set(driver.settled)
    assert not set(driver.disk) & set(driver.settled)
    for effect in driver.settled.values():
        assert not (effect.returns_delta and effect.verdict is Verdict.MERGED)


@given(st.lists(ACTIONS, max_size=40))
def test_whatever_happened_the_device_comes_back(actions: list[Action]) -> None:
    """After any history, honest miners and some time end every update and bring the newest model."""
    driver = Driver()
    driver.ready()
    for action in actions:
        play(driver, action)
    driver.feed(e.LinkUp(driver.now_ms))
    driver.feed(e.ModeChanged(driver.now_ms, e.Mode.TRAIN))
    driver.tick(600_000)
    for digest, saved in list(driver.disk.items()):
        driver.feed(e.OutcomeArrived(driver.now_ms, outcome(digest, saved.seq, saved.base_version)))
    newest = announcement(20)
    driver.feed(e.ModelAnnounced(driver.now_ms, NOW_S, newest))
    driver.tick(10_000)
    assert driver.installed == e.Model(20, root(20))
    assert driver.last_trained == 20


@given(st.lists(ACTIONS, max_size=30))
def test_step_is_a_function_and_ticks_are_finite(actions: list[Action]) -> None:
    """The same events give the same effects, and a tick that is done is not due again at once."""
    one, other = Driver(), Driver()
    for driver in (one, other):
        driver.ready()
        for action in actions:
            play(driver, action)
    assert one.effects == other.effects
    state, _ = apply(one.state, e.Tick(one.now_ms))
    again, effects = apply(state, e.Tick(one.now_ms))
    assert effects == ()
    assert again == state
    due = next_due_ms(again, one.now_ms)
    assert due is None or due > one.now_ms


RANGES = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=6)


@given(RANGES, RANGES)
def test_ranges_are_sets_of_bytes(one: list[tuple[int, int]], other: list[tuple[int, int]]) -> None:
    def members(ranges: Ranges) -> set[int]:
        return {byte for start, stop in ranges for byte in range(start, stop)}

    left, right = add_ranges(tuple(one), ()), add_ranges(tuple(other), ())
    assert members(add_ranges(left, right)) == members(left) | members(right)
    assert members(subtract_ranges(left, right)) == members(left) - members(right)
    union = add_ranges(left, right)
    assert all(stop < start for (_, stop), (start, _) in pairwise(union))
