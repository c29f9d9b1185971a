"""Starts the fleet, watches it, breaks it where the demo promises to, and stops it in order.

Order of the start: broker, sequencer and miners, registrar (inside the first miner), then devices a few at a time.
Order of the end: devices, then - when the open blocks are certified - miners, sequencer, broker.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from coordinator.demo.founding import Fleet
from coordinator.demo.layout import DevicePlace, Role
from coordinator.demo.observer import Observer, Progress
from coordinator.demo.processes import Processes
from coordinator.demo.watch import DeviceView, look_at_device
from edge_sdk.adapters.failpoints import VARIABLE as FAILPOINT
from edge_sdk.errors import EdgeFLError

TICK_S: Final = 0.25
LOOK_S: Final = 1.0
"""Device files are read this often."""
MINERS_READY_S: Final = 60.0
DEVICE_NICENESS: Final = 5
"""Boards have processors of their own; here the servers come first, or their latency would be that of a queue."""
DEVICE_START_S: Final = 4.0
"""A starting device holds its place in the queue at most this long."""
RESTARTS_MAX: Final = 3
"""Per process; one that ends more often is broken, and the run with it."""
RESTART_PAUSE_S: Final = 1.0
KILL_FAILPOINT: Final = "device.mid_chunks"
KILL_AT_UPLOAD: Final = 2
"""The victim dies in its second upload, so that it has something to lose."""
KILL_LATEST_SHARE: Final = 0.7
"""If no upload was caught by then, the victim is killed wherever it is."""
DEVICES_STOP_S: Final = 6.0
SETTLE_S: Final = 8.0
"""Open blocks get this long to be certified once the devices are gone."""
MINERS_STOP_S: Final = 6.0
EVENTS_MAX: Final = 200

SEQUENCER: Final = "sequencer"


class FleetError(EdgeFLError):
    """A process that the run cannot do without ended or never became ready."""


class InterruptedRunError(EdgeFLError):
    """Somebody asked the run to end."""


@dataclass(frozen=True, slots=True)
class RunEvent:
    """Something that the user should know about."""

    seconds: float
    text: str


@dataclass(slots=True)
class Fault:
    """The device that is killed in the middle of an upload."""

    device: DevicePlace | None
    killed_s: float | None = None
    restarted_s: float | None = None
    is_mid_upload: bool = False


@dataclass(slots=True)
class RunState:
    """What a view of the run shows. Written by the supervisor only."""

    stage: str = "starting"
    elapsed_s: float = 0.0
    limit_s: float = 0.0
    devices: dict[str, DeviceView] = field(default_factory=dict)
    down: set[str] = field(default_factory=set)
    """Processes that are not running now."""
    events: list[RunEvent] = field(default_factory=list)
    progress: Progress = field(default_factory=Progress)
    version_at_stop: int = 0


class Supervisor:
    """One run. ``on_tick`` is called about four times a second with the state, to show it."""

    def __init__(
        self,
        fleet: Fleet,
        processes: Processes,
        observer: Observer,
        *,
        origin_s: float,
        train_until_s: float,
        on_tick: Callable[[RunState], None],
    ) -> None:
        """Prepare.

        Args:
            fleet: What was founded.
            processes: Starts and ends them.
            observer: Sees blocks and models.
            origin_s: ``time.monotonic()`` at the start of the run.
            train_until_s: Seconds after the origin at which the devices are stopped.
            on_tick: Shows the state.
        """
        self.state = RunState(limit_s=train_until_s)
        victim = next((device for device in fleet.devices if device.role is Role.KILLED), None)
        self.fault = Fault(victim)
        self._fleet = fleet
        self._processes = processes
        self._observer = observer
        self._origin_s = origin_s
        self._on_tick = on_tick
        self._restarts: dict[str, int] = {}
        self._restart_due_s: dict[str, float] = {}
        self._started: set[str] = set()
        self._next_look_s = 0.0
        self.is_interrupted = False

    def run(self) -> None:
        """Start, train until a stop condition holds, stop in order.

        Raises:
            FleetError: a process did not become ready, or ended again and again.
            InterruptedRunError: a signal came before the devices were up.
            ConnectError: the broker does not start.
        """
        try:
            self._start_servers()
            self._start_devices()
            self.state.stage = "training"
            while not self._is_done():
                self._tick()
            self._stop()
        finally:
            self._observer.stop()
            self._stop_broker()

    def interrupt(self) -> None:
        """Stop at the next tick, in order. Safe to call from a signal handler."""
        self.is_interrupted = True

    # --- start ---

    def _start_servers(self) -> None:
        fleet = self._fleet
        self.state.stage = "starting broker, sequencer and miners"
        fleet.broker.start()
        assert fleet.broker.pid is not None
        self._processes.adopt(fleet.broker.pid)
        self._processes.start(SEQUENCER, _flchain("sequencer", "run", "--config", fleet.sequencer_config))
        for miner in fleet.miners:
            self._processes.start(miner.miner_id, _flchain("miner", "run", "--config", miner.config))
        # The registrar is the first miner: devices cannot enrol without it.
        deadline_s = time.monotonic() + MINERS_READY_S
        while self._observer.progress.miners_ready < len(fleet.miners):
            if time.monotonic() > deadline_s:
                tails = "; ".join(f"{miner.miner_id}: {self._tail(miner.miner_id)}" for miner in fleet.miners[:1])
                raise FleetError(
                    f"{self._observer.progress.miners_ready} of {len(fleet.miners)} miners ready"
                    f" after {MINERS_READY_S:g} s; {tails}"
                )
            self._observer.look()
            self._check_servers_alive()
            self._tick(watch=False)
        self._observer.start()

    def _start_devices(self) -> None:
        """Enrol and start a few at a time: each start costs half a second of a core; the first ones work meanwhile."""
        self.state.stage = "enrolling and starting devices"
        waiting = list(self._fleet.devices)
        enrolling: list[DevicePlace] = []
        starting: dict[str, float] = {}
        width = 2 * (os.cpu_count() or 1)
        while waiting or enrolling or starting:
            now_s = time.monotonic()
            # A device has started when it opens its run record.
            starting = {
                name: since_s
                for name, since_s in starting.items()
                if now_s - since_s < DEVICE_START_S and self.state.devices.get(name, DeviceView()).phase == "-"
            }
            for device in [device for device in enrolling if self._is_enrolled(device)]:
                enrolling.remove(device)
                self._start_device(device)
                starting[device.device_id] = now_s
            while waiting and len(starting) + len(enrolling) < width:
                device = waiting.pop(0)
                self._enrol(device)
                enrolling.append(device)
            self._tick(look=True)
            if self._is_done():
                return

    def _enrol(self, device: DevicePlace) -> None:
        self._processes.start(_enrolment(device), _flchain("device", "enrol", "--config", device.config))

    def _is_enrolled(self, device: DevicePlace) -> bool:
        """Whether the enrolment has ended well; one that failed is tried again, with the same claim and key.

        Raises:
            FleetError: it failed too often.
        """
        child = self._processes[_enrolment(device)]
        if child.status in {None, 0}:
            return child.status == 0
        self._restarts[child.name] = self._restarts.get(child.name, 0) + 1
        if self._restarts[child.name] > RESTARTS_MAX:
            raise FleetError(f"{device.device_id} could not enrol: {child.log_tail()}")
        self._note(f"{device.device_id} could not enrol, trying again: {child.log_tail()[-200:]}")
        self._enrol(device)
        return False

    def _start_device(self, device: DevicePlace) -> None:
        environment = {}
        if device is self.fault.device and self.fault.killed_s is None:
            environment[FAILPOINT] = f"{KILL_FAILPOINT}:{KILL_AT_UPLOAD}"
        self._processes.start(
            device.device_id,
            _flchain("device", "run", "--config", device.config),
            environment=environment,
            niceness=DEVICE_NICENESS,
        )
        self._started.add(device.device_id)

    # --- the run ---

    def _tick(self, *, watch: bool = True, look: bool = False) -> None:
        now_s = time.monotonic()
        self.state.elapsed_s = now_s - self._origin_s
        self.state.progress = self._observer.progress
        if look or now_s >= self._next_look_s:
            self._next_look_s = now_s + LOOK_S
            for device in self._fleet.devices:
                self.state.devices[device.device_id] = look_at_device(device.folder)
        if watch:
            self._play_fault()
            self._mend()
        self._on_tick(self.state)
        if self.is_interrupted and self.state.stage.startswith("starting"):
            raise InterruptedRunError("interrupted")
        time.sleep(TICK_S)

    def _is_done(self) -> bool:
        options, progress = self._fleet.options, self._observer.progress
        if self.is_interrupted or self.state.elapsed_s >= self.state.limit_s:
            return True
        if options.rounds is not None and progress.version >= options.rounds:
            return True
        return options.target is not None and any(point.accuracy >= options.target for point in progress.curve)

    def _play_fault(self) -> None:
        """Notice the victim's death at the failpoint, or see to it."""
        fault = self.fault
        if fault.device is None or fault.killed_s is not None or fault.device.device_id not in self._started:
            return
        child = self._processes[fault.device.device_id]
        if child.status == -signal.SIGKILL:
            fault.is_mid_upload = True
        elif child.status is None and self.state.elapsed_s > KILL_LATEST_SHARE * self.state.limit_s:
            child.kill()
        else:
            return
        fault.killed_s = self.state.elapsed_s
        where = "in the middle of an upload" if fault.is_mid_upload else "at a moment of no upload"
        self._note(f"{child.name} killed (SIGKILL) {where}")
        self._restart_due_s[child.name] = time.monotonic() + RESTART_PAUSE_S
        self.state.down.add(child.name)

    def _mend(self) -> None:
        """Start again what has ended, as systemd would on a board."""
        now_s = time.monotonic()
        for name in (*self._server_names(), *self._started):
            if self._processes[name].status is None:
                continue
            if name not in self._restart_due_s:
                self._unexpected_end(name)
            if now_s >= self._restart_due_s[name]:
                del self._restart_due_s[name]
                self._start_again(name)

    def _unexpected_end(self, name: str) -> None:
        child = self._processes[name]
        self._restarts[name] = self._restarts.get(name, 0) + 1
        if self._restarts[name] > RESTARTS_MAX:
            raise FleetError(f"{name} ended {self._restarts[name]} times; last words: {child.log_tail()}")
        self._note(f"{name} ended with status {child.status}; started again. Last words: {child.log_tail()[-200:]}")
        self._restart_due_s[name] = time.monotonic() + RESTART_PAUSE_S
        self.state.down.add(name)

    def _start_again(self, name: str) -> None:
        fleet = self._fleet
        device = next((device for device in fleet.devices if device.device_id == name), None)
        miner = next((miner for miner in fleet.miners if miner.miner_id == name), None)
        if device is not None:
            self._start_device(device)
            if device is self.fault.device and self.fault.killed_s is not None and self.fault.restarted_s is None:
                self.fault.restarted_s = self.state.elapsed_s
                self._note(f"{name} started again")
        elif miner is not None:
            self._processes.start(name, _flchain("miner", "run", "--config", miner.config))
        else:
            self._processes.start(name, _flchain("sequencer", "run", "--config", fleet.sequencer_config))
        self.state.down.discard(name)

    # --- end ---

    def _stop(self) -> None:
        self.state.stage = "stopping devices"
        self._on_tick(self.state)
        self.state.version_at_stop = self._observer.progress.version
        self._end(self._started, DEVICES_STOP_S)
        self._observer.stop()
        self.state.stage = "settling open blocks"
        deadline_s = time.monotonic() + SETTLE_S
        while time.monotonic() < deadline_s and not self._is_settled():
            self._show()
        self._observer.look(is_last=True)
        self.state.stage = "stopping miners"
        self._show()
        self._end([miner.miner_id for miner in self._fleet.miners], MINERS_STOP_S)
        self._end([SEQUENCER], MINERS_STOP_S)

    def _stop_broker(self) -> None:
        group = self._fleet.broker.pid
        self._fleet.broker.stop()
        if group is not None:
            self._processes.release(group)

    def _is_settled(self) -> bool:
        self._observer.look()
        progress = self._observer.progress
        return progress.pending == 0 and all(block.is_certified for block in progress.blocks)

    def _end(self, names: Iterable[str], timeout_s: float) -> None:
        for name in self._processes.stop(names, timeout_s=timeout_s):
            self._note(f"{name} did not stop within {timeout_s:g} s and was killed")

    def _show(self) -> None:
        self.state.elapsed_s = time.monotonic() - self._origin_s
        self.state.progress = self._observer.progress
        self._on_tick(self.state)
        time.sleep(TICK_S)

    def _check_servers_alive(self) -> None:
        for name in self._server_names():
            if self._processes[name].status is not None:
                raise FleetError(f"{name} ended with status {self._processes[name].status}: {self._tail(name)}")

    def _server_names(self) -> tuple[str, ...]:
        return (SEQUENCER, *(miner.miner_id for miner in self._fleet.miners))

    def _tail(self, name: str) -> str:
        return self._processes[name].log_tail()

    def _note(self, text: str) -> None:
        if len(self.state.events) < EVENTS_MAX:
            self.state.events.append(RunEvent(time.monotonic() - self._origin_s, text))


def _enrolment(device: DevicePlace) -> str:
    """Name of the process that enrols a device."""
    return f"{device.device_id}.enrol"


def _flchain(*arguments: object) -> list[str]:
    return ["edge_sdk.entry", *map(str, arguments)]
