"""FedBuff: a buffered asynchronous mean with polynomial discount of staleness.

    w <- w + eta_g * (1/K) * sum_i s(tau_i) * delta_i,   s(tau) = 1 / sqrt(1 + tau)

over the K accepted updates of a block. Weights are integers: s in units of 2**-16, rounded down; the total is K *
2**16 and not the sum of the weights, so that a block of stale updates moves the model less.

Source: Nguyen et al. 2022, Algorithm 1 (arXiv:2106.06639).
"""

from __future__ import annotations

from math import isqrt

from edge_sdk.protocol.limits import WEIGHT_SHIFT


def weight(staleness: int) -> int:
    """Integer weight of an update, 2**16 / sqrt(1 + staleness) rounded down.

    Args:
        staleness: Version at the cut - base version, >= 0.
    """
    return isqrt((1 << 2 * WEIGHT_SHIFT) // (1 + staleness))


def total_weight(accepted_count: int) -> int:
    """What the weighted sum is divided by: K * 2**16."""
    return accepted_count << WEIGHT_SHIFT
