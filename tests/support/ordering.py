"""A sequencer and applications as real processes over real sockets, for the integration and fault tests."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Self

from coordinator.ordering.rpc import OrderedLogClient
from edge_sdk.adapters.failpoints import VARIABLE
from edge_sdk.errors import TransportError

ROOT = Path(__file__).resolve().parents[2]
SEQUENCER = """
import asyncio, logging, sys
from pathlib import Path
from coordinator.ordering.sequencer import run
from coordinator.ordering.sequencer_config import SequencerConfig
logging.basicConfig(level=logging.INFO)
asyncio.run(run(SequencerConfig.load(Path(sys.argv[1]))))
"""
WAIT_S = 15.0


class Cluster:
    """One sequencer and ``count`` applications in a folder; everything that was started is killed at the end."""

    def __init__(self, count: int = 4, *, call_timeout_s: float = 1.0, execute_timeout_s: float = 1.5) -> None:
        """Write the configuration; nothing starts yet."""
        # Socket paths are short (unix(7)), pytest's folders are not.
        self._folder = tempfile.TemporaryDirectory(prefix="fl-")
        self.root = Path(self._folder.name)
        self.names = [f"m{index}" for index in range(count)]
        (self.root / "genesis").write_bytes(b"genesis")
        lines = [
            "[sequencer]",
            'chain_id = "test"',
            'genesis_file = "genesis"',
            f"call_timeout_s = {call_timeout_s}",
            f"execute_timeout_s = {execute_timeout_s}",
        ]
        for name in self.names:
            lines += ["[[miners]]", f'id = "{name}"', f'abci = "{name}.sock"']
        (self.root / "sequencer.toml").write_text("\n".join(lines))
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name in list(self._processes):
            self.kill(name)
        self._folder.cleanup()

    def start(self, *names: str, behaviour: str = "", failpoint: str = "") -> None:
        """Start the named applications, or ``sequencer``; all applications when none is named."""
        for name in names or self.names:
            if name == "sequencer":
                command = [sys.executable, "-c", SEQUENCER, str(self.root / "sequencer.toml")]
            else:
                paths = [str(self.root / f"{name}.sock"), str(self.root / f"{name}.sqlite3")]
                command = [sys.executable, "-m", "tests.support.hash_chain", *paths, *filter(None, [behaviour])]
            with (self.root / f"{name}.log").open("ab") as output:
                self._processes[name] = subprocess.Popen(
                    command, cwd=ROOT, env=os.environ | {VARIABLE: failpoint}, stdout=output, stderr=output
                )

    def kill(self, name: str, *, number: int = signal.SIGKILL) -> int:
        """Stop a process and return its code."""
        process = self._processes.pop(name)
        process.send_signal(number)
        return process.wait(timeout=WAIT_S)

    def died(self, name: str) -> int:
        """Wait until a process has ended by itself; its code."""
        return self._processes.pop(name).wait(timeout=WAIT_S)

    def log_text(self, name: str) -> str:
        """What a process printed."""
        return (self.root / f"{name}.log").read_text()

    def client(self, miner_id: str | None = None) -> OrderedLogClient:
        """A client of the sequencer."""
        return OrderedLogClient(f"unix:{self.root / 'rpc.sock'}", miner_id=miner_id)

    async def members(self) -> dict[str, Mapping[str, object]]:
        """The sequencer's view of each application."""
        async with self.client() as client:
            local = (await client.status())["local"]
        assert isinstance(local, dict)
        return {member["id"]: member for member in local["members"]}

    async def until_live(self, *names: str) -> None:
        """Wait until the sequencer calls the named (or all) applications live."""
        wanted = names or self.names

        async def is_live() -> bool:
            members = await self.members()
            return all(members[name]["state"] == "live" for name in wanted)

        await until(is_live)

    async def submit(self, *txs: bytes, miner_id: str | None = None) -> None:
        """Submit until each is accepted, through restarts."""
        async with self.client(miner_id) as client:
            for tx in txs:

                async def is_accepted(tx: bytes = tx) -> bool:
                    return (await client.submit(tx)).code == 0

                await until(is_accepted)

    def executed(self, name: str) -> list[tuple[int, bytes]]:
        """(height, transaction) in the order in which an application executed them."""
        with closing(sqlite3.connect(f"file:{self.root / name}.sqlite3?mode=ro", uri=True)) as database:
            return database.execute("SELECT height, tx FROM executed ORDER BY rowid").fetchall()

    def app_hash(self, name: str) -> tuple[int, bytes]:
        """(height, app hash) that an application has committed."""
        with closing(sqlite3.connect(f"file:{self.root / name}.sqlite3?mode=ro", uri=True)) as database:
            row: tuple[int, bytes] = database.execute("SELECT height, app_hash FROM state").fetchone()
        return row

    async def until_executed(self, txs: set[bytes], *names: str) -> None:
        """Wait until the named (or all) applications have executed these transactions."""

        async def is_done() -> bool:
            return all(txs <= {tx for _, tx in self.executed(name)} for name in names or self.names)

        await until(is_done)

    def check_agreement(self, *names: str) -> None:
        """The named (or all) applications executed the same, each transaction once, and have the same app hash."""
        histories = [self.executed(name) for name in names or self.names]
        assert all(history == histories[0] for history in histories)
        txs = [tx for _, tx in histories[0]]
        assert len(set(txs)) == len(txs)
        assert len({self.app_hash(name) for name in names or self.names}) == 1


async def until(is_true: Callable[[], Awaitable[bool]], *, seconds: float = WAIT_S) -> None:
    """Poll until an async predicate holds; a sequencer that is down counts as not yet."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            if await is_true():
                return
        except (TransportError, sqlite3.OperationalError):
            pass
        if time.monotonic() > deadline:
            raise TimeoutError(repr(is_true))
        await asyncio.sleep(0.02)
