"""Deal training examples to devices: iid, Dirichlet label skew, k classes each, or the natural owners.

Every method returns one index array per device; the arrays are disjoint. Source of the splits: H. Hsu, H. Qi, M. Brown,
arXiv:1909.06335 (Dirichlet); H. B. McMahan et al., arXiv:1602.05629 (iid, classes).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from edge_sdk.errors import ConfigError

Indices = npt.NDArray[np.int64]
EXAMPLES_PER_DEVICE_MIN: Final = 8
REDRAWS_MAX: Final = 200


@dataclass(frozen=True, slots=True)
class Partition:
    """``iid``, ``dirichlet`` with alpha > 0, ``classes`` with k >= 1, or ``natural``."""

    method: str
    parameter: float = 0.0

    def __str__(self) -> str:
        """Give back the text of the option."""
        return f"{self.method}:{self.parameter:g}" if self.method in {"dirichlet", "classes"} else self.method


def parse_partition(text: str) -> Partition:
    """Read ``iid``, ``natural``, ``dirichlet:0.5`` or ``classes:2``.

    Raises:
        ConfigError: anything else.
    """
    expected = "expected iid, natural, dirichlet:A (A > 0) or classes:K (K >= 1)"
    method, _, value = text.partition(":")
    if method in {"iid", "natural"} and not value:
        return Partition(method)
    try:
        number = float(value)
    except ValueError as error:
        raise ConfigError(f"--partition {text}: {expected}") from error
    if method == "dirichlet" and 0 < number < float("inf"):
        return Partition(method, number)
    if method == "classes" and number >= 1 and number == int(number):
        return Partition(method, number)
    raise ConfigError(f"--partition {text}: {expected}")


def deal(
    y: npt.NDArray[np.int64],
    groups: npt.NDArray[np.int64] | None,
    partition: Partition,
    devices: int,
    rng: np.random.Generator,
) -> list[Indices]:
    """Return ``devices`` disjoint index arrays into ``y``, each with at least ``EXAMPLES_PER_DEVICE_MIN`` examples.

    Args:
        y: Labels, shape (n,).
        groups: Natural owner of each example, shape (n,), for ``natural``.
        partition: The method.
        devices: Number of shares, >= 1.
        rng: Source of every draw.

    Raises:
        ConfigError: the data cannot be dealt that way.
    """
    if devices < 1 or len(y) < devices * EXAMPLES_PER_DEVICE_MIN:
        raise ConfigError(
            f"{len(y)} training examples for {devices} devices: expected at least {EXAMPLES_PER_DEVICE_MIN} each"
        )
    if partition.method == "natural":
        return _natural(groups, devices)
    class_count = len(np.unique(y))
    if partition.method == "classes" and partition.parameter > class_count:
        raise ConfigError(f"--partition {partition}: the data has {class_count} classes: expected at most as many")
    draw = {"iid": _iid, "dirichlet": _dirichlet, "classes": _classes}[partition.method]
    for _ in range(REDRAWS_MAX):
        shares = draw(y, partition.parameter, devices, rng)
        if min(len(share) for share in shares) >= EXAMPLES_PER_DEVICE_MIN:
            return shares
    raise ConfigError(
        f"--partition {partition}: no draw of {REDRAWS_MAX} gave each of {devices} devices "
        f"{EXAMPLES_PER_DEVICE_MIN} examples: expected fewer devices or less skew"
    )


def _iid(y: npt.NDArray[np.int64], _: float, devices: int, rng: np.random.Generator) -> list[Indices]:
    return [np.sort(share) for share in np.array_split(rng.permutation(len(y)), devices)]


def _dirichlet(y: npt.NDArray[np.int64], alpha: float, devices: int, rng: np.random.Generator) -> list[Indices]:
    shares: list[list[Indices]] = [[] for _ in range(devices)]
    for label in np.unique(y):
        members = rng.permutation(np.flatnonzero(y == label))
        cuts = (np.cumsum(rng.dirichlet(np.full(devices, alpha)))[:-1] * len(members)).astype(np.int64)
        for share, piece in zip(shares, np.split(members, cuts), strict=True):
            share.append(piece)
    return [np.sort(np.concatenate(share)) for share in shares]


def _classes(y: npt.NDArray[np.int64], count: float, devices: int, rng: np.random.Generator) -> list[Indices]:
    """Each device draws k labels; the examples of a label are dealt equally to those that drew it."""
    labels = np.unique(y)
    per_device = int(count)
    # Deal from shuffled decks of all labels, so that the labels are spread as evenly as they can be.
    deck: list[int] = []
    owners: dict[int, list[int]] = {int(label): [] for label in labels}
    for device in range(devices):
        drawn: list[int] = []
        while len(drawn) < per_device:
            if not deck:
                deck = [int(label) for label in rng.permutation(labels)]
            label = deck.pop()
            if label not in drawn:
                drawn.append(label)
                owners[label].append(device)
    shares: list[list[Indices]] = [[] for _ in range(devices)]
    for label, holders in owners.items():
        members = rng.permutation(np.flatnonzero(y == label))
        for device, piece in zip(holders, np.array_split(members, max(1, len(holders))), strict=False):
            shares[device].append(piece)
    return [np.sort(np.concatenate(share)) if share else np.empty(0, dtype=np.int64) for share in shares]


def _natural(groups: npt.NDArray[np.int64] | None, devices: int) -> list[Indices]:
    if groups is None:
        raise ConfigError("--partition natural: this data set names no owners: expected iid, dirichlet:A or classes:K")
    owners = np.unique(groups)
    if len(owners) < devices:
        raise ConfigError(f"--partition natural: {devices} devices for {len(owners)} owners: expected no more devices")
    # More owners than devices: neighbours share one, so that no data is left out.
    return [np.flatnonzero(np.isin(groups, part)) for part in np.array_split(owners, devices)]
