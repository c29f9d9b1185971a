"""Shows a run: a full view on a terminal, plain lines elsewhere. Reads the supervisor's state, decides nothing."""

from __future__ import annotations

from collections import Counter
from types import TracebackType
from typing import Final, Protocol, Self, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from coordinator.demo.layout import DevicePlace, Role
from coordinator.demo.observer import Progress, SeenBlock
from coordinator.demo.supervisor import RunState
from coordinator.demo.watch import DeviceView

LINE_EVERY_S: Final = 5.0
BLOCKS_SHOWN: Final = 8
DEVICES_SHOWN: Final = 24
EVENTS_SHOWN: Final = 4
REFRESH_PER_S: Final = 4
CURVE_WIDTH: Final = 60
_BARS: Final = " ▁▂▃▄▅▆▇█"
_ROLE_STYLE: Final = {Role.HONEST: "", Role.HOSTILE: "red", Role.SLOW: "yellow", Role.KILLED: "magenta"}


class View(Protocol):
    """Shows states; a context, because a terminal has to be given back."""

    def __enter__(self) -> Self:
        """Take the terminal."""
        ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give it back."""
        ...

    def show(self, state: RunState) -> None:
        """Show the present state; cheap when nothing has changed."""
        ...


def open_view(devices: tuple[DevicePlace, ...], *, title: str, is_live: bool, stream: TextIO) -> View:
    """The full view where it is wanted and ``stream`` is a terminal, else lines."""
    if is_live and stream.isatty():
        return LiveView(devices, title=title, stream=stream)
    return LineView(title=title, stream=stream)


class LineView:
    """A line every few seconds, and one for each event."""

    def __init__(self, *, title: str, stream: TextIO) -> None:
        self._title = title
        self._stream = stream
        self._next_s = 0.0
        self._stage = ""
        self._events = 0

    def __enter__(self) -> Self:
        self._print(self._title)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing to give back."""

    def show(self, state: RunState) -> None:
        """Print what is new."""
        for event in state.events[self._events :]:
            self._print(f"[{event.seconds:5.1f} s] {event.text}")
        self._events = len(state.events)
        if state.stage == self._stage and state.elapsed_s < self._next_s:
            return
        self._stage, self._next_s = state.stage, state.elapsed_s + LINE_EVERY_S
        self._print(f"[{state.elapsed_s:5.1f} s] {state.stage}: {summary(state)}")

    def _print(self, text: str) -> None:
        self._stream.write(text + "\n")
        self._stream.flush()


class LiveView:
    """Tables that renew themselves in place."""

    def __init__(self, devices: tuple[DevicePlace, ...], *, title: str, stream: TextIO) -> None:
        self._devices = devices
        self._title = title
        self._live = Live(console=Console(file=stream), refresh_per_second=REFRESH_PER_S, transient=True)

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.__exit__(kind, error, trace)

    def show(self, state: RunState) -> None:
        """Draw the state."""
        self._live.update(draw(self._devices, state, title=self._title))


def summary(state: RunState) -> str:
    """One line: version, blocks, pending, accuracy."""
    progress = state.progress
    causes = Counter(block.cause for block in progress.blocks)
    merged = sum(block.merged for block in progress.blocks)
    refused = sum(len(block.refused) for block in progress.blocks)
    accuracy = f"{progress.curve[-1].accuracy:.3f}" if progress.curve else "-"
    return (
        f"version {progress.version}, blocks {len(progress.blocks)} (size {causes['size']}, tau {causes['tau']}),"
        f" merged {merged}, refused {refused}, pending {progress.pending}, {progress.measure} {accuracy}"
    )


def draw(devices: tuple[DevicePlace, ...], state: RunState, *, title: str) -> Panel:
    """The whole view."""
    head = Text(f"{state.elapsed_s:5.1f} s   {state.stage} (training until {state.limit_s:.0f} s)\n{summary(state)}")
    events = Text("\n".join(f"{event.seconds:5.1f} s  {event.text}" for event in state.events[-EVENTS_SHOWN:]), "dim")
    parts: tuple[Text | Table, ...] = (head, _devices_table(devices, state), _blocks_table(state.progress.blocks))
    return Panel(Group(*parts, Text(sparkline(state.progress), "green"), events), title=title)


def sparkline(progress: Progress) -> str:
    """The curve in one line of text, from 0 to 1; below 0 counts as 0."""
    if not progress.curve:
        return ""
    points = progress.curve[-CURVE_WIDTH:]
    bars = "".join(_BARS[round(max(0.0, point.accuracy) * (len(_BARS) - 1))] for point in points)
    return f"{progress.measure} {bars} {points[-1].accuracy:.3f} (version {points[-1].version})"


def _devices_table(devices: tuple[DevicePlace, ...], state: RunState) -> Table:
    table = Table(box=None, pad_edge=False, expand=True)
    for column, justify in (
        ("device", "left"),
        ("role", "left"),
        ("last phase", "left"),
        ("model", "right"),
        ("seq", "right"),
        ("merged", "right"),
        ("refused", "right"),
        ("last receipt", "left"),
    ):
        table.add_column(column, justify="right" if justify == "right" else "left", no_wrap=True)
    for device in devices[:DEVICES_SHOWN]:
        view = state.devices.get(device.device_id, DeviceView())
        phase = "down" if device.device_id in state.down else view.phase
        numbers = (str(view.version), str(view.seq), str(view.merged), str(view.refused))
        style = _ROLE_STYLE[device.role]
        table.add_row(device.device_id, device.role.value, phase, *numbers, view.last_receipt, style=style)
    if len(devices) > DEVICES_SHOWN:
        table.add_row(f"... and {len(devices) - DEVICES_SHOWN} more")
    return table


def _blocks_table(blocks: tuple[SeenBlock, ...]) -> Table:
    table = Table(box=None, pad_edge=False, expand=True)
    for column in ("block", "cut by", "version", "merged", "refused", "certified"):
        table.add_column(column, no_wrap=True)
    for block in blocks[-BLOCKS_SHOWN:]:
        reasons = ", ".join(f"{reason} x{count}" for reason, count in Counter(block.refused).items())
        cause = Text(block.cause, "cyan" if block.cause == "size" else "yellow")
        certified = "yes" if block.is_certified else "not yet"
        table.add_row(str(block.index), cause, str(block.version), str(block.merged), reasons or "-", certified)
    return table
