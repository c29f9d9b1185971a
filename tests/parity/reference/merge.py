"""The merge in Python integers, one value after the other: DESIGN's one rounding rule and nothing else."""

from __future__ import annotations

from collections.abc import Sequence

from edge_sdk.protocol.limits import WEIGHT_SHIFT


def merge_values(
    base: Sequence[int], updates: Sequence[tuple[int, int, Sequence[int]]], total_weight: int, server_rate_q16: int
) -> list[int]:
    """q + floor((2 eta a + W) / 2 W), a = sum of weight * value * 2**shift.

    Args:
        base: The model's integers.
        updates: (weight, shift, values).
        total_weight: W.
        server_rate_q16: eta * 2**16.
    """
    whole = total_weight << WEIGHT_SHIFT
    merged = []
    for place, start in enumerate(base):
        a = sum(weight * (values[place] << shift) for weight, shift, values in updates)
        merged.append(start + (2 * server_rate_q16 * a + whole) // (2 * whole))
    return merged
