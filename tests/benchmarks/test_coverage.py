"""The table of how often intervals hold the truth is made by its command, and put where the page has it."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from benchmarks import coverage

PAGE = Path(__file__).parents[2] / "docs" / "evaluation.md"


def test_the_page_gets_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = tmp_path / "evaluation.md"
    copy.write_text(PAGE.read_text())
    coverage.main(["--runs", "20", "--write", str(copy)])
    made = capsys.readouterr().out.strip()
    assert made in copy.read_text()
    assert made.splitlines()[:2] == PAGE.read_text().partition("<!-- coverage -->\n\n")[2].splitlines()[:2]
    assert copy.read_text().replace(made, "") == PAGE.read_text().replace(table_of(PAGE), "")


def table_of(page: Path) -> str:
    return page.read_text().partition("<!-- coverage -->\n\n")[2].partition("\n\n<!-- end of coverage -->")[0]


def test_a_page_without_a_place_is_refused(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- coverage -->")
    with pytest.raises(SystemExit):
        coverage.main(["--runs", "1", "--write", str(page)])
    assert page.read_text() == "<!-- coverage -->"


def test_the_page_has_what_the_command_finds() -> None:
    """One cell again, with all its runs; another NumPy may draw a percent otherwise."""
    shares = [coverage.held(10, a, b, 1000)[0] for a, b in coverage.PASS_RATES]
    written = re.search(r"\| 10 \| (\d+) to (\d+) %", table_of(PAGE))
    assert written is not None
    assert [int(each) / 100 for each in written.groups()] == pytest.approx([np.min(shares), np.max(shares)], abs=0.015)
