"""The table of all measured rows ends every run of the benchmarks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.support.measurements import TABLE, table

if TYPE_CHECKING:
    import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table and keep it beside the rows."""
    text = table()
    if text:
        TABLE.write_text(text)
        terminalreporter.section(f"benchmarks, kept in {TABLE.parent.name}/")
        terminalreporter.write(text)
