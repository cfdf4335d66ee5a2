"""A test that cannot run says which part it needs; where every part ought to be there, a skip is a failure."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--skips-only-for",
        metavar="PART,...",
        help="fail each test that is skipped for want of any other part (its reason reads 'needs PART...')",
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: Any) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if not hasattr(report, "wasxfail"):
        _judge(report, item.config, str(call.excinfo.value) if call.excinfo else "")
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if report.skipped and isinstance(report.longrepr, tuple):
        _judge(report, collector.config, report.longrepr[2].removeprefix("Skipped: "))
    return report


def _judge(report: pytest.TestReport | pytest.CollectReport, config: pytest.Config, reason: str) -> None:
    """Makes a failure of a skip for want of a part that may not be missing."""
    allowed = config.getoption("--skips-only-for")
    if not report.skipped or allowed is None:
        return
    if not any(part and reason.startswith(f"needs {part}") for part in allowed.split(",")):
        report.outcome = "failed"
        report.longrepr = f"skipped, where no part may be missing: {reason}"
