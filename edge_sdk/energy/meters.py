"""Opens the energy meter that a configuration names."""

from __future__ import annotations

import time
from pathlib import Path

from edge_sdk.adapters.system_clock import SystemClock
from edge_sdk.energy.ina2xx import Ina2xx
from edge_sdk.energy.ina3221 import Ina3221
from edge_sdk.energy.model import PowerProfile, energy_j
from edge_sdk.energy.pi5_pmic import Pi5Pmic
from edge_sdk.energy.power_source import SampledMeter
from edge_sdk.energy.rapl import RaplMeter
from edge_sdk.errors import ConfigError, StoreError
from edge_sdk.ports import Clock, EnergyMeter, Scope
from edge_sdk.protocol.messages import EnergyQuality
from firmware_profiles.profile import UnknownBoardError, load_profile


class ModelledMeter:
    """Energy of this process's board by the model of ``model.py``."""

    scope = Scope.WALL
    """The profiles' powers are measured at the wall."""
    quality = EnergyQuality.MODELLED

    def __init__(self, profile: PowerProfile, clock: Clock) -> None:
        """Start at zero."""
        self._profile = profile
        self._clock = clock
        self._start_ns = clock.monotonic_ns()
        self._start_cpu_ns = time.process_time_ns()

    def energy_j(self) -> float:
        """Joules since the meter was opened."""
        wall_s = (self._clock.monotonic_ns() - self._start_ns) / 1e9
        cpu_s = (time.process_time_ns() - self._start_cpu_ns) / 1e9
        return energy_j(self._profile, wall_s=wall_s, cpu_s=cpu_s)


def open_meter(kind: str, board_id: str | None, *, root: Path = Path("/")) -> EnergyMeter | None:
    """The meter of that kind; None where neither a sensor nor a board with known powers is named.

    Raises:
        ConfigError: no such board.
        StoreError: the sensor cannot be read.
    """
    clock = SystemClock()
    match kind:
        case "rapl":
            return RaplMeter(root=root)
        case "ina3221":
            return SampledMeter(Ina3221(root=root), clock)
        case "ina2xx":
            return SampledMeter(Ina2xx(root=root), clock)
        case "pi5-pmic":
            return SampledMeter(Pi5Pmic(root=root), clock)
        case _:
            return None if board_id is None else _modelled(board_id, clock)


def find_meter(*, root: Path = Path("/")) -> tuple[str, EnergyMeter] | None:
    """Kind and meter of the first sensor that this board has and that may be read; None where there is none.

    A sensor in the supply line comes first: it sees more of the board than one on the module or in the processor.
    """
    for kind in ("ina2xx", "ina3221", "pi5-pmic", "rapl"):
        try:
            meter = open_meter(kind, None, root=root)
        except StoreError:
            continue  # not on this board
        if meter is not None:
            return kind, meter
    return None


def _modelled(board_id: str, clock: Clock) -> EnergyMeter | None:
    try:
        board = load_profile(board_id)
    except UnknownBoardError as error:
        raise ConfigError(f"[board] profile: {error}") from error
    if board.idle_w is None or board.load_w is None:
        return None
    cores = 1 if board.cores is None else round(board.cores.value)
    return ModelledMeter(PowerProfile(idle_w=board.idle_w.value, load_w=board.load_w.value, cores=cores), clock)
