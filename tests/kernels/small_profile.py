"""A pytest plugin: the hypothesis profile `small`, for processors that are emulated, and failures at once.

A run that its time limit ends has no summary: what failed must be in its output already.
"""

import sys

import pytest
from hypothesis import HealthCheck, settings

_SLOW = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
settings.register_profile("small", max_examples=5, deadline=None, suppress_health_check=_SLOW)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.failed:
        print(f"\n{report.nodeid} ({report.when})\n{report.longreprtext}", file=sys.stderr, flush=True)
