"""What the demo says of personal models: on whose classes they are judged, and how the option is read."""

from __future__ import annotations

import numpy as np
import pytest

from coordinator.demo.options import SEARCH, parse
from coordinator.demo.personal import PersonalResult, expected_accuracy, report_personal
from edge_sdk.errors import ConfigError


def test_each_class_counts_as_often_as_it_occurs_on_the_board() -> None:
    recall = np.array([1.0, 0.5, np.nan, 0.0])
    assert expected_accuracy(recall, np.array([30, 10, 0, 0])) == pytest.approx(0.875)
    assert expected_accuracy(recall, np.array([0, 0, 0, 7])) == 0.0
    assert expected_accuracy(recall, np.array([10, 0, 90, 0])) == 1.0  # no test example of class 2
    assert expected_accuracy(recall, np.array([0, 0, 5, 0])) == 0.0


def result(device: str, personal: float, global_: float, *, is_chosen: bool) -> PersonalResult:
    return PersonalResult(device=device, alpha=0.62, version=9, personal=personal, global_=global_, is_chosen=is_chosen)


def test_the_report_has_both_models_of_each_device() -> None:
    assert report_personal([]) is None
    found = report_personal(
        [result("device-01", 0.9, 0.7, is_chosen=True), result("device-02", 0.6, 0.8, is_chosen=False)]
    )
    assert found is not None
    assert (found["accuracy_personal_mean"], found["accuracy_global_mean"]) == (0.75, 0.75)
    assert found["accuracy_used_mean"] == 0.85
    assert (found["better"], found["worse"]) == (1, 1)
    assert found["devices"][0] == {
        "device": "device-01",
        "alpha": 0.62,
        "version": 9,
        "accuracy_personal": 0.9,
        "accuracy_global": 0.7,
        "chosen": "personal",
    }


@pytest.mark.parametrize(("text", "expected"), [("0.75", 0.75), ("1", 1.0), (SEARCH, SEARCH)])
def test_the_option_is_a_share_or_search(text: str, expected: float | str) -> None:
    assert parse(["--personal", text]).personal == expected


@pytest.mark.parametrize("arguments", [("1.5",), ("nan",), ("half",), ("0.5", "--codec", "spsa")])
def test_other_shares_are_refused(arguments: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="--personal"):
        parse(["--personal", *arguments])


def test_without_the_option_there_are_none() -> None:
    assert parse([]).personal is None
