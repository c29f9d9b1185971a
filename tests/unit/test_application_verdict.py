"""The verdict, on numbers worked out by hand."""

from __future__ import annotations

import pytest

from coordinator.validation.verdict import RevealedScores, base_score, judge, lower_median
from edge_sdk.protocol.ids import MinerId
from edge_sdk.protocol.messages import Reason, Scores


def revealed(*rows: tuple[int, int], powers: tuple[int, ...] | None = None) -> list[RevealedScores]:
    """One (base, update) row per miner."""
    return [
        RevealedScores(
            miner_id=MinerId(f"m{i}"),
            power=1 if powers is None else powers[i],
            scores=Scores(base=base, updates=(update,), classes=()),
        )
        for i, (base, update) in enumerate(rows)
    ]


@pytest.mark.parametrize(
    ("values", "expected"),
    [([5], 5), ([1, 2], 1), ([3, 1, 2], 2), ([4, 3, 2, 1], 2), ([1, 1, 9, 9], 1), ([-2, -1, 0, 7, 9], 0)],
)
def test_the_lower_median_is_the_element_at_half_rounded_down(values: list[int], expected: int) -> None:
    assert lower_median([(value, 1) for value in values]) == expected
    assert sorted(values)[(len(values) - 1) // 2] == expected


def test_power_weighs() -> None:
    assert lower_median([(1, 1), (2, 1), (9, 3)]) == 9
    assert lower_median([(1, 2), (2, 1), (9, 3)]) == 2


@pytest.mark.parametrize(
    ("rows", "reason", "score", "difference"),
    [
        (((500, 510), (600, 590), (700, 690), (800, 790)), Reason.NONE, 590, -10),
        (((500, 489), (600, 589), (700, 690), (800, 790)), Reason.QUALITY, 589, -11),
        (((500, -1), (600, -1), (700, -1), (800, 800)), Reason.UNAVAILABLE, -1, -1_001),
        (((500, -2), (600, -2), (700, -1), (800, 800)), Reason.OUT_OF_BOUNDS, -2, -1_001),
        (((-1, 500), (-1, 500), (-1, 500), (800, 800)), Reason.QUALITY, 500, -1_001),
    ],
)
def test_verdicts(rows: tuple[tuple[int, int], ...], reason: Reason, score: int, difference: int) -> None:
    verdict = judge(revealed(*rows), 0, margin_permille=10)
    assert (verdict.reason, verdict.score, verdict.difference) == (reason, score, difference)


def test_folds_that_differ_do_not_matter_but_their_differences_do() -> None:
    rows = ((100, 101), (300, 302), (900, 899))
    assert judge(revealed(*rows), 0, margin_permille=0).difference == 1
    assert base_score(revealed(*rows)) == 300


def test_only_a_contradiction_by_far_is_named() -> None:
    rows = ((500, 505), (500, 495), (500, 470), (500, 200))
    verdict = judge(revealed(*rows), 0, margin_permille=10)
    assert verdict.reason is Reason.QUALITY
    assert verdict.outliers == ()  # far from the median, but on its side
    assert judge(revealed((500, 470), *rows[1:3], (500, 900)), 0, margin_permille=10).outliers == (MinerId("m3"),)


def test_a_powerful_miner_outweighs_two() -> None:
    rows = ((500, 400), (500, 400), (500, 500))
    assert judge(revealed(*rows), 0, margin_permille=0).reason is Reason.QUALITY
    assert judge(revealed(*rows, powers=(1, 1, 3)), 0, margin_permille=0).reason is Reason.NONE
