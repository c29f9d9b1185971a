"""What holds for every chain: medians inside the honest range, order and repetition without effect, replay equality."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.application import Application
from coordinator.ledger.registry import DeviceRecord, check_seq, use_seq
from coordinator.ledger.state import State
from coordinator.validation.verdict import RevealedScores, judge, lower_median
from edge_sdk.protocol.digest import sha256
from edge_sdk.protocol.ids import DeviceId, MinerId
from edge_sdk.protocol.limits import SEQ_WINDOW
from edge_sdk.protocol.messages import Phase, Reason, Scores
from tests.support.chain import CREATED_S, Names, Runner, scores, signer
from tests.support.chain_world import World

values = st.integers(-2, 1_000)
powers = st.integers(1, 50)


@given(
    honest=st.lists(st.tuples(values, powers), min_size=1, max_size=20),
    lies=st.lists(st.tuples(values, powers), max_size=20),
)
def test_the_median_lies_within_the_honest_range(honest: list[tuple[int, int]], lies: list[tuple[int, int]]) -> None:
    """As long as liars hold less than half of what was revealed."""
    power = sum(p for _, p in honest)
    admitted: list[tuple[int, int]] = []
    for lie in lies:
        if sum(p for _, p in admitted) + lie[1] < power:
            admitted.append(lie)
    median = lower_median([*honest, *admitted])
    assert min(v for v, _ in honest) <= median <= max(v for v, _ in honest)


@given(
    rows=st.lists(st.tuples(st.integers(0, 1_000), values), min_size=1, max_size=9),
    seed=st.integers(0, 1_000),
    margin=st.integers(0, 50),
)
def test_the_verdict_does_not_depend_on_the_order(rows: list[tuple[int, int]], seed: int, margin: int) -> None:
    revealed = [
        RevealedScores(
            miner_id=MinerId(f"m{i}"), power=1 + i % 3, scores=Scores(base=base, updates=(update,), classes=())
        )
        for i, (base, update) in enumerate(rows)
    ]
    shuffled = [revealed[i] for i in np.random.default_rng(seed).permutation(len(revealed))]
    one, other = judge(revealed, 0, margin_permille=margin), judge(shuffled, 0, margin_permille=margin)
    assert (one.reason, one.score, one.difference) == (other.reason, other.score, other.difference)
    assert set(one.outliers) == set(other.outliers)


@given(numbers=st.lists(st.tuples(st.integers(0, 200), st.integers(0, 3)), max_size=60))
def test_no_number_is_ever_used_twice(numbers: list[tuple[int, int]]) -> None:
    record = DeviceRecord(device_id=DeviceId("dev"), key=signer("dev").public_key, serial=1)
    used: dict[int, bytes] = {}
    for seq, face in numbers:
        digest = sha256(seq.to_bytes(4), bytes([face]))
        reason = check_seq(record, seq, digest)
        if reason is Reason.NONE:
            assert seq not in used
            used[seq] = digest
            record = use_seq(record, seq, digest)
        elif reason is Reason.DUPLICATE:
            assert used[seq] == digest
        elif reason is Reason.EQUIVOCATION:
            assert used[seq] != digest
        else:
            assert seq <= max(used) - SEQ_WINDOW
        assert len(record.recent) <= SEQ_WINDOW


@settings(max_examples=15)
@given(seed=st.integers(0, 10_000), repeat=st.integers(0, 3))
def test_order_and_repetition_of_the_miners_messages_change_no_decision(seed: int, repeat: int) -> None:
    rng = np.random.default_rng(seed)
    names = Names(4)

    def deliver(runner: Runner, txs: list[bytes]) -> None:
        shuffled = [txs[i] for i in rng.permutation(len(txs))] + [txs[i] for i in rng.integers(0, len(txs), repeat)]
        runner.height(*runner.app.prepare(shuffled))

    def chain() -> State:
        runner = Runner(names)
        deliver(runner, [names.enrol(f"dev-{i}") for i in range(3)])
        updates = [names.update(f"dev-{i}", 1) for i in range(3)]
        for update in updates:
            runner.height(update)
        deliver(runner, [names.receipt(m, u, f"dev-{i}", 1) for i, u in enumerate(updates) for m in names.miners])
        round_ = runner.round()
        value = scores(500, 505, 495, 100)
        deliver(runner, [names.commit(miner, round_, value) for miner in names.miners])
        deliver(runner, [names.reveal(miner, round_, value) for miner in names.miners])
        return runner.app.state

    one, other = chain(), chain()
    assert one.phase is Phase.CERTIFY
    assert one.round is not None
    assert other.round is not None
    assert one.round.decision == other.round.decision


@settings(max_examples=8)
@given(seed=st.integers(0, 10_000), steps=st.integers(1, 25))
def test_a_replay_and_a_snapshot_give_the_same_state(seed: int, steps: int) -> None:
    world = World(Names(4), seed=seed, devices=("dev-a", "dev-b", "evil-a"))
    for _ in range(steps):
        world.step()
    state = world.miners[0].app.state
    replayed = Application(world.names.genesis)
    middle = len(world.log) // 2
    for height, (time_s, txs, _) in enumerate(world.log, 1):
        replayed.commit(replayed.finalize(height, time_s, txs))
        if height == middle:  # a late joiner goes on from a snapshot
            replayed = Application(world.names.genesis, state=State.from_bytes(replayed.state.to_bytes()))
    assert replayed.state == state
    assert replayed.state.root == state.root
    back = State.from_bytes(state.to_bytes())
    assert (back, back.root) == (state, state.root)


@given(data=st.binary(max_size=300))
def test_any_bytes_get_an_answer(data: bytes) -> None:
    runner = Runner(Names(4))
    assert runner.app.check(data).code is not Reason.NONE
    assert runner.app.process([data]).code is not Reason.NONE
    assert runner.height(data, time_s=CREATED_S).results[0].code is not Reason.NONE
