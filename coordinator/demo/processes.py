"""The processes of one run: started in sessions of their own, logged, stopped in order, and never left behind.

A session of its own keeps Ctrl-C away from the children: the supervisor hears it alone and stops them in order. A
guardian process kills every group whose supervisor is gone, whatever ended it (see ``guardian``).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from coordinator.demo import guardian

KILL_WAIT_S: Final = 5.0
_POLL_S: Final = 0.02
_LOG_TAIL_BYTES: Final = 2_000

ONE_THREAD: Final = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS"), "1"
)
"""Many processes share few cores: a pool of threads in each would only wait for the others."""
SMALL_HEAP: Final = {"MALLOC_ARENA_MAX": "2"}
"""glibc gives each thread a heap of its own; a board has little memory."""


class Child:
    """One process with its log. The same name may be started again: the log goes on."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], log_file: Path) -> None:
        self.name = name
        self.log_file = log_file
        self.started_ns = time.monotonic_ns()
        self._process = process

    @property
    def pid(self) -> int:
        """Process id, also that of the group."""
        return self._process.pid

    @property
    def status(self) -> int | None:
        """Exit status, negative for a signal; None while it runs."""
        return self._process.poll()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process alone; nothing happens when it has ended."""
        self._process.send_signal(number)

    def kill(self) -> None:
        """End the whole group as a power cut would."""
        if self.status is None:
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait(KILL_WAIT_S)

    def log_tail(self) -> str:
        """Last lines of the log, for an error message."""
        with self.log_file.open("rb") as log:
            log.seek(max(0, os.fstat(log.fileno()).st_size - _LOG_TAIL_BYTES))
            return " | ".join(log.read().decode("utf-8", "replace").strip().split("\n")[-4:])


class Processes:
    """Every process of a run. Leaving the context ends whatever still runs."""

    def __init__(self, log_dir: Path) -> None:
        self._log_dir = log_dir
        self._children: dict[str, Child] = {}
        self._guardian = subprocess.Popen(
            [sys.executable, "-I", "-S", guardian.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for child in self._children.values():
            child.kill()
        assert self._guardian.stdin is not None
        self._guardian.stdin.close()
        self._guardian.wait(KILL_WAIT_S)

    def start(
        self,
        name: str,
        arguments: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        niceness: int = 0,
    ) -> Child:
        """Start ``python -m ARGUMENTS`` under a name whose last process has ended."""
        before = self._children.get(name)
        assert before is None or before.status is not None, name
        log_file = self._log_dir / f"{name}.log"
        with log_file.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **ONE_THREAD, **SMALL_HEAP, **(environment or {})},
                start_new_session=True,
            )
        if niceness:
            os.setpriority(os.PRIO_PROCESS, process.pid, niceness)
        if before is not None:
            self.release(before.pid)
        self.adopt(process.pid)
        child = Child(name, process, log_file)
        self._children[name] = child
        return child

    def adopt(self, group: int) -> None:
        """Let the guardian watch a process group that somebody else starts and stops."""
        self._tell(f"+{group}\n")

    def release(self, group: int) -> None:
        """Tell the guardian that a group has ended: its number may be given to strangers."""
        self._tell(f"-{group}\n")

    def __getitem__(self, name: str) -> Child:
        return self._children[name]

    def stop(self, names: Iterable[str], *, timeout_s: float) -> list[str]:
        """Ask processes to end and wait for them; those that do not are killed.

        Returns:
            Names that had to be killed.
        """
        running = [child for name in names if (child := self._children.get(name)) is not None and child.status is None]
        for child in running:
            child.signal(signal.SIGTERM)
        deadline_s = time.monotonic() + timeout_s
        while any(child.status is None for child in running) and time.monotonic() < deadline_s:
            time.sleep(_POLL_S)
        late = [child for child in running if child.status is None]
        for child in late:
            child.kill()
        for child in running:
            self.release(child.pid)
        return [child.name for child in late]

    def _tell(self, line: str) -> None:
        assert self._guardian.stdin is not None
        self._guardian.stdin.write(line.encode())
        self._guardian.stdin.flush()
