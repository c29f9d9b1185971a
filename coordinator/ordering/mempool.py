"""Transactions that wait for a height: bounded, first come first served, each digest once. Pure, no I/O."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from coordinator.ordering.limits import MEMPOOL_BYTES_MAX, MEMPOOL_KNOWN_MAX, MEMPOOL_TXS_MAX
from edge_sdk.protocol.limits import TX_BYTES_MAX


class Admission(Enum):
    """What became of an offered transaction; the value is what its sender is told."""

    ADDED = "added"
    KNOWN = "tx already exists in cache"  # CometBFT's words: clients recognise them
    FULL = "mempool is full"
    OVERSIZE = "tx too large"


@dataclass(slots=True)
class _Waiting:
    tx: bytes
    miner_id: str
    left_out_by: set[str] = field(default_factory=set)


class Mempool:
    """Waiting transactions, and the digests of those that were ordered lately.

    Each miner that lets transactions in has an equal share of the room, so that a lying one cannot crowd the others
    out. A transaction leaves when a height includes it, or when proposers with more than 1/3 of the power have left
    it out: at least one of them is honest, so it is not valid now. Its sender may then send it again.
    """

    def __init__(self, powers: Mapping[str, int]) -> None:
        """Keep the voting power of each miner."""
        self._powers = powers
        self._waiting: OrderedDict[bytes, _Waiting] = OrderedDict()
        self._known: OrderedDict[bytes, None] = OrderedDict()
        self._count_of = dict.fromkeys(powers, 0)
        self._bytes_of = dict.fromkeys(powers, 0)
        self.dropped = 0
        """Transactions that left without a height."""

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def size_bytes(self) -> int:
        """Bytes of all waiting transactions."""
        return sum(self._bytes_of.values())

    def admits(self, tx: bytes, miner_id: str) -> Admission:
        """Whether a transaction would find room; asked before the costly check."""
        if not tx or len(tx) > TX_BYTES_MAX:
            return Admission.OVERSIZE
        digest = digest_of(tx)
        if digest in self._waiting or digest in self._known:
            return Admission.KNOWN
        share = len(self._powers)
        is_full = (
            self._count_of[miner_id] >= MEMPOOL_TXS_MAX // share
            or self._bytes_of[miner_id] + len(tx) > MEMPOOL_BYTES_MAX // share
        )
        return Admission.FULL if is_full else Admission.ADDED

    def add(self, tx: bytes, miner_id: str) -> Admission:
        """Let a transaction wait that ``miner_id`` has checked."""
        admission = self.admits(tx, miner_id)
        if admission is Admission.ADDED:
            self._waiting[digest_of(tx)] = _Waiting(tx, miner_id)
            self._count_of[miner_id] += 1
            self._bytes_of[miner_id] += len(tx)
        return admission

    def offer(self, *, bytes_max: int, count_max: int) -> list[bytes]:
        """The oldest transactions that fit one height."""
        offered: list[bytes] = []
        left_bytes = bytes_max
        for waiting in self._waiting.values():
            if len(offered) == count_max or len(waiting.tx) > left_bytes:
                break
            offered.append(waiting.tx)
            left_bytes -= len(waiting.tx)
        return offered

    def left_out(self, txs: Iterable[bytes], proposer: str) -> None:
        """Note that a proposer did not want transactions that it was offered."""
        for tx in txs:
            digest = digest_of(tx)
            waiting = self._waiting.get(digest)
            if waiting is None:
                continue
            waiting.left_out_by.add(proposer)
            if 3 * sum(self._powers[miner_id] for miner_id in waiting.left_out_by) > sum(self._powers.values()):
                self._remove(digest)
                self.dropped += 1

    def included(self, txs: Sequence[bytes]) -> None:
        """Note the transactions of a decided height; also at the start, for those of the last heights."""
        for tx in txs:
            digest = digest_of(tx)
            self._remove(digest)
            self._known[digest] = None
            self._known.move_to_end(digest)
        while len(self._known) > MEMPOOL_KNOWN_MAX:
            self._known.popitem(last=False)

    def failed(self, txs: Iterable[bytes]) -> None:
        """Note transactions that were ordered without effect; they may be sent again."""
        for tx in txs:
            self._known.pop(digest_of(tx), None)

    def _remove(self, digest: bytes) -> None:
        waiting = self._waiting.pop(digest, None)
        if waiting is not None:
            self._count_of[waiting.miner_id] -= 1
            self._bytes_of[waiting.miner_id] -= len(waiting.tx)


def digest_of(tx: bytes) -> bytes:
    """Hash of a transaction as the engine's interface shows it."""
    return hashlib.sha256(tx).digest()
