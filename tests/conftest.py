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
    allowed = item.config.getoption("--skips-only-for")
    if report.skipped and allowed is not None and not hasattr(report, "wasxfail"):
        reason = str(call.excinfo.value) if call.excinfo else ""
        if not any(part and reason.startswith(f"needs {part}") for part in allowed.split(",")):
            report.outcome = "failed"
            report.longrepr = f"skipped, where no part may be missing: {reason}"
    return report
