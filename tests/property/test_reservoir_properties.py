"""The reservoir keeps an equal share of every class, and of each class a uniform sample."""

from __future__ import annotations

from collections import Counter
from itertools import combinations
from math import comb

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.training.reservoir import ClassCount, Place, arrive, draws


class Store:
    """Rows of each class in the places that ``arrive`` names."""

    def __init__(self, capacity: int, seed: int) -> None:
        self.capacity, self.seed, self.number = capacity, seed, 0
        self.counts: dict[int, ClassCount] = {}
        self.rows: dict[int, list[int]] = {}

    def feed(self, label: int) -> Place | None:
        draw = draws(self.seed, self.number)
        changed, place = arrive(self.counts, label, capacity=self.capacity, draw=draw)
        self.counts |= changed
        mine = self.rows.setdefault(label, [])
        if place is not None:
            if place.label == label:
                mine[place.index] = self.number
            else:
                if place.label is not None:
                    others = self.rows[place.label]
                    others[place.index] = others[-1]
                    others.pop()
                mine.append(self.number)
        self.number += 1
        return place


@given(st.lists(st.integers(0, 6), min_size=1, max_size=200), st.integers(1, 24), st.integers(0, 2**32))
def test_rows_are_bounded_and_classes_balanced_after_every_row(labels: list[int], capacity: int, seed: int) -> None:
    store = Store(capacity, seed)
    seen: Counter[int] = Counter()
    for number, label in enumerate(labels):
        store.feed(label)
        seen[label] += 1
        stored = {name: len(rows) for name, rows in store.rows.items()}
        assert sum(stored.values()) == min(number + 1, capacity)
        assert {name: count.stored for name, count in store.counts.items()} == stored
        assert {name: count.seen for name, count in store.counts.items()} == dict(seen)
        if number + 1 > capacity:
            most = max(stored.values())
            assert all(stored[name] in (seen[name], most, most - 1) for name in seen), (stored, seen)
            assert all(stored[name] >= min(seen[name], most - 1) for name in seen)
    for name, rows in store.rows.items():
        assert len(set(rows)) == len(rows)
        assert all(labels[row] == name for row in rows)


@given(st.lists(st.integers(0, 3), max_size=60), st.integers(1, 10), st.integers(0, 2**32))
def test_a_seed_repeats(labels: list[int], capacity: int, seed: int) -> None:
    one, other = Store(capacity, seed), Store(capacity, seed)
    assert [one.feed(label) for label in labels] == [other.feed(label) for label in labels]
    assert one.rows == other.rows


def test_a_rare_class_keeps_every_row() -> None:
    store = Store(40, 1)
    for number in range(4_000):
        store.feed(1 if number % 500 == 7 else 0)
    assert len(store.rows[1]) == 8
    assert len(store.rows[0]) == 32


@pytest.mark.parametrize(
    ("labels", "capacity", "held"),
    [
        ([0] * 7, 3, 3),  # Algorithm R
        ([0, 0, 0, 0, 0, 1, 0, 1, 0], 4, 2),  # gives way to another class, and goes on
        ([0, 1, 0, 0, 0, 1, 0, 1, 1, 0], 5, 2),  # full together with the other
    ],
    ids=["one class", "gave way", "equal shares"],
)
def test_every_subset_of_a_class_is_equally_likely(labels: list[int], capacity: int, held: int) -> None:
    """Chi-squared over all subsets of the size that is held; one seed in 10^5 would pass the bound."""
    runs = 6_000
    members = [number for number, label in enumerate(labels) if label == 0]
    found: Counter[frozenset[int]] = Counter()
    for seed in range(runs):
        store = Store(capacity, seed)
        for label in labels:
            store.feed(label)
        found[frozenset(store.rows[0])] += 1
    of_size = {subset: count for subset, count in found.items() if len(subset) == held}
    total, cells = sum(of_size.values()), comb(len(members), held)
    assert total > runs / 4
    expected = total / cells
    chi = sum((of_size.get(frozenset(chosen), 0) - expected) ** 2 / expected for chosen in combinations(members, held))
    freedom = cells - 1
    assert chi < freedom + 4.5 * (2 * freedom) ** 0.5 + 10, (chi, freedom)


@given(st.integers(1, 50), st.integers(0, 1000))
def test_draws_lie_in_their_range(n: int, number: int) -> None:
    draw = draws(3, number)
    assert all(0 <= draw(n) < n for _ in range(5))


def test_draws_are_even() -> None:
    counts = Counter(draws(0, number)(3) for number in range(6_000))
    assert all(abs(count - 2_000) < 180 for count in counts.values())
