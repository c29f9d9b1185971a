"""A flood of false messages is counted in full and said now and then; other kinds are heard meanwhile."""

import logging

import pytest

from edge_sdk.device.reports import LINES_PER_MINUTE_MAX, Reports


def test_a_flood_is_counted_and_the_log_stays_short(caplog: pytest.LogCaptureFixture) -> None:
    reports = Reports()
    with caplog.at_level(logging.INFO):
        for now_ms in range(5_000):
            reports.add("message.refused.malformed", "noise", now_ms=now_ms, level=logging.INFO)
        reports.add("model.failed", "version 3 of m1", now_ms=5_000)
        reports.add("message.refused.malformed", "noise", now_ms=60_000)
    lines = [record.getMessage() for record in caplog.records]
    assert reports.counts == {"message.refused.malformed": 5_001, "model.failed": 1}
    assert lines[:LINES_PER_MINUTE_MAX] == ["message.refused.malformed: noise"] * LINES_PER_MINUTE_MAX
    assert lines[LINES_PER_MINUTE_MAX:] == [
        "model.failed: version 3 of m1",
        f"message.refused.malformed: noise (and {5_000 - LINES_PER_MINUTE_MAX} more like it before)",
    ]
