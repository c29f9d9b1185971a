"""Which aggregation rules mean something for which update codec; what does not is refused when a task is set up.

Every codec decodes to integers on the model's grid, so every rule could be computed. Whether its promise survives is
another question: a rule that compares updates value by value, or by the angle between them, needs updates that say
something about the same values.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

from edge_sdk.protocol.messages import Codec


class Family(Enum):
    """What a rule does with updates."""

    MEAN = "weighted mean"
    """Linear, with bounds on the norm of each update: FedBuff, FedAsync, FedFix, centred clipping."""
    ORDER = "order of values"
    """Per value: median, trimmed mean, Meamed, the second half of Bulyan."""
    DISTANCE = "distances"
    """Between whole updates: Krum, Multi-Krum, geometric median, nearest-neighbour mixing."""
    ANGLE = "angles"
    """Between whole updates or their histories: FLTrust, FoolsGold."""


FAMILIES: Final = {"fedbuff": Family.MEAN}
"""The rules that exist."""

_SPARSE: Final = "most values of an update are not sent, so the middle one of a column is zero and nothing is learned"
_ORTHOGONAL: Final = "updates lie along random directions of their own, nearly at right angles"
UNSUITABLE: Final[dict[tuple[Family, Codec], str]] = {
    (Family.ORDER, Codec.INT8_TOPK): _SPARSE,
    (Family.DISTANCE, Codec.INT8_TOPK): "honest updates name different values, so their distances measure the choice",
    (Family.ORDER, Codec.SPSA): f"{_ORTHOGONAL}, so the middle of a column is noise",
    (Family.DISTANCE, Codec.SPSA): f"{_ORTHOGONAL}, so all distances are alike and the shortest update wins",
    (Family.ANGLE, Codec.SPSA): f"{_ORTHOGONAL}, so no two of them ever look alike",
}
"""Family and codec whose promise does not hold, and why."""


def objection(family: Family, codec: Codec) -> str | None:
    """Reason to refuse a rule of this family for a codec; None where it keeps its promise."""
    return UNSUITABLE.get((family, codec))
