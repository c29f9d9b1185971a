"""The whole product as processes, for fault tests: founded like the demo, broken on purpose, audited afterwards.

Broker, sequencer, four miners and some devices of the real command line share one machine. Tests look at them from
outside only: at their files, over HTTP, at their exit status. ``check_books`` is the invariant of all fault tests.
"""

from __future__ import annotations

import ast
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import httpx
import numpy as np

from coordinator.broker.local import BrokerKind
from coordinator.demo.auditor import Audit, audit, read_device
from coordinator.demo.founding import Fleet, found
from coordinator.demo.layout import DevicePlace, MinerPlace
from coordinator.demo.material import gather
from coordinator.demo.options import parse
from coordinator.demo.processes import Child, Processes
from coordinator.demo.workspace import Workspace
from coordinator.ledger.replay import VerifyReport, verify_directory
from edge_sdk.adapters.failpoints import VARIABLE
from edge_sdk.adapters.system_clock import OFFSET_VARIABLE
from edge_sdk.protocol.certificate import quorum_power
from edge_sdk.protocol.ids import Digest
from edge_sdk.protocol.messages import MinerRecord
from tests.support.disks import SmallDisk
from tests.support.fleet import ROOT, clouds

SEQUENCER: Final = "sequencer"
INPUTS: Final = 500
"""Width of the examples: an update has about 75 kB, more than one chunk, so that an upload has a middle."""
EXAMPLES: Final = 600
DISK_MIB: Final = 64
TAU_S: Final = 0.8
BLOCK_SIZE: Final = 8
"""More than there are devices: tau cuts, so that an undisturbed fleet certifies about a block per second."""
WAIT_S: Final = 90.0
"""For anything to happen; a busy machine takes long for ten interpreters."""
STOP_S: Final = 30.0
SETTLE_S: Final = 20.0
_POLL_S: Final = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Books:
    """What the files say after the run."""

    audit: Audit
    ledgers: VerifyReport


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What a test wants to vary."""

    broker: BrokerKind = BrokerKind.MOSQUITTO
    devices: int = 2
    device_toml: str = ""
    """More lines for every device's settings."""
    behaviours: Mapping[str, str] = field(default_factory=dict)
    """Byzantine behaviour by miner."""
    small_disks: tuple[str, ...] = ()
    """Devices and miners whose folder is a disk of its own, see ``RealFleet.disks``."""


class RealFleet:
    """A fleet in ``folder``; the context founds and starts it, and leaves no process behind."""

    def __init__(self, folder: Path, setting: Setting = Setting()) -> None:
        """Found it: keys, genesis, settings, data. Nothing runs yet."""
        data = folder / "clouds.npz"
        x, y = clouds(EXAMPLES, width=INPUTS, seed=1)
        np.savez(data, x=x, y=y)
        broker = "mosquitto" if setting.broker is BrokerKind.MOSQUITTO else "embedded"
        argv = f"--dataset npz --data {data} --devices {setting.devices} --miners 4 --tau {TAU_S}"
        argv += f" --block-size {BLOCK_SIZE} --partition iid --byzantine none --broker {broker}"
        options = parse(argv.split())
        # Faults are tested here, not learning: no honest update may be refused for a hair of its score.
        options = replace(options, preset=replace(options.preset, local_steps=10, margin_permille=200))
        self._workspace = Workspace(folder / "run")
        self.root = self._workspace.root
        self.disks = {
            name: SmallDisk(self.root / f"{name.partition('-')[0]}s" / name, size_mib=DISK_MIB)
            for name in setting.small_disks
        }
        self.fleet: Fleet = found(options, self._workspace, gather(options), setting.broker)
        self.miners: dict[str, MinerPlace] = {place.miner_id: place for place in self.fleet.miners}
        self.devices: dict[str, DevicePlace] = {place.device_id: place for place in self.fleet.devices}
        for name, behaviour in setting.behaviours.items():
            self.set_behaviour(name, behaviour)
        for device in self.devices.values():
            device.config.write_text(device.config.read_text() + setting.device_toml)
        self._processes = Processes(self._workspace.logs)
        self._started: set[str] = set()
        self.is_stopped = False

    def __enter__(self) -> Self:
        """Start everything; wait until every device has sent an update and a block with it is certified."""
        try:
            self.start_broker()
            self.start(SEQUENCER, *self.miners)
            for name in self.miners:
                self.until(lambda name=name: self.is_ready(name), f"{name} is ready")  # type: ignore[misc]
            for device in self.devices.values():
                self._run_to_end(f"{device.device_id}.enrol", "device", "enrol", "--config", str(device.config))
            self.start(*self.devices)
            self.until(lambda: all(self.merged(name) for name in self.devices), "an update of each device is merged")
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.show_logs()
        self._processes.__exit__(kind, error, trace)
        self.fleet.broker.kill()
        for disk in self.disks.values():
            disk.close()
        self._workspace.__exit__(kind, error, trace)

    # --- processes ---

    def start(self, *names: str, failpoint: str = "", clock_offset_s: int = 0) -> None:
        """Start processes that are not running."""
        environment = {VARIABLE: failpoint, OFFSET_VARIABLE: str(clock_offset_s), "PYTHONPATH": str(ROOT)}
        for name in names:
            self._started.add(name)
            self._processes.start(name, ["edge_sdk.entry", *self._arguments(name)], environment=environment)

    def kill(self, *names: str) -> None:
        """SIGKILL, wherever they are."""
        for name in names:
            self._processes[name].kill()

    def pause(self, *names: str) -> None:
        """SIGSTOP: there, and silent."""
        for name in names:
            self._processes[name].signal(signal.SIGSTOP)

    def wake(self, *names: str) -> None:
        """SIGCONT."""
        for name in names:
            self._processes[name].signal(signal.SIGCONT)

    def terminate(self, *names: str) -> None:
        """Stop in order; a process that does not end with 0 in time is an error."""
        late = self._processes.stop(names, timeout_s=STOP_S)
        assert not late, f"did not stop in {STOP_S:g} s: {late}"
        statuses = {name: self.child(name).status for name in names}
        assert set(statuses.values()) == {0}, statuses

    def die_at(self, name: str, failpoint: str) -> None:
        """Kill a process where it is, start it armed, and wait until it has died at the failpoint."""
        self.kill(name)
        self.start(name, failpoint=failpoint)
        self.until(lambda: self.child(name).status is not None, f"{name} dies at {failpoint}")
        assert self.child(name).status == -signal.SIGKILL, self.log(name)[-2_000:]

    def child(self, name: str) -> Child:
        """A process by its name."""
        return self._processes[name]

    def ended(self) -> dict[str, int]:
        """Exit statuses of the processes that do not run now: who was stopped from outside is not a stalled fleet."""
        names = (SEQUENCER, *self.miners, *self.devices)
        statuses = {name: self.child(name).status for name in names if name in self._started}
        return {name: status for name, status in statuses.items() if status is not None}

    def start_broker(self) -> None:
        """Start the broker, on the port that it had."""
        self.fleet.broker.start()
        assert self.fleet.broker.pid is not None
        self._processes.adopt(self.fleet.broker.pid)

    def kill_broker(self) -> None:
        """SIGKILL of the broker."""
        group = self.fleet.broker.pid
        assert group is not None
        self.fleet.broker.kill()
        self._processes.release(group)

    def doctor(self, device: str, *, clock_offset_s: int = 0) -> tuple[int, str]:
        """Exit status and words of ``flchain device doctor``."""
        finished = subprocess.run(
            [sys.executable, "-m", "edge_sdk.entry", "device", "doctor", "--config", str(self.devices[device].config)],
            env=os.environ | {OFFSET_VARIABLE: str(clock_offset_s)},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=WAIT_S,
            check=False,
        )
        return finished.returncode, finished.stdout

    def set_behaviour(self, miner: str, behaviour: str) -> None:
        """Write into a miner's settings how it lies from its next start on."""
        config = self.miners[miner].config
        honest, _, _ = config.read_text().partition("\n[behaviour]")
        config.write_text(f'{honest}\n[behaviour]\nbyzantine = "{behaviour}"\n')

    # --- looks from outside ---

    def log(self, name: str) -> str:
        """Everything that a process has logged, over its restarts."""
        return (self._workspace.logs / f"{name}.log").read_text()

    def certified(self, miner: str) -> int:
        """Index of the last block of a miner's ledger that has a certificate, 0 before the first."""
        query = "SELECT coalesce(max(block_index), 0) FROM blocks WHERE certificate IS NOT NULL"
        return int(self.ledger(miner, query)[0][0])

    def head(self) -> int:
        """Last certified block anywhere."""
        return max(self.certified(name) for name in self.miners)

    def evidence(self, miner: str) -> str:
        """Lines of a miner's log that name a lie."""
        return "\n".join(line for line in self.log(miner).splitlines() if "evidence: " in line)

    def ledger(self, miner: str, query: str) -> list[Any]:
        """Rows of a miner's ledger, while it runs."""
        return _rows(self.miners[miner].folder / "ledger.sqlite3", query)

    def outbox(self, device: str, query: str) -> list[Any]:
        """Rows of a device's state, while it runs."""
        return _rows(self.devices[device].folder / "state.sqlite3", query)

    def merged(self, device: str) -> int:
        """Updates of a device that it knows to be merged."""
        return int(self.outbox(device, "SELECT count(*) FROM updates WHERE verdict = 1")[0][0])

    def installed(self, device: str) -> int:
        """Highest model version that a device has installed."""
        return int(self.outbox(device, "SELECT coalesce(max(version), -1) FROM installs")[0][0])

    def is_ready(self, miner: str) -> bool:
        """Whether a miner says that it can serve; one that has ended is an error."""
        assert self.child(miner).status is None, self.log(miner)[-2_000:]
        return self.health(miner).get("status") == "ok"

    def health(self, miner: str) -> dict[str, Any]:
        """What a miner says about itself; empty when it does not answer."""
        try:
            answer: dict[str, Any] = httpx.get(f"{self.miners[miner].url}/healthz", trust_env=False, timeout=5).json()
        except httpx.HTTPError:
            return {}
        return answer

    def until(self, is_true: Callable[[], bool], what: str, *, seconds: float = WAIT_S) -> None:
        """Poll from outside; a database that is being made or a miner that is down counts as not yet."""
        deadline_s = time.monotonic() + seconds
        while True:
            try:
                if is_true():
                    return
            except sqlite3.OperationalError:
                pass
            if time.monotonic() >= deadline_s:
                self.show_logs()
                raise AssertionError(f"not within {seconds:g} s: {what}; ended: {self.ended()}")
            time.sleep(_POLL_S)

    def until_progress(self, *, blocks: int = 1, miners: tuple[str, ...] = ()) -> None:
        """Wait until the named (or all) miners have certified blocks beyond what anybody has now."""
        goal = self.head() + blocks
        self.until(
            lambda: all(self.certified(name) >= goal for name in miners or self.miners),
            f"block {goal} is certified on {miners or 'every miner'}",
        )

    def until_merged_again(self, *devices: str) -> None:
        """Wait until the named (or all) devices hold one more certified merge."""
        goals = {name: self.merged(name) + 1 for name in devices or self.devices}
        self.until(lambda: all(self.merged(name) >= goal for name, goal in goals.items()), f"merged: {goals}")

    def undecided(self) -> set[Digest]:
        """Updates that a quorum has confirmed to their device, and of whose certified end some miner does not know."""
        genesis = self.fleet.genesis
        records: dict[str, MinerRecord] = {record.miner_id: record for record in genesis.miners}
        quorum = quorum_power(genesis.miners)
        confirmed = {
            update.digest
            for device in self.devices.values()
            for update in read_device(device.folder / "state.sqlite3", genesis, records)
            if update.stored_power >= quorum
        }
        query = "SELECT update_digest FROM entries JOIN blocks USING (block_index) WHERE certificate IS NOT NULL"
        decided = [{digest for (digest,) in self.ledger(name, query)} for name in self.miners]
        return confirmed - set.intersection(*decided)

    # --- the end ---

    def stop(self) -> None:
        """End everything in order: devices, then - when what they sent is decided - miners, sequencer, broker."""
        self.terminate(*self.devices)
        self.until(lambda: not self.undecided(), "every update that a quorum confirmed is decided", seconds=SETTLE_S)
        self.terminate(*self.miners)
        self.terminate(SEQUENCER)
        group = self.fleet.broker.pid
        self.fleet.broker.stop()
        if group is not None:
            self._processes.release(group)
        self.is_stopped = True

    def check_books(self) -> Books:
        """Audit the files that the run left: the invariants of every fault test.

        Nothing that a quorum confirmed is lost or forgotten, nothing is merged twice, every update is accounted for,
        every ledger follows from its log, and all miners have the same.
        """
        assert self.is_stopped
        found = audit(self.root, self.fleet.genesis, hostile=frozenset())
        assert found.lost == 0, found
        assert found.duplicated == 0, found
        accounted = found.merged + sum(found.refused.values()) + found.pending + found.unreceipted
        assert found.published == accounted, found
        assert found.refused_honest <= 0.05, found
        assert not self.undecided()
        ledgers = verify_directory(self.root)
        assert len(ledgers.miners) == len(self.miners)
        longest = max(miner.blocks for miner in ledgers.miners)
        for miner in ledgers.miners:  # who was behind when the fleet stopped has a beginning of the same ledger
            assert miner.blocks >= longest - 1, ledgers
        by_height: dict[int, set[bytes]] = {}
        for miner in ledgers.miners:
            by_height.setdefault(miner.heights, set()).add(miner.state_root)
        assert all(len(roots) == 1 for roots in by_height.values()), ledgers
        return Books(audit=found, ledgers=ledgers)

    def processes_left(self) -> list[str]:
        """Command lines of processes that still name a path of this fleet."""
        return [line for line in command_lines() if f"{self.root}/" in line]

    def show_logs(self) -> None:
        """Print the last lines of every log, for a failed test."""
        for path in sorted(self._workspace.logs.glob("*.log")):
            sys.stderr.write(f"--- {path.name}\n{path.read_text()[-3_000:]}\n")

    def _arguments(self, name: str) -> list[str]:
        if name == SEQUENCER:
            return ["sequencer", "run", "--config", str(self.fleet.sequencer_config)]
        if name in self.miners:
            return ["miner", "run", "--config", str(self.miners[name].config)]
        return ["device", "run", "--config", str(self.devices[name].config)]

    def _run_to_end(self, name: str, *arguments: str) -> None:
        child = self._processes.start(name, ["edge_sdk.entry", *arguments], environment={"PYTHONPATH": str(ROOT)})
        self.until(lambda: child.status is not None, f"{name} ends")
        assert child.status == 0, child.log_tail()


def failpoints_of_the_tree() -> Counter[str]:
    """Every failpoint of the product by name, read from the syntax trees.

    Raises:
        AssertionError: a failpoint's name is not a literal, so that no test could list it.
    """
    found: Counter[str] = Counter()
    for package in ("edge_sdk", "coordinator"):
        for path in sorted((ROOT / package).rglob("*.py")):
            found.update(_failpoints(path))
    return found


def command_lines() -> Iterator[str]:
    """Command lines of all processes of this machine."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                yield (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except (FileNotFoundError, ProcessLookupError):
                continue


def _failpoints(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call):
            continue
        match node.func:
            case ast.Name("hit") | ast.Attribute(ast.Name("failpoints"), "hit"):
                (argument,) = node.args
                assert isinstance(argument, ast.Constant), f"{path}:{node.lineno}: a failpoint needs a literal name"
                yield str(argument.value)


def _rows(path: Path, query: str) -> list[Any]:
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
        return database.execute(query).fetchall()
