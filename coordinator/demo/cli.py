"""``flchain demo``: found a fleet, run it, audit it, report."""

from __future__ import annotations

import contextlib
import logging
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any, Final

from rich.console import Console

from coordinator.demo import facts, table, yardstick
from coordinator.demo.founding import Fleet, choose_broker, found
from coordinator.demo.live import open_view
from coordinator.demo.material import gather
from coordinator.demo.observer import Observer
from coordinator.demo.options import Options, parse
from coordinator.demo.processes import Processes
from coordinator.demo.report import build_report, write_report
from coordinator.demo.supervisor import FleetError, Supervisor
from coordinator.demo.workspace import Workspace
from coordinator.json_log import log_json_lines
from edge_sdk.errors import CorruptLedgerError

EXIT_FAILURE: Final = 1
EXIT_INTERRUPTED: Final = 130
CLOSING_S: Final = 14.0
"""Kept back of the wall time for the ordered stop, the audit and the picture."""
CLOSING_SHARE_MAX: Final = 0.35
BASELINE_WAIT_S: Final = 600.0
BASELINE: Final = "baseline"
REPORT_FILE: Final = "report.json"
PICTURE_FILE: Final = "picture.png"


def main(argv: Sequence[str]) -> int:
    """Run the demo.

    Returns:
        0; 1 when the audit finds something lost, merged twice or not verified; 130 after Ctrl-C, with a report of what
        was done until then.

    Raises:
        ConfigError: a wrong option, before anything starts.
        EdgeFLError: the fleet could not run.
    """
    origin_s, start_ns = time.monotonic(), time.monotonic_ns()
    options = parse(argv)
    broker_kind = choose_broker(options.broker)
    material = gather(options)
    with Workspace(options.keep) as workspace, Processes(workspace.logs) as processes:
        _log_to(workspace.logs / "supervisor.log")
        fleet = found(options, workspace, material, broker_kind)
        result_file = workspace.root / "baseline.json"
        processes.start(BASELINE, ["coordinator.demo.yardstick", str(result_file), *argv])
        supervisor, observer = _run(fleet, processes, origin_s)
        waiting_s = time.monotonic()
        baseline = _baseline(processes, result_file)
        waited_s = time.monotonic() - waiting_s
        _complete_curve(observer, workspace.root, seconds=waiting_s - origin_s)
        known, problem = facts.gather_facts(
            fleet,
            curve=observer.progress.curve,
            baseline=baseline,
            start_ns=start_ns,
        )
        # The yardstick is no part of the run: on large data sets it needs the processor for itself, afterwards.
        report = build_report(replace(known, wall_s=time.monotonic() - origin_s - waited_s))
        _publish(report, options, workspace)
        Console().print(table.summary(report, supervisor.state.events))
        if problem is not None:
            print(f"ledger: {problem}", file=sys.stderr)
        if supervisor.is_interrupted:
            return EXIT_INTERRUPTED
        return 0 if _is_sound(report) else EXIT_FAILURE


def _run(fleet: Fleet, processes: Processes, origin_s: float) -> tuple[Supervisor, Observer]:
    """Run the fleet to its ordered end."""
    options = fleet.options
    observer = Observer(
        [miner.url for miner in fleet.miners],
        genesis=fleet.genesis,
        artifact=fleet.material.artifact,
        data=fleet.material.data,
        origin_s=origin_s,
    )
    closing_s = min(CLOSING_S, CLOSING_SHARE_MAX * options.max_seconds)
    title = (
        f"flchain demo: {options.dataset}, {options.model}, {options.devices} devices, {options.miners} miners, "
        f"{options.partition}, {options.codec}, hostile {options.byzantine}, broker {fleet.broker_kind.value}"
    )
    with (
        contextlib.closing(observer),
        open_view(fleet.devices, title=title, is_live=options.is_live, stream=sys.stdout) as view,
    ):
        supervisor = Supervisor(
            fleet,
            processes,
            observer,
            origin_s=origin_s,
            train_until_s=options.max_seconds - closing_s,
            on_tick=view.show,
        )
        observer.evaluate(fleet.material.params, 0, time.monotonic() - origin_s)
        with _signals(supervisor):
            supervisor.run()
    return supervisor, observer


def _complete_curve(observer: Observer, root: Path, *, seconds: float) -> None:
    """Evaluate the last model if it was certified after the observer's last look: the curve ends with it."""
    with contextlib.suppress(CorruptLedgerError):  # the audit names it
        newest = facts.newest_model(root)
        if newest is not None and newest[0] > observer.progress.version:
            observer.evaluate(newest[1], newest[0], seconds)


@contextlib.contextmanager
def _signals(supervisor: Supervisor) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM stops in order; a second one stops at once, and the guardian cleans up."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        if supervisor.is_interrupted:
            raise KeyboardInterrupt
        supervisor.interrupt()

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, interrupt) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _baseline(processes: Processes, result_file: Path) -> Any:
    """Wait for the yardstick: on large data sets it goes on when the fleet has left it the processor."""
    child, deadline_s = processes[BASELINE], time.monotonic() + BASELINE_WAIT_S
    if child.status is None:
        print("waiting for the centralized baseline", file=sys.stderr)
    while child.status is None and time.monotonic() < deadline_s:
        time.sleep(0.1)
    if child.status != 0:
        raise FleetError(f"the baseline ended with status {child.status}: {child.log_tail()}")
    return yardstick.read_baseline(result_file)


def _publish(report: dict[str, Any], options: Options, workspace: Workspace) -> None:
    """Write report and picture where the user asked for them, and into a kept folder."""
    from coordinator.demo import picture  # matplotlib takes a second to load

    folders = [workspace.root] if workspace.is_kept else []
    targets = [(folder / REPORT_FILE, folder / PICTURE_FILE) for folder in folders]
    if options.report is not None:
        targets.append((options.report, options.report.with_suffix(".png")))
    for report_file, picture_file in targets:
        write_report(report, report_file)
        picture.draw(report, picture_file)


def _is_sound(report: dict[str, Any]) -> bool:
    updates = report["updates"]
    return bool(report["ledger_verified"]) and updates["lost"] == 0 and updates["duplicated"] == 0


def _log_to(path: Path) -> None:
    """The supervisor's own log goes to a file: the terminal belongs to the view."""
    log_json_lines(path.open("a", encoding="utf-8"), level=logging.INFO)
