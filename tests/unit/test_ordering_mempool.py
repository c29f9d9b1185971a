from __future__ import annotations

from typing import TYPE_CHECKING

from coordinator.ordering import mempool as module
from coordinator.ordering.mempool import Admission, Mempool
from edge_sdk.protocol.limits import TX_BYTES_MAX

if TYPE_CHECKING:
    import pytest

POWERS = {"a": 1, "b": 1, "c": 1, "d": 1}
NO_LIMIT = {"bytes_max": 10**9, "count_max": 10**9}


def test_first_come_first_served() -> None:
    pool = Mempool(POWERS)
    for tx in (b"1", b"2", b"3"):
        assert pool.add(tx, "a") is Admission.ADDED
    assert pool.offer(**NO_LIMIT) == [b"1", b"2", b"3"]
    assert pool.offer(bytes_max=2, count_max=9) == [b"1", b"2"]
    assert pool.offer(bytes_max=9, count_max=1) == [b"1"]
    assert (len(pool), pool.size_bytes) == (3, 3)


def test_a_digest_waits_once_and_is_remembered_after_its_height() -> None:
    pool = Mempool(POWERS)
    pool.add(b"1", "a")
    assert pool.add(b"1", "b") is Admission.KNOWN
    pool.included([b"1"])
    assert pool.add(b"1", "b") is Admission.KNOWN
    assert (len(pool), pool.size_bytes) == (0, 0)
    pool.failed([b"1"])
    assert pool.add(b"1", "b") is Admission.ADDED


def test_memory_of_ordered_digests_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MEMPOOL_KNOWN_MAX", 2)
    pool = Mempool(POWERS)
    pool.included([b"1", b"2", b"3"])
    assert [pool.admits(tx, "a") for tx in (b"1", b"2", b"3")] == [Admission.ADDED, Admission.KNOWN, Admission.KNOWN]


def test_sizes_of_a_transaction() -> None:
    pool = Mempool(POWERS)
    assert pool.add(b"", "a") is Admission.OVERSIZE
    assert pool.add(bytes(TX_BYTES_MAX + 1), "a") is Admission.OVERSIZE
    assert pool.add(bytes(TX_BYTES_MAX), "a") is Admission.ADDED


def test_one_miner_cannot_take_the_room_of_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MEMPOOL_TXS_MAX", 8)
    monkeypatch.setattr(module, "MEMPOOL_BYTES_MAX", 400)
    pool = Mempool(POWERS)
    assert pool.add(b"1", "a") is Admission.ADDED
    assert pool.add(b"2", "a") is Admission.ADDED
    assert pool.add(b"3", "a") is Admission.FULL
    assert pool.add(b"3", "b") is Admission.ADDED
    assert pool.add(bytes(100), "b") is Admission.FULL
    pool.included([b"1"])
    assert pool.add(b"4", "a") is Admission.ADDED


def test_more_than_a_third_of_the_power_drops_what_it_leaves_out() -> None:
    pool = Mempool(POWERS)
    pool.add(b"1", "a")
    pool.left_out([b"1", b"never seen"], "b")
    pool.left_out([b"1"], "b")  # the same proposer again has no more power
    assert len(pool) == 1
    pool.left_out([b"1"], "c")
    assert (len(pool), pool.dropped) == (0, 1)
    assert pool.add(b"1", "a") is Admission.ADDED
