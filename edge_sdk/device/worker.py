"""The one work thread of a device: downloads, self-tests, training. Its results come back as events."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from edge_sdk.participant.events import Event

TASKS_MAX: Final = 64
OFFERS_MAX: Final = 8
"""Waiting tasks beyond which a repeated one is passed over: a job may hold the thread for hours."""

Task = Callable[[], Event | None]


@dataclass(frozen=True, slots=True)
class Crash:
    """A task ended with an error that nobody expected: a bug, which must end the process and not be passed over."""

    error: BaseException


class Worker:
    """Runs tasks one after the other."""

    def __init__(self, deliver: Callable[[Event | Crash], None]) -> None:
        """Hand results to ``deliver``, on the work thread."""
        self._deliver = deliver
        self._tasks: queue.Queue[Task | None] = queue.Queue(TASKS_MAX)
        self._thread = threading.Thread(target=self._run, name="device-work", daemon=True)

    def start(self) -> None:
        """Begin to take tasks."""
        self._thread.start()

    def submit(self, task: Task) -> None:
        """Queue a task; the participant asks for few at a time."""
        self._tasks.put_nowait(task)

    def offer(self, task: Task) -> None:
        """Queue a task that will be offered again, unless too many wait already."""
        if self._tasks.qsize() < OFFERS_MAX:
            self.submit(task)

    def stop(self, *, timeout_s: float) -> bool:
        """Wait for the running task, skip the others; whether it ended in time."""
        while True:
            try:
                self._tasks.get_nowait()
            except queue.Empty:
                break
        self._tasks.put_nowait(None)
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (task := self._tasks.get()) is not None:
            try:
                event = task()
            except BaseException as error:  # noqa: BLE001 - handed on whole: the loop raises it again
                self._deliver(Crash(error))
                return
            if event is not None:
                self._deliver(event)
