"""A board whose clock is ten years off: it keeps its model, takes no new one, tells the doctor, and recovers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import pytest

from tests.support.real_fleet import RealFleet

pytestmark = [pytest.mark.network, pytest.mark.fault, pytest.mark.usefixtures("mosquitto_path")]

DEVICE: Final = "device-01"
TEN_YEARS_S: Final = 10 * 365 * 86_400


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealFleet]:
    with RealFleet(tmp_path_factory.mktemp("clock")) as running:
        yield running
    assert running.processes_left() == []


@pytest.mark.parametrize(
    ("offset_s", "refusal", "words"),
    [
        (TEN_YEARS_S, "model.refused.expired", "or this clock is ahead"),
        (-TEN_YEARS_S, "model.refused.clock", "the clock is behind"),
    ],
)
def test_a_clock_ten_years_off(fleet: RealFleet, offset_s: int, refusal: str, words: str) -> None:
    fleet.terminate(DEVICE)
    kept = fleet.installed(DEVICE)
    fleet.start(DEVICE, clock_offset_s=offset_s)
    fleet.until(lambda: refusal in fleet.log(DEVICE), f"the log says {refusal}")
    fleet.until_progress(blocks=3)  # the others go on, and offer newer models
    assert fleet.child(DEVICE).status is None
    assert fleet.installed(DEVICE) == kept

    status, findings = fleet.doctor(DEVICE, clock_offset_s=offset_s)
    assert status == 1
    assert any(line.startswith("fail  clock: ") and words in line for line in findings.splitlines()), findings

    fleet.terminate(DEVICE)
    fleet.start(DEVICE)
    fleet.until(lambda: fleet.installed(DEVICE) > kept, "a new model is installed with the right clock")
    fleet.until_merged_again(DEVICE)
    status, findings = fleet.doctor(DEVICE)
    assert status == 0, findings


def test_the_books_are_right_after_all_of_it(fleet: RealFleet) -> None:
    fleet.stop()
    assert fleet.processes_left() == []
    fleet.check_books()
