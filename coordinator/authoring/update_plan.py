"""Which tensors to train under a bound on memory: those that gain most, and why the others were left out.

Choosing is a knapsack whose weights depend on each other: the first tensor of a layer pays for the activations and the
gradient path that the second one finds. Two greedy orders are tried, by gain and by gain per byte of the tensor's own
plan, each taking whatever still fits; the one that gains more in sum wins.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from coordinator.authoring.contribution import with_trained
from coordinator.authoring.memory import MIB
from edge_sdk.errors import TrainingError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from edge_sdk.training.network import Network

PeakOf = Callable[["Network"], int]
"""Predicted bytes of a process that trains the network as it is marked."""
NOTHING: Final = "gains nothing on the calibration data, or less than a thousandth of the best"
_GAIN_SHARE_MIN: Final = 1e-3


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A candidate that is not trained."""

    tensor: str
    gain: float
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdatePlan:
    """What is trained within the bound."""

    network: Network
    trained: tuple[str, ...]
    left_out: tuple[LeftOut, ...]
    gain: float
    peak_bytes: int


def choose_plan(network: Network, gains: Mapping[str, float], *, limit_bytes: int, peak_of: PeakOf) -> UpdatePlan:
    """The plan of largest gain among two greedy ones.

    Args:
        network: Its trainable tensors are the candidates.
        gains: By candidate, at least 0.
        limit_bytes: Bound on the predicted peak.
        peak_of: The prediction.

    Raises:
        TrainingError: no tensor gains anything, or not even the cheapest of them fits.
    """
    least = _GAIN_SHARE_MIN * max(gains.values(), default=0.0)
    useful = [spec.name for spec in network.tensors if gains.get(spec.name, 0.0) > least]
    if not useful:
        raise TrainingError("update plan: no tensor lowers the loss on the calibration data")
    alone = {name: peak_of(with_trained(network, frozenset({name}))) for name in useful}
    cheapest = min(alone, key=lambda name: (alone[name], name))
    if alone[cheapest] > limit_bytes:
        raise TrainingError(
            f"update plan: training {cheapest} alone needs {alone[cheapest] / MIB:.1f} MiB, the limit is "
            f"{limit_bytes / MIB:.1f}: a smaller batch or another backend needs less"
        )
    floor = min(alone.values())
    by_gain = sorted(useful, key=lambda name: (-gains[name], name))
    by_density = sorted(useful, key=lambda name: (-gains[name] / (alone[name] - floor + 1), name))
    plans = [_greedy(network, gains, order, limit_bytes, peak_of) for order in (by_gain, by_density)]
    return max(plans, key=lambda plan: plan.gain)


def _greedy(
    network: Network, gains: Mapping[str, float], order: Sequence[str], limit_bytes: int, peak_of: PeakOf
) -> UpdatePlan:
    taken: set[str] = set()
    peak_bytes = 0
    refused: dict[str, int] = {}
    for name in order:
        need = peak_of(with_trained(network, frozenset(taken | {name})))
        if need <= limit_bytes:
            taken.add(name)
            peak_bytes = need
        else:
            refused[name] = need
    left_out = [
        LeftOut(name, gains[name], f"with what is trained already it would need {need / MIB:.1f} MiB")
        for name, need in refused.items()
    ]
    candidates = [spec.name for spec in network.tensors if spec.is_trainable]
    left_out += [LeftOut(name, gains.get(name, 0.0), NOTHING) for name in candidates if name not in order]
    return UpdatePlan(
        network=with_trained(network, frozenset(taken)),
        trained=tuple(name for name in candidates if name in taken),
        left_out=tuple(sorted(left_out, key=lambda left: -left.gain)),
        gain=sum(gains[name] for name in taken),
        peak_bytes=peak_bytes,
    )
