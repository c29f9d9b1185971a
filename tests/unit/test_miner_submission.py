"""Level-triggered submission and the timers: nothing is forgotten, nothing is said too early or for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from coordinator.application import Application
from coordinator.deadlines import RENEWAL_LOOK_S, Deadlines
from coordinator.ledger.state import State
from coordinator.ordering.rpc import Submission
from coordinator.rounds import MergeBlock, duties
from coordinator.submission import Submitter
from edge_sdk.errors import TransportError
from edge_sdk.protocol.ids import MinerId
from edge_sdk.protocol.messages import Domain, Phase, Reason
from tests.support.chain import CREATED_S, PARAMS, Names, Runner, scores


class Engine:
    """An ordering engine whose answers a test scripts; the last one repeats."""

    def __init__(self, *answers: Reason | TransportError) -> None:
        self.answers = list(answers)
        self.calls: list[bytes] = []
        self.state = State.initial(Names().genesis)

    async def submit(self, tx: bytes) -> Submission:
        self.calls.append(tx)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, TransportError):
            raise answer
        return Submission(code=int(answer), info="", digest=b"")


def run_with(engine: Engine, test: Callable[[Submitter], Awaitable[None]]) -> None:
    async def scenario() -> None:
        submitter = Submitter(engine.submit, lambda: engine.state)
        running = asyncio.create_task(submitter.run())
        await test(submitter)
        running.cancel()

    asyncio.run(scenario())


async def until(is_true: Callable[[], bool]) -> None:
    for _ in range(1_000):
        if is_true():
            return
        await asyncio.sleep(0.005)
    raise TimeoutError


@pytest.mark.parametrize("steps", range(6))
def test_cancellation_counts_also_in_the_moment_of_a_wake(steps: int) -> None:
    """A miner whose disk is full must end, and it ends by cancelling its loops."""

    async def scenario() -> None:
        engine = Engine(TransportError("down"))
        submitter = Submitter(engine.submit, lambda: engine.state)
        running = asyncio.create_task(submitter.run())
        submitter.want("key", b"tx", lambda _state: False)
        await until(lambda: len(engine.calls) == 2)
        await asyncio.sleep(0.02)  # it waits for its next try now
        submitter.want("other", b"tx", lambda _state: False)
        for _ in range(steps):
            await asyncio.sleep(0)
        running.cancel()
        await asyncio.wait({running}, timeout=5)
        assert running.cancelled()

    asyncio.run(scenario())


def test_a_transaction_is_handed_in_until_the_engine_answers() -> None:
    engine = Engine(TransportError("down"), TransportError("down"), Reason.NONE)

    async def test(submitter: Submitter) -> None:
        submitter.want("key", b"tx", lambda _state: False)
        await until(lambda: len(engine.calls) == 3)
        await asyncio.sleep(0.1)
        assert engine.calls == [b"tx"] * 3  # taken: the ledger now has its time

    run_with(engine, test)


def test_what_the_state_shows_is_not_wanted() -> None:
    engine = Engine(Reason.NONE)

    async def test(submitter: Submitter) -> None:
        submitter.want("done", b"tx", lambda _state: True)
        submitter.want("later", b"tx", lambda state: state.height == 1, is_ready=lambda _state: False)
        assert "done" not in submitter
        assert "later" in submitter
        engine.state = replace(engine.state, core=replace(engine.state.core, height=1))
        submitter.observe(engine.state)
        assert "later" not in submitter
        await asyncio.sleep(0.02)
        assert engine.calls == []

    run_with(engine, test)


def test_a_key_is_wanted_once() -> None:
    engine = Engine(Reason.NONE)

    async def test(submitter: Submitter) -> None:
        submitter.want("key", b"first", lambda _state: False)
        submitter.want("key", b"second", lambda _state: False)
        await until(lambda: len(engine.calls) == 1)
        assert engine.calls == [b"first"]

    run_with(engine, test)


def test_readiness_opens_with_a_new_height() -> None:
    engine = Engine(Reason.NONE)

    async def test(submitter: Submitter) -> None:
        submitter.want("key", b"tx", lambda _state: False, is_ready=lambda state: state.height == 1)
        await asyncio.sleep(0.02)
        assert engine.calls == []
        engine.state = replace(engine.state, core=replace(engine.state.core, height=1))
        submitter.observe(engine.state)
        await until(lambda: len(engine.calls) == 1)

    run_with(engine, test)


def test_a_permanent_refusal_gives_up() -> None:
    engine = Engine(Reason.CAPACITY, Reason.REVOKED_DEVICE)
    reasons: list[Reason] = []

    def on_refused(reason: Reason) -> bool:
        reasons.append(reason)
        return reason is Reason.REVOKED_DEVICE

    async def test(submitter: Submitter) -> None:
        submitter.want("key", b"tx", lambda _state: False, on_refused=on_refused)
        await until(lambda: len(reasons) == 2)
        await asyncio.sleep(0.15)
        assert reasons == [Reason.CAPACITY, Reason.REVOKED_DEVICE]
        assert "key" not in submitter

    run_with(engine, test)


def test_a_refusal_is_tried_again_at_once_after_a_height() -> None:
    engine = Engine(Reason.WRONG_PHASE)

    async def test(submitter: Submitter) -> None:
        submitter.want("key", b"tx", lambda _state: False)
        await until(lambda: len(engine.calls) >= 4)  # the pause has grown to 0.4 s
        count = len(engine.calls)
        submitter.observe(engine.state)
        await asyncio.sleep(0.1)
        assert len(engine.calls) > count

    run_with(engine, test)


# --- deadlines ---


def advance(application: Application, *txs: bytes) -> None:
    height = application.state.height + 1
    application.commit(application.finalize(height, CREATED_S + height, txs))


def pending_chain(names: Names) -> Application:
    application = Application(names.genesis)
    update = names.update("device-1", 0)
    advance(application, names.enrol("device-1"))
    advance(application, update)
    for miner in names.miners:
        advance(application, names.receipt(miner, update, "device-1", 0))
    return application


def test_nothing_is_ticked_before_the_first_certificate() -> None:
    names = Names()
    deadlines = Deadlines(names.miners[0], PARAMS)
    state = State.initial(names.genesis)
    assert [deadlines.remaining_s(state, float(now), time_s=CREATED_S) for now in (0, 10, 1000)] == [None] * 3


def test_tau_counts_from_the_opening_of_the_block() -> None:
    names = Names()
    deadlines = Deadlines(names.miners[0], PARAMS)
    deadlines.remaining_s(State.initial(names.genesis), 50.0, time_s=CREATED_S)
    state = pending_chain(names).state
    assert deadlines.remaining_s(state, 50.25, time_s=CREATED_S) == 0.75
    assert deadlines.remaining_s(state, 51.5, time_s=CREATED_S) == 0.0
    tick = deadlines.tick(state)
    assert (tick.block_index, tick.phase, tick.attempt) == (1, Phase.COLLECT, 0)


def test_a_new_phase_starts_the_timer_again_and_a_tick_stops_it() -> None:
    names = Names()
    application = pending_chain(names)
    deadlines = Deadlines(names.miners[0], PARAMS)
    assert deadlines.remaining_s(application.state, 100.0, time_s=CREATED_S) == 1.0
    tick = deadlines.tick(application.state)
    ticks = [names.sign(replace(tick, miner_id=miner), Domain.TICK, miner) for miner in names.miners]
    advance(application, ticks[0])
    assert deadlines.remaining_s(application.state, 103.0, time_s=CREATED_S) is None  # ours is on the ledger
    assert Deadlines(MinerId("miner-1"), PARAMS).remaining_s(application.state, 103.0, time_s=CREATED_S) == 1.0
    advance(application, *ticks[1:])
    assert application.state.phase is Phase.COMMIT
    assert deadlines.remaining_s(application.state, 104.0, time_s=CREATED_S) == 1.0
    assert deadlines.remaining_s(application.state, 104.5, time_s=CREATED_S) == 0.5


def test_while_nothing_waits_the_calendar_asks_for_the_renewal_of_the_certificate() -> None:
    names = Names()
    runner = Runner(names)
    runner.ok(names.enrol("device-1"))
    runner.publish("device-1", 0)
    runner.ok(*(names.tick(miner, 1, Phase.COLLECT) for miner in names.miners))
    runner.score({miner: scores(500, 100) for miner in names.miners})
    (duty,) = duties(runner.app.state, names.miners[0], names.genesis)
    assert isinstance(duty, MergeBlock)
    runner.ok(*(names.vote(miner, duty.template) for miner in names.miners))
    deadlines = Deadlines(names.miners[0], PARAMS)
    due_s = duty.template.expiry_s - PARAMS.certificate_ttl_s // 3
    assert deadlines.remaining_s(runner.app.state, 100.0, time_s=due_s - 1) == RENEWAL_LOOK_S
    assert deadlines.remaining_s(runner.app.state, 100.0, time_s=due_s) == 0.0
    runner.ok(names.tick(names.miners[0], 2, Phase.COLLECT))
    assert deadlines.remaining_s(runner.app.state, 100.0, time_s=due_s) is None
