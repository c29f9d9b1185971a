"""Keep validation data for the miners out of the training set before any of it is dealt to devices."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from coordinator.datasets.partition import Indices, Partition, deal
from coordinator.datasets.task import TaskData, classes_of
from edge_sdk.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Split:
    """Disjoint index arrays into the training set: one fold per miner, one share per device."""

    folds: tuple[Indices, ...]
    shares: tuple[Indices, ...]


def split(
    data: TaskData,
    *,
    miners: int,
    devices: int,
    fold_examples: int,
    partition: Partition,
    rng: np.random.Generator,
) -> Split:
    """Carve ``miners`` folds out of the training data and deal the rest.

    With ``natural`` partition whole owners become folds, so that no owner's data is both trained on and scored with;
    otherwise a fold holds every class in the proportions of the training set, at most ``fold_examples`` examples.

    Raises:
        ConfigError: too little data for folds and shares.
    """
    if partition.method == "natural" and data.groups is not None:
        held, folds = _folds_of_owners(data.groups, miners, devices, fold_examples, rng)
    else:
        folds = _stratified_folds(classes_of(data), miners, fold_examples, rng)
        held = np.concatenate(folds)
    rest = np.setdiff1d(np.arange(len(data.y_train)), held)
    groups = None if data.groups is None else data.groups[rest]
    shares = [rest[share] for share in deal(classes_of(data)[rest], groups, partition, devices, rng)]
    everything = np.concatenate([*folds, *shares])
    assert len(np.unique(everything)) == len(everything), "folds and shares overlap"
    return Split(tuple(folds), tuple(shares))


def _stratified_folds(
    y: npt.NDArray[np.int64], miners: int, fold_examples: int, rng: np.random.Generator
) -> list[Indices]:
    if fold_examples * miners * 2 > len(y):
        raise ConfigError(
            f"{miners} folds of {fold_examples} examples from {len(y)}: expected at most half of the training data"
        )
    # Walk through all classes at the same relative pace and stop after what the folds need; then deal class by class.
    pace = np.empty(len(y), dtype=np.float64)
    for label in np.unique(y):
        members = rng.permutation(np.flatnonzero(y == label))
        pace[members] = (np.arange(len(members)) + 0.5) / len(members)
    walk = np.lexsort((y, pace))[: fold_examples * miners]
    by_class = walk[np.argsort(y[walk], kind="stable")]
    return [np.sort(by_class[miner::miners]) for miner in range(miners)]


def _folds_of_owners(
    groups: npt.NDArray[np.int64], miners: int, devices: int, fold_examples: int, rng: np.random.Generator
) -> tuple[Indices, list[Indices]]:
    """Owners that are no devices supply the folds; their examples are mixed so that every fold sees each of them."""
    owners = rng.permutation(np.unique(groups))
    spare = owners[devices:]
    if len(spare) == 0:
        raise ConfigError(
            f"--partition natural: {len(owners)} owners for {devices} devices leave none for the folds of the miners"
        )
    held = np.flatnonzero(np.isin(groups, spare))
    mixed = rng.permutation(held)
    return held, [np.sort(part[:fold_examples]) for part in np.array_split(mixed, miners)]
