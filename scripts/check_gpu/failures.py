"""A plugin of pytest: each failure as soon as it is there, since a run whose time is up prints none of its summary."""

from __future__ import annotations

import sys

import pytest


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Print where and why a test has failed."""
    if report.failed:
        print(f"\nFAILED {report.nodeid} ({report.when})\n{report.longreprtext[-2500:]}", file=sys.stderr, flush=True)
