"""How well numbers are predicted, and how well anomalies are told from what is normal."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Flags = npt.NDArray[np.bool_]
Scores = npt.NDArray[np.floating]


def r_squared(error_mean: float, targets: npt.NDArray[np.floating]) -> float:
    """Share of the targets' variance that a prediction with this mean squared error explains; below 0: less than none.

    ``targets``: (n, outputs); the variance is that of each output, averaged.
    """
    return float(1.0 - error_mean / targets.var(axis=0, dtype=np.float64).mean())


def roc_auc(scores: Scores, is_anomaly: Flags) -> float:
    """Probability that an anomaly scores above what is normal, ties counting one half (Mann-Whitney U).

    ``scores`` and ``is_anomaly``: (n,), with both kinds present.
    """
    assert 0 < is_anomaly.sum() < len(is_anomaly), "needs both kinds"
    _, place, count = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(count) - (count - 1) / 2)[place]
    anomalies = int(is_anomaly.sum())
    normal = len(is_anomaly) - anomalies
    return float((ranks[is_anomaly].sum() - anomalies * (anomalies + 1) / 2) / (anomalies * normal))


def f1_score(is_alarm: Flags, is_anomaly: Flags) -> float:
    """Harmonic mean of precision and recall; 0 without a right alarm."""
    right = int((is_alarm & is_anomaly).sum())
    return 2 * right / (int(is_alarm.sum()) + int(is_anomaly.sum())) if right else 0.0
