"""What has been decided, and what the miners say came of it: the one state that the engine's parts share."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from coordinator.ordering.limits import DECIDED_BYTES_KEPT, DECIDED_HEIGHTS_KEPT
from coordinator.ordering.log import Decided, OrderedLog, decide
from edge_sdk.errors import LedgerError

_log = logging.getLogger(__name__)


class DissentError(LedgerError):
    """A miner's app hash is not the one that the quorum agreed on."""


@dataclass(frozen=True, slots=True)
class Dissent:
    """Where a miner's state left the quorum's."""

    height: int
    app_hash: bytes
    agreed: bytes


class Signal:
    """Wakes all who wait for any change; they look for themselves what it was."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def notify(self) -> None:
        """Wake those who wait now."""
        self._event.set()
        self._event = asyncio.Event()

    async def wait(self) -> None:
        """Wait for the next ``notify``."""
        await self._event.wait()


class Chain:
    """Decided heights, and agreement on the app hash after the last one.

    A height may follow only after more than 2/3 of the power have executed and committed the one before with the same
    app hash. Whoever computes another hash is named and left behind.
    """

    def __init__(self, log: OrderedLog, powers: Mapping[str, int]) -> None:
        """Continue a log; ``powers`` is the voting power of each miner."""
        self._log = log
        self._powers = powers
        # One thread: the log's connection is used by one at a time, and the loop goes on during an fsync.
        self._disk: Final = ThreadPoolExecutor(max_workers=1, thread_name_prefix="log")
        self.height = log.head()
        last = log.read(self.height) if self.height else None
        self.time_s = last.time_s if last else 0
        self.head_hash = last.block_hash if last else log.origin
        self.agreed: bytes | None = None
        """App hash after the last height, once there is a quorum for it."""
        self.codes: tuple[int, ...] = ()
        """Result of each transaction of the last height, as a member of that quorum has it."""
        self.dissents: dict[str, Dissent] = {}
        """Last dissent of each miner that ever had one."""
        self.stalemate = ""
        """Why no quorum can be reached any more, else empty."""
        self.changed = Signal()
        self._reports: dict[str, tuple[bytes, tuple[int, ...]]] = {}
        self._recent: OrderedDict[int, Decided] = OrderedDict()
        self._recent_bytes = 0

    def close(self) -> None:
        """Finish pending writes and close the log."""
        self._disk.shutdown(wait=True)
        self._log.close()

    def is_quorum(self, power: int) -> bool:
        """Whether a power is more than 2/3 of the whole."""
        return 3 * power > 2 * sum(self._powers.values())

    def propose(self, *, proposer: str, time_s: int, txs: Sequence[bytes]) -> Decided:
        """The next height as a proposer wants it; its time never runs backwards."""
        assert self.agreed is not None, "the height before is agreed first"
        return decide(
            previous_hash=self.head_hash,
            height=self.height + 1,
            time_s=max(self.time_s, time_s),
            proposer=proposer,
            previous_app_hash=self.agreed,
            txs=txs,
        )

    async def append(self, decided: Decided) -> None:
        """Make a decision durable, then known to the miners.

        Raises:
            StoreError: it could not be written; nobody has seen it.
        """
        assert decided.height == self.height + 1, "heights have no gap"
        await asyncio.get_running_loop().run_in_executor(self._disk, self._log.append, decided)
        self.height, self.time_s, self.head_hash = decided.height, decided.time_s, decided.block_hash
        self.agreed, self.codes = None, ()
        self._reports.clear()
        self._keep(decided)
        self.changed.notify()

    async def read(self, height: int) -> Decided:
        """A decided height.

        Raises:
            CorruptLedgerError: the log was changed behind our back.
        """
        if height in self._recent:
            return self._recent[height]
        return await asyncio.get_running_loop().run_in_executor(self._disk, self._log.read, height)

    async def next_of(self, miner_id: str, height: int, app_hash: bytes) -> Decided:
        """Wait for the height that follows a miner's own, whose app hash must be the quorum's.

        Raises:
            DissentError: it is not.
            CorruptLedgerError: as ``read``.
        """
        while self.height <= height:
            if self.agreed is not None and self.agreed != app_hash:
                raise self._dissent(miner_id, height, app_hash, self.agreed)
            await self.changed.wait()
        following = await self.read(height + 1)
        if following.previous_app_hash != app_hash:
            raise self._dissent(miner_id, height, app_hash, following.previous_app_hash)
        return following

    def report(self, miner_id: str, height: int, app_hash: bytes, codes: tuple[int, ...] = ()) -> None:
        """Count what a miner has committed; reports for earlier heights were decided long ago."""
        if height != self.height:
            return
        self._reports[miner_id] = (app_hash, codes)
        power: Counter[bytes] = Counter()
        for reporter, (reported, _) in self._reports.items():
            power[reported] += self._powers[reporter]
        if self.agreed is None and self.is_quorum(power[app_hash]):
            self.agreed = app_hash
            self.codes = max((found for reported, found in self._reports.values() if reported == app_hash), key=len)
            self.stalemate = ""
        elif self.agreed is None:
            self._look_for_stalemate(height, power)
        self.changed.notify()

    def _look_for_stalemate(self, height: int, power: Counter[bytes]) -> None:
        unreported = sum(self._powers.values()) - power.total()
        if self.is_quorum(max(power.values()) + unreported):
            return
        sides = ", ".join(
            f"{reporter} {app_hash.hex()[:16]}" for reporter, (app_hash, _) in sorted(self._reports.items())
        )
        self.stalemate = f"no quorum for an app hash at height {height}: {sides}"
        _log.critical("%s", self.stalemate)

    def _dissent(self, miner_id: str, height: int, app_hash: bytes, agreed: bytes) -> DissentError:
        self.dissents[miner_id] = Dissent(height, app_hash, agreed)
        return DissentError(
            f"{miner_id} has app hash {app_hash.hex()[:16]} at height {height}, the quorum has {agreed.hex()[:16]}"
        )

    def _keep(self, decided: Decided) -> None:
        self._recent[decided.height] = decided
        self._recent_bytes += decided.size_bytes
        while len(self._recent) > DECIDED_HEIGHTS_KEPT or self._recent_bytes > DECIDED_BYTES_KEPT:
            _, oldest = self._recent.popitem(last=False)
            self._recent_bytes -= oldest.size_bytes
