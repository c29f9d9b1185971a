"""Energy of a board without a sensor, from two powers and the processor time of one process. Quality: modelled.

P = P_idle + u (P_load - P_idle), with u the share of all cores that the process used (linear in utilisation as in
Fan, Weber and Barroso 2007, ISCA, equation 1). The idle share is counted whole: a board that waits for this process
consumes it too.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerProfile:
    """Two points of a board's power. Conditions and sources are in the board profile."""

    idle_w: float
    load_w: float
    """All cores busy."""
    cores: int


def energy_j(profile: PowerProfile, *, wall_s: float, cpu_s: float) -> float:
    """Joules of a span.

    Args:
        profile: Of the board.
        wall_s: Length of the span.
        cpu_s: Processor time that the process used in it, over all cores; more than cores * wall_s counts as that.
    """
    busy_s = min(cpu_s / profile.cores, wall_s)
    return profile.idle_w * wall_s + (profile.load_w - profile.idle_w) * busy_s
