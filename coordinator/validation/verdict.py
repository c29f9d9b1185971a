"""The verdict on one update: a lower median of integers, which a minority of liars cannot move out of the honest range.

Every miner scores the model as it is (the base) and as it would be with one update merged, on a fold that nobody else
has. Folds differ, so a raw score says as much of the fold as of the update; the *difference* from the same miner's
base does not. The update is accepted when the lower median of the differences is not more than ``margin_permille``
below zero.

The median weighs each value with the miner's voting power: the smallest value at which the power so far reaches half
of all. With equal power it is the element (m - 1) // 2 of m sorted ones. When liars hold less than half of the
revealed power - less than a third of all suffices, as a round closes with more than two thirds - an honest value lies
at or below the median and another at or above it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from edge_sdk.protocol.ids import MinerId
from edge_sdk.protocol.limits import SCORE_MAX, SCORE_OUT_OF_BOUNDS
from edge_sdk.protocol.messages import Reason, Scores

DIFFERENCE_MIN: Final = -SCORE_MAX - 1
"""Stands for a score that a miner could not give: worse than any score."""
OUTLIER_PERMILLE: Final = 200
"""A miner whose difference is further than this from the median, and on the other side of the margin, is named."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RevealedScores:
    """What one miner revealed, and the voting power behind it."""

    miner_id: MinerId
    power: int
    scores: Scores


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateVerdict:
    """The quorum's decision on one update. ``reason`` is ``NONE`` when accepted."""

    reason: Reason
    score: int
    """Lower median of the raw scores, per mille, or a negative code."""
    difference: int
    """Lower median of score - base, per mille."""
    outliers: tuple[MinerId, ...]
    """Miners that contradict the median by far: a hint for the operator, not a proof."""


def lower_median(weighted: Sequence[tuple[int, int]]) -> int:
    """Return the smallest value at which the accumulated power reaches half of the whole.

    Args:
        weighted: (value, power) pairs in any order, power > 0, at least one.
    """
    total = sum(power for _, power in weighted)
    accumulated = 0
    for value, power in sorted(weighted):
        accumulated += power
        if 2 * accumulated >= total:
            return value
    raise AssertionError("a median of nothing")


def base_score(revealed: Sequence[RevealedScores]) -> int:
    """Lower median of the miners' scores of the base."""
    return lower_median([(r.scores.base, r.power) for r in revealed])


def judge(revealed: Sequence[RevealedScores], position: int, *, margin_permille: int) -> UpdateVerdict:
    """Decide on one update.

    Args:
        revealed: Scores of distinct miners with more than 2/3 of the voting power.
        position: Place of the update among the block's candidates.
        margin_permille: An update may cost this much, >= 0.

    Cost: O(m log m) for m miners.
    """
    score = lower_median([(r.scores.updates[position], r.power) for r in revealed])
    differences = [(r.miner_id, _difference(r.scores, position), r.power) for r in revealed]
    median = lower_median([(difference, power) for _, difference, power in differences])
    if score < 0:
        reason = Reason.OUT_OF_BOUNDS if score == SCORE_OUT_OF_BOUNDS else Reason.UNAVAILABLE
    elif median < -margin_permille:
        reason = Reason.QUALITY
    else:
        reason = Reason.NONE
    accepted = median >= -margin_permille
    outliers = tuple(
        miner_id
        for miner_id, difference, _ in differences
        if abs(difference - median) > OUTLIER_PERMILLE and (difference >= -margin_permille) != accepted
    )
    return UpdateVerdict(reason=reason, score=score, difference=median, outliers=outliers)


def _difference(scores: Scores, position: int) -> int:
    score = scores.updates[position]
    return DIFFERENCE_MIN if score < 0 or scores.base < 0 else score - scores.base
