"""Whatever is drawn, shares and folds are disjoint, and nothing of the test set is among them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.datasets.labelled import LabelledData
from coordinator.datasets.partition import EXAMPLES_PER_DEVICE_MIN, Partition, deal, parse_partition
from coordinator.datasets.split import split
from edge_sdk.errors import ConfigError

PARTITIONS = st.sampled_from(["iid", "dirichlet:0.5", "dirichlet:100", "classes:2", "natural"])


def labelled(count: int, classes: int, owners: int, seed: int) -> LabelledData:
    rng = np.random.default_rng(seed)
    y = np.arange(count, dtype=np.int64) % classes
    return LabelledData(
        name="drawn",
        x_train=rng.normal(size=(count, 3)).astype(np.float32),
        y_train=y,
        x_test=np.zeros((4, 3), dtype=np.float32),
        y_test=y[:4],
        groups=np.sort(rng.integers(0, owners, count)),
        class_names=tuple(str(label) for label in range(classes)),
    )


@given(PARTITIONS, st.integers(1, 12), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_folds_and_shares_are_disjoint_and_large_enough(text: str, devices: int, miners: int, seed: int) -> None:
    data = labelled(1200, 5, 16, seed)
    try:
        parts = split(
            data,
            miners=miners,
            devices=devices,
            fold_examples=40,
            partition=parse_partition(text),
            rng=np.random.default_rng(seed),
        )
    except ConfigError as error:
        assert "no draw" in str(error)  # noqa: PT017 - skew may be infeasible, and then must say so
        return
    assert len(parts.folds) == miners
    assert len(parts.shares) == devices
    everything = np.concatenate([*parts.folds, *parts.shares])
    assert len(np.unique(everything)) == len(everything)
    assert min(len(share) for share in parts.shares) >= EXAMPLES_PER_DEVICE_MIN
    if text == "natural":
        assert data.groups is not None
        fold_owners = set(data.groups[np.concatenate(parts.folds)].tolist())
        share_owners = set(data.groups[np.concatenate(parts.shares)].tolist())
        assert fold_owners.isdisjoint(share_owners)
    else:
        for fold in parts.folds:
            assert np.bincount(data.y_train[fold], minlength=5).min() >= 40 // 5 - 2


@given(st.integers(0, 2**32 - 1))
def test_classes_gives_each_device_at_most_k_labels(seed: int) -> None:
    y = np.arange(1000, dtype=np.int64) % 10
    for share in deal(y, None, Partition("classes", 3), 10, np.random.default_rng(seed)):
        assert len(np.unique(y[share])) == 3


def test_same_seed_same_shares() -> None:
    y = np.arange(500, dtype=np.int64) % 10
    first, again = (deal(y, None, Partition("dirichlet", 0.5), 5, np.random.default_rng(7)) for _ in range(2))
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    "text", ["", "dirichlet", "dirichlet:0", "dirichlet:nan", "dirichlet:-1", "classes:0.5", "iid:3", "x:1"]
)
def test_unknown_partition_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="expected iid"):
        parse_partition(text)


def test_infeasible_partition_says_so() -> None:
    y = np.arange(200, dtype=np.int64) % 10
    with pytest.raises(ConfigError, match="no draw of"):
        deal(y, None, Partition("dirichlet", 0.001), 20, np.random.default_rng(0))
    with pytest.raises(ConfigError, match="names no owners"):
        deal(y, None, Partition("natural"), 2, np.random.default_rng(0))
    with pytest.raises(ConfigError, match="200 training examples for 90 devices"):
        deal(y, None, Partition("iid"), 90, np.random.default_rng(0))
