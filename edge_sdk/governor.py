"""The resource governor: what the state of the board allows, as a pure policy with hysteresis.

A limit that was passed holds until its second threshold is passed the other way, so that a board at the edge does not
switch to and fro. A sensor that a board does not have (None) never limits.
"""

from __future__ import annotations

from dataclasses import dataclass

from edge_sdk.participant.events import Mode


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Thresholds; each pair is where a limit begins and where it ends."""

    temperature_max_c: float = 80.0
    temperature_resume_c: float = 70.0
    battery_min_percent: float = 40.0
    battery_resume_percent: float = 50.0
    memory_min_bytes: int = 64 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Readings:
    """The board now; None where it has no such sensor."""

    temperature_c: float | None = None
    battery_percent: float | None = None
    is_on_battery: bool = False
    is_metered: bool = False
    memory_available_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Judgement:
    """What is allowed, and why not more; ``is_hot`` and ``is_low`` are the memory of the hysteresis."""

    mode: Mode = Mode.TRAIN
    why: str = ""
    is_hot: bool = False
    is_low: bool = False


def judge(before: Judgement, readings: Readings, limits: Limits, *, is_training: bool) -> Judgement:
    """Decide what the board may do.

    Heat pauses training; a low battery leaves the upload of what is there; a metered link keeps even that waiting,
    since a finished update can wait but not be taken back. Free memory is looked at before a job, not during: a
    running job holds the memory that it needs.
    """
    is_hot = _holds(before.is_hot, readings.temperature_c, limits.temperature_max_c, limits.temperature_resume_c)
    is_low = False
    if readings.is_on_battery and readings.battery_percent is not None:
        edge = limits.battery_resume_percent if before.is_low else limits.battery_min_percent
        is_low = readings.battery_percent < edge
    is_short = (
        not is_training
        and readings.memory_available_bytes is not None
        and readings.memory_available_bytes < limits.memory_min_bytes
    )
    mode, why = Mode.TRAIN, ""
    if readings.is_metered:
        mode, why = Mode.PAUSE, "the link is metered"
    elif is_low:
        mode, why = Mode.UPLOAD_ONLY, f"battery at {readings.battery_percent:.0f} %"
    elif is_hot:
        mode, why = Mode.UPLOAD_ONLY, f"board at {readings.temperature_c:.0f} C"
    elif is_short:
        mode, why = Mode.UPLOAD_ONLY, f"{readings.memory_available_bytes} bytes of memory free"
    return Judgement(mode, why, is_hot=is_hot, is_low=is_low)


def _holds(held: bool, value: float | None, begin: float, end: float) -> bool:  # noqa: FBT001 - the state so far
    """Whether a limit upwards is in force."""
    return value is not None and value > (end if held else begin)
