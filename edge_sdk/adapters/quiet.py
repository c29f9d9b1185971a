"""A board trains or is upgraded, never both: two advisory locks between the device process and the updater.

The device holds ``training.lock`` while it trains. The updater first takes ``upgrade.lock``, which says that it waits -
the device then begins no further job - and then ``training.lock``, as soon as the running job ends. Locks of flock(2)
vanish with the process that held them, however it ended: no power cut leaves a board locked.
"""

from __future__ import annotations

import fcntl
import os
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from edge_sdk.errors import StoreError

TRAINING: Final = "training.lock"
UPGRADE: Final = "upgrade.lock"
POLL_S: Final = 0.5


class TrainingLock:
    """The device's side; used by its work thread."""

    def __init__(self, work_dir: Path) -> None:
        """Make both files: an updater opens what is there and makes none in a folder of ours.

        Raises:
            StoreError: they cannot be made.
        """
        self._training = _open(work_dir / TRAINING, os.O_RDWR | os.O_CREAT)
        self._upgrade = _open(work_dir / UPGRADE, os.O_RDWR | os.O_CREAT)

    @contextmanager
    def held(self, stopping: threading.Event) -> Iterator[bool]:
        """Hold the lock; wait for it while an upgrade goes on. False where the process is to end before that."""
        while not (is_held := self._try()):
            if stopping.wait(POLL_S):
                break
        try:
            yield is_held
        finally:
            if is_held:
                fcntl.flock(self._training, fcntl.LOCK_UN)

    def _try(self) -> bool:
        if not _lock(self._upgrade, fcntl.LOCK_SH):
            return False
        fcntl.flock(self._upgrade, fcntl.LOCK_UN)
        return _lock(self._training, fcntl.LOCK_EX)


@contextmanager
def quiet_time(work_dir: Path, *, wait_s: float) -> Iterator[bool]:
    """The updater's side: keep the device from training for as long as the context lasts.

    Args:
        work_dir: The device's.
        wait_s: How long the running job may take to end.

    Yields:
        Whether it is quiet. A device that never made the lock files does not train.

    Raises:
        StoreError: a lock file is something else.
    """
    opened: list[int] = []
    try:
        paths = [work_dir / name for name in (UPGRADE, TRAINING)]
        opened.extend(_open(path, os.O_RDONLY) for path in paths if path.exists())
        deadline_s = time.monotonic() + wait_s
        is_quiet = True
        for descriptor in opened:
            while is_quiet and not _lock(descriptor, fcntl.LOCK_EX):
                is_quiet = time.monotonic() < deadline_s
                time.sleep(POLL_S)
        yield is_quiet
    finally:
        for descriptor in opened:
            os.close(descriptor)


def _open(path: Path, flags: int) -> int:
    try:
        # No link is followed: the updater may be root, and the folder belongs to somebody else.
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise StoreError(f"{path}: expected a plain file")
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror}") from error
    return descriptor


def _lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
