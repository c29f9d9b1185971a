"""One measurement of a board, from end to end.

Order: what the board is; idle; every core busy; for each artifact a warm-up and then timed steps; the link; idle again.
Two idle spans show whether the board was the same before and after. A board that throttled meanwhile, or a meter that
failed, ends the measurement: figures of such a run would be wrong, and nobody could see it later.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from edge_sdk.adapters.board_facts import NOW, BoardFacts, Throttling
from edge_sdk.errors import EdgeFLError
from edge_sdk.measure.link import LinkRate, measure_link
from edge_sdk.measure.power import MeanPower, PowerSpan, every_core_busy
from edge_sdk.measure.steps import WARM_UP_STEPS, StepTimes, Training, summary
from edge_sdk.ports import Clock, EnergyMeter

log: Final = logging.getLogger(__name__)

DRIFT_MAX: Final = 0.1
"""Idle power before and after may differ by a tenth; a board that is busy or still warming up differs by more."""
STEPS_AT_ONCE: Final = 20


class UnfitBoardError(EdgeFLError):
    """The board was not in a state that can be measured; the text says what to change."""


@dataclass(frozen=True, slots=True)
class Model:
    """An artifact to train."""

    name: str
    artifact: Path
    params: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is to be measured."""

    models: tuple[Model, ...]
    backend: str
    span_s: float
    """Length of each power state, of each model's training and of each direction of the link."""
    peer: tuple[str, int] | None
    root: Path = Path("/")


@dataclass(slots=True, kw_only=True)
class Measured:
    """What came of it. A figure that could not be had is absent."""

    facts: dict[str, str] = field(default_factory=dict)
    """What the board said of itself, by what was asked."""
    powers: dict[str, MeanPower] = field(default_factory=dict)
    """By state: idle, load, train, transmit."""
    steps: dict[str, StepTimes] = field(default_factory=dict)
    link: LinkRate | None = None
    missing: list[str] = field(default_factory=list)
    """What could not be measured, and why."""


def measure(
    plan: Plan,
    meter: EnergyMeter | None,
    *,
    clock: Clock,
    say: Callable[[str], None],
    rest: Callable[[float], None] = time.sleep,
) -> Measured:
    """Measure the board.

    Args:
        plan: What.
        meter: Of power; None where the board has none.
        clock: Monotonic time.
        say: Takes a line for whoever waits.
        rest: Does nothing for that many seconds; the board idles.

    Raises:
        UnfitBoardError: the board throttled, or its idle power drifted.
        StoreError: the meter failed.
        TrainingError: an artifact cannot be trained here.
        ConnectError: the peer of the link cannot be reached.
    """
    facts = BoardFacts(root=plan.root)
    found = Measured()
    watch = _Throttle(facts)
    _note_facts(facts, found)
    power = _Power(meter, clock, found)

    cores = (facts.cores() or (1, 1))[0]
    if meter is not None:
        say(f"idle, {plan.span_s:g} s")
        power.during("idle", lambda: rest(plan.span_s))
        say(f"every core busy, {plan.span_s:g} s")
        with every_core_busy(cores):
            power.during("load", lambda: rest(plan.span_s))
    for model in plan.models:
        say(f"{model.name} on {plan.backend}, {plan.span_s:g} s")
        with Training(model.artifact, model.params, backend=plan.backend) as training:
            training.steps(WARM_UP_STEPS)
            state = "train" if len(plan.models) == 1 else f"train_{model.name}"
            power.during(state, lambda: _train(training, model, plan.span_s, clock, found))  # noqa: B023 - called at once
    if plan.peer is None:
        found.missing.append("link, transmit power: no --peer")
    else:
        say(f"link to {plan.peer[0]}, {2 * plan.span_s:g} s")
        power.during("transmit", lambda: _measure_link(plan, found))
    if meter is not None:
        say(f"idle again, {plan.span_s:g} s")
        power.during("idle_after", lambda: rest(plan.span_s))
        _check_drift(found)
    watch.check(found)
    return found


def _train(training: Training, model: Model, span_s: float, clock: Clock, found: Measured) -> None:
    """Steps until the span is over, at least once."""
    start_ns, batches = clock.monotonic_ns(), [training.steps(STEPS_AT_ONCE)]
    while (clock.monotonic_ns() - start_ns) / 1e9 < span_s:
        batches.append(training.steps(STEPS_AT_ONCE))
    found.steps[model.name] = summary(batches)


def _measure_link(plan: Plan, found: Measured) -> None:
    assert plan.peer is not None
    host, port = plan.peer
    found.link = measure_link(host, port, span_s=plan.span_s, root=plan.root)


class _Power:
    """Takes the mean power of a state, where there is a meter."""

    def __init__(self, meter: EnergyMeter | None, clock: Clock, found: Measured) -> None:
        self._meter = meter
        self._clock = clock
        self._found = found
        if meter is None:
            found.missing.append("power: this board has no meter that can be read")

    def during(self, state: str, work: Callable[[], None]) -> None:
        """Do the work, and look at the meter meanwhile."""
        if self._meter is None:
            work()
            return
        span = PowerSpan(self._meter, self._clock)
        span.begin()
        try:
            work()
        except BaseException:
            span.cancel()
            raise
        self._found.powers[state] = span.end()


class _Throttle:
    """Compares what the board says about throttling before and after."""

    def __init__(self, facts: BoardFacts) -> None:
        self._facts = facts
        flags = facts.throttling()
        if flags is not None and flags & NOW:
            raise UnfitBoardError(f"the board throttles now ({flags:#x}): mend supply or cooling first")
        self._before = flags
        self._events = facts.throttle_events()

    def check(self, found: Measured) -> None:
        """Compare; the board must be as free as it was."""
        after, events = self._facts.throttling(), self._facts.throttle_events()
        if self._events is not None and events is not None:
            if events > self._events:
                text = f"the board held its clock down {events - self._events} times while it was measured"
                raise UnfitBoardError(f"{text}: mend its cooling or supply, measure again")
            found.facts["throttle events"] = f"{events} before and after"
        if self._before is None or after is None:
            if events is None:
                found.missing.append("throttling: this board does not say")
            return
        new = after & ~self._before
        if after & NOW or new:
            names = ", ".join((flag.name or "").lower() for flag in Throttling(after & NOW | new))
            raise UnfitBoardError(
                f"the board throttled while it was measured ({names}): mend it, restart, measure again"
            )
        found.facts["throttling"] = f"{after:#x} before and after"


def _check_drift(found: Measured) -> None:
    before, after = found.powers["idle"].watts, found.powers.pop("idle_after").watts
    if abs(after - before) > DRIFT_MAX * max(before, after):
        text = f"idle power was {before:.3g} W before and {after:.3g} W after"
        raise UnfitBoardError(f"{text}: something else runs, or the board still warms up")
    found.facts["idle power"] = f"{before:.4g} W before, {after:.4g} W after"


def _note_facts(facts: BoardFacts, found: Measured) -> None:
    texts = {
        "board": facts.model(),
        "governor": facts.governor(),
        "power mode": facts.power_mode(),
        "kernel": facts.text("proc/sys/kernel/osrelease"),
    }
    found.facts |= {name: text for name, text in texts.items() if text}
    zones = facts.temperatures_c()
    if zones:
        found.facts["temperature at the start"] = f"{max(zones.values()):.1f} degrees Celsius"
    else:
        found.missing.append("temperature: no sensor")
