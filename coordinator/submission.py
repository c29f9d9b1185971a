"""Transactions that a miner wants on the ledger: handed in again and again until the state shows them.

Nothing is remembered of what was handed in: an ordering engine may lose its mempool with its process, and then only
what is missing in the state counts. Each entry names the condition that ends it, so a restart, a lost answer and a
height decided without us all look alike.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Hashable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, TypeAlias

from coordinator.ledger.state import State
from coordinator.serving.view import Submitted
from edge_sdk.errors import RemoteProtocolError, TransportError
from edge_sdk.protocol.messages import Reason

log = logging.getLogger(__name__)

SUBMISSIONS_MAX: Final = 8
"""Transactions in flight to the ordering engine."""
RESUBMIT_S: Final = 3.0
"""A transaction that was taken and is still not on the ledger is handed in again."""
RETRY_S_MIN: Final = 0.05
RETRY_S_MAX: Final = 2.0
TAKEN: Final = frozenset({Reason.NONE, Reason.DUPLICATE})

Submit: TypeAlias = Callable[[bytes], Awaitable[Submitted]]
Condition: TypeAlias = Callable[[State], bool]
OnRefused: TypeAlias = Callable[[Reason], bool]
"""Told of a refusal; True gives the transaction up."""


@dataclass(slots=True)
class _Wanted:
    tx: bytes
    is_done: Condition
    is_ready: Condition
    on_refused: OnRefused | None
    next_try_s: float
    pause_s: float = RETRY_S_MIN
    is_in_flight: bool = False
    was_refused: bool = False


class Submitter:
    """Level-triggered outbox towards the ordered log."""

    def __init__(self, submit: Submit, state: Callable[[], State]) -> None:
        """Take the way to the engine and a look at committed state."""
        self._submit = submit
        self._state = state
        self._wanted: dict[Hashable, _Wanted] = {}
        self._wake = asyncio.Event()
        self._slots = asyncio.Semaphore(SUBMISSIONS_MAX)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._wanted

    def want(
        self,
        key: Hashable,
        tx: bytes,
        is_done: Condition,
        *,
        is_ready: Condition = lambda _state: True,
        on_refused: OnRefused | None = None,
    ) -> None:
        """Hand a transaction in until ``is_done`` holds, from the moment at which ``is_ready`` does.

        A key that is wanted already stays as it is.
        """
        if key in self._wanted or is_done(self._state()):
            return
        self._wanted[key] = _Wanted(tx, is_done, is_ready, on_refused, next_try_s=0.0)
        self._wake.set()

    def observe(self, state: State) -> None:
        """Take in a new height: drop what is done; what was refused is tried at once, since rules look at the state."""
        done = [key for key, wanted in self._wanted.items() if wanted.is_done(state)]
        for key in done:
            del self._wanted[key]
        for wanted in self._wanted.values():
            if wanted.was_refused:
                wanted.next_try_s = 0.0
        if self._wanted:
            self._wake.set()

    def drop(self, key: Hashable) -> None:
        """Want a transaction no longer."""
        self._wanted.pop(key, None)

    async def run(self) -> None:
        """Submit until cancelled."""
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as tasks:
            while True:
                self._wake.clear()
                now_s = loop.time()
                pause_s: float | None = None
                for key, wanted in self._wanted.items():
                    if wanted.is_in_flight or not wanted.is_ready(self._state()):
                        continue
                    if wanted.next_try_s <= now_s:
                        wanted.is_in_flight = True
                        tasks.create_task(self._try(key, wanted))
                    else:
                        rest_s = wanted.next_try_s - now_s
                        pause_s = rest_s if pause_s is None else min(pause_s, rest_s)
                with suppress(TimeoutError):
                    async with asyncio.timeout(pause_s):
                        await self._wake.wait()

    async def _try(self, key: Hashable, wanted: _Wanted) -> None:
        """Hand in once and decide when to try again."""
        async with self._slots:
            try:
                result = await self._submit(wanted.tx)
                reason = _reason(result.code)
                is_taken = reason in TAKEN
                wanted.was_refused = not is_taken
                if not is_taken:
                    log.info("transaction %s not taken: %s %s", key, reason.name, result.info)
                    if wanted.on_refused is not None and wanted.on_refused(reason):
                        self._wanted.pop(key, None)
            except (TransportError, RemoteProtocolError) as error:
                is_taken = False
                log.warning("ordering engine: %s", error)
        wanted.is_in_flight = False
        if is_taken:
            pause_s = RESUBMIT_S
            wanted.pause_s = RETRY_S_MIN
        else:
            pause_s = wanted.pause_s
            wanted.pause_s = min(2 * pause_s, RETRY_S_MAX)
        wanted.next_try_s = asyncio.get_running_loop().time() + pause_s
        self._wake.set()


def _reason(code: int) -> Reason:
    """Code of the application; an engine may have codes of its own."""
    try:
        return Reason(code)
    except ValueError:
        return Reason.CAPACITY
