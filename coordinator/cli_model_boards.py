"""What a training step asks of each board: memory as predicted, time and energy as modelled or from a measured time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from edge_sdk.energy.model import PowerProfile, energy_j
from firmware_profiles.profile import board_ids, load_profile

if TYPE_CHECKING:
    from collections.abc import Mapping

    from firmware_profiles.profile import BoardProfile

MACS_PER_CYCLE: Final = 1.0
"""Of one core, an assumption: no board has been timed. A core with 128-bit vectors can do 4 or 8; on the x86_64 machine
of the benchmarks whole steps reached 2 to 4 of its 32."""
_MHZ: Final = 1_000_000
_UNKNOWN: Final = "-"


def print_boards(peaks_mib: Mapping[str, float], *, macs: int, step_ms: float | None) -> None:
    """Print one line per board.

    Args:
        peaks_mib: Predicted peak by backend.
        macs: Multiply-accumulates of a step.
        step_ms: A measured step on the board in question, if somebody has one.
    """
    backends = tuple(peaks_mib)
    memory = " ".join(f"{f'{name} OF RAM':>20}" for name in backends)
    print(f"{'BOARD':<20} {'RAM MiB':>8} {memory} {'STEP ms':>9} {'ENERGY mJ':>10}")
    for board_id in board_ids():
        board = load_profile(board_id)
        shares = " ".join(f"{_share(peaks_mib[name], board):>20}" for name in backends)
        time_ms = step_ms if step_ms is not None else _step_ms(board, macs)
        ram = _UNKNOWN if board.ram_mib is None else f"{board.ram_mib.value:.0f}"
        print(f"{board_id:<20} {ram:>8} {shares} {_number(time_ms):>9} {_number(_energy_mj(board, time_ms)):>10}")
    assumed = f"assumed {MACS_PER_CYCLE:g} multiply-accumulate per cycle of one core: time one with flchain bench train"
    print(f"step: {'as given by --step-ms' if step_ms is not None else assumed}")
    print("energy: modelled, idle power and one core's share of the load over the step; -: no figure with a source")


def _share(peak_mib: float, board: BoardProfile) -> str:
    if board.ram_mib is None:
        return f"{peak_mib:.0f} MiB"
    return f"{peak_mib:.0f} MiB {peak_mib / board.ram_mib.value:.1%}"


def _step_ms(board: BoardProfile, macs: int) -> float | None:
    if board.max_clock_mhz is None:
        return None
    return 1000.0 * macs / (MACS_PER_CYCLE * board.max_clock_mhz.value * _MHZ)


def _energy_mj(board: BoardProfile, step_ms: float | None) -> float | None:
    if step_ms is None or board.idle_w is None or board.load_w is None or board.cores is None:
        return None
    power = PowerProfile(idle_w=board.idle_w.value, load_w=board.load_w.value, cores=int(board.cores.value))
    step_s = step_ms / 1000.0
    return 1000.0 * energy_j(power, wall_s=step_s, cpu_s=step_s)


def _number(value: float | None) -> str:
    return _UNKNOWN if value is None else f"{value:.3g}" if value < 1000 else f"{value:.0f}"
