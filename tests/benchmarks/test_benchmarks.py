"""The benchmarks measure what they say, against peers that compute the same. No figure is judged here."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import reference

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks import page  # noqa: E402
from benchmarks.measurement import in_turns, of_rounds  # noqa: E402
from benchmarks.peers import CachedWeights, paper_s, paper_sloo_minus_one  # noqa: E402
from benchmarks.table import Bar, Result, markdown  # noqa: E402


@pytest.mark.parametrize("k", [2, 3, 8])
def test_peers_give_the_exact_advantages(k: int) -> None:
    rewards = np.random.default_rng(k).standard_normal(16)
    assert reference.error("sloo_minus_one", rewards.tolist(), k, paper_sloo_minus_one(rewards, k)) < 1e-9
    assert reference.error("sloo_minus_one", rewards.tolist(), k, CachedWeights(16, k)(rewards[None])[0]) < 1e-12
    assert reference.error("s", sorted(rewards.tolist()), k, paper_s(np.sort(rewards), k)) < 1e-9


def test_a_ratio_is_the_median_of_the_rounds() -> None:
    ratio = of_rounds([1.0, 6.0, 2.0], [1.0, 2.0, 1.0])
    assert (ratio.median, ratio.ours, ratio.floor) == (2.0, 2.0, 1.0)
    calls: list[str] = []
    in_turns([lambda: calls.append("ours")], [lambda: calls.append("floor")], 2, 3)
    assert calls == ["ours", "floor", *["ours"] * 3, *["floor"] * 3, *["ours"] * 3, *["floor"] * 3]


def test_a_bar_is_met_from_either_side() -> None:
    at_half = of_rounds([1.0], [2.0])
    assert Result(Bar("", "", 0.5), at_half).passes
    assert not Result(Bar("", "", 0.49), at_half).passes
    assert Result(Bar("", "", 0.5, faster=True), at_half).passes
    assert not Result(Bar("", "", 2, faster=True), at_half).passes
    assert not Result(Bar("", "", 2), None, "gone").passes


def test_tables_go_between_their_markers() -> None:
    text = "a <!-- bars -->old<!-- end of bars --> b <!-- machine --><!-- end of machine --> c"
    written = page.with_tables(text, {"bars": markdown(("x",), [("1",)])})
    assert re.fullmatch(
        r"a <!-- bars -->\s+\| x \|\n\| - \|\n\| 1 \|\s+<!-- end of bars --> b .* c", written, re.DOTALL
    )
    assert page.with_tables(written, {"bars": "| x |"}).count("| x |") == 1
    with pytest.raises(ValueError, match="growth"):
        page.with_tables(text, {"growth": ""})


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("section", "rows"),
    [("in_process", 12), ("served", 5), ("workers", 2), ("start", 1), ("memory", 2)],
)
def test_every_row_is_measured(section: str, rows: int) -> None:
    printed = _printed(section)
    measured = re.findall(r"^\| .* \| (?:<=|>=) [^|]* \| (.*?) +\| (?:tried|n/a) +\|$", printed, re.MULTILINE)
    assert len(measured) == rows
    for each in measured:
        if "verl is not installed" not in each:
            figures = re.match(r"(-?[\d.]+)(?: \((-?[\d.]+) to (-?[\d.]+)\))?", each)
            assert figures is not None
            median, low, high = (float(each or figures[1]) for each in figures.groups())
            assert low <= median <= high


@pytest.mark.timeout(600)
@pytest.mark.parametrize("section", ["budget", "servers", "growth"])
def test_every_report_is_written(section: str) -> None:
    assert not re.search(r"\bnan\b", _printed(section))


def test_the_page_has_a_place_for_every_table() -> None:
    text = (ROOT / "docs" / "performance.md").read_text()
    written = page.with_tables(text, {name: name for name in ("bars", "budget", "servers", "growth")})
    assert written.count("<!-- end of") == 5


def _printed(section: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", section, "--quick"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
