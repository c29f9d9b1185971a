"""The work thread of a device, while one job holds it."""

import threading

from edge_sdk.device.worker import OFFERS_MAX, TASKS_MAX, Worker


def test_what_is_asked_again_and_again_does_not_fill_the_queue_behind_a_long_job() -> None:
    """A board that the governor holds for hours goes on asking for outcomes; it must still take what comes once."""
    release, done = threading.Event(), threading.Event()
    asked: list[int] = []

    def hold() -> None:
        release.wait()

    def ask() -> None:
        asked.append(1)

    worker = Worker(lambda _: None)
    worker.start()
    worker.submit(hold)
    for _ in range(4 * TASKS_MAX):
        worker.offer(ask)
    worker.submit(done.set)
    release.set()
    assert done.wait(5)
    assert 1 <= len(asked) <= OFFERS_MAX
    assert worker.stop(timeout_s=5)
