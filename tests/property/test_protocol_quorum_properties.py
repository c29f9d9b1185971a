"""Two quorums share honest voting power, whatever the powers are."""

from dataclasses import replace
from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.protocol.certificate import quorum_power
from edge_sdk.protocol.messages import MinerRecord
from tools.vector_examples import genesis


def miners(powers: list[int]) -> list[MinerRecord]:
    return [replace(genesis().miners[0], power=power) for power in powers]


@given(st.lists(st.integers(1, 20), min_size=1, max_size=6))
def test_quorums_intersect_in_more_than_a_third(powers: list[int]) -> None:
    total, needed = sum(powers), quorum_power(miners(powers))
    members = range(len(powers))
    subsets = [set(chosen) for size in range(len(powers) + 1) for chosen in combinations(members, size)]
    quorums = [chosen for chosen in subsets if sum(powers[i] for i in chosen) >= needed]
    assert quorums  # all together are one
    for one in quorums:
        for other in quorums:
            assert 3 * sum(powers[i] for i in one & other) > total


@given(st.lists(st.integers(1, 1_000_000), min_size=1, max_size=64))
def test_quorum_is_the_smallest_power_above_two_thirds(powers: list[int]) -> None:
    total, needed = sum(powers), quorum_power(miners(powers))
    assert 3 * needed > 2 * total >= 3 * (needed - 1)


def test_small_sets() -> None:
    """3 miners tolerate no fault, 4 tolerate one, 7 two."""
    assert [quorum_power(miners([1] * n)) for n in (1, 2, 3, 4, 5, 6, 7, 10)] == [1, 2, 3, 3, 4, 5, 5, 7]
