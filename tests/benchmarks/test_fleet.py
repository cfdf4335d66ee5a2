"""The simulation agrees with the queues whose waiting times are known, and the page has a place for what it says."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks import fleet, page  # noqa: E402
from benchmarks.queues import Queues, poisson, simulate  # noqa: E402

CALLS = 200_000


def erlang_b(servers: int, offered: float) -> float:
    """The share of calls that find all servers busy, where nobody waits."""
    terms = [offered**i / math.factorial(i) for i in range(servers + 1)]
    return terms[-1] / sum(terms)


@pytest.mark.parametrize(("at_once", "load"), [(1, 0.3), (1, 0.8), (2, 0.6), (4, 0.8)])
def test_exponential_services_wait_as_erlang_says(at_once: int, load: float) -> None:
    rng = np.random.default_rng(1)
    blocked = erlang_b(at_once, load * at_once)
    delayed = blocked / (1 - load * (1 - blocked))  # Erlang C
    outcome = simulate(poisson(load * at_once, CALLS, rng), rng.exponential(1.0, CALLS), Queues(1, at_once), rng)
    assert np.mean(outcome.waited > 0) == pytest.approx(delayed, rel=0.03)
    assert np.mean(outcome.waited) == pytest.approx(delayed / (at_once * (1 - load)), rel=0.08)


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_equal_services_at_many_workers_wait_as_pollaczek_and_khinchine_say(load: float) -> None:
    rng = np.random.default_rng(2)
    outcome = simulate(poisson(5 * load, CALLS, rng), np.ones(CALLS), Queues(5), rng)
    assert np.mean(outcome.waited) == pytest.approx(load / (2 * (1 - load)), rel=0.05)


def test_a_full_worker_refuses_as_erlang_says() -> None:
    rng = np.random.default_rng(3)
    outcome = simulate(
        poisson(2.0, CALLS, rng), rng.exponential(1.0, CALLS), Queues(1, at_once=3, most_open=3, attempts=1), rng
    )
    assert outcome.failed == pytest.approx(erlang_b(3, 2.0), rel=0.03)
    assert outcome.refused == outcome.failed * CALLS


def test_what_is_refused_comes_again() -> None:
    rng = np.random.default_rng(4)
    both_at_once = simulate(np.zeros(2), np.full(2, 0.01), Queues(1, most_open=1), rng)
    assert both_at_once.refused == 1
    assert not both_at_once.failed
    assert 0.05 <= both_at_once.waited.max() <= 0.15
    assert simulate(np.zeros(2), np.full(2, 9.0), Queues(1, most_open=1), rng).failed == 0.5


def test_the_page_says_where_the_simulation_is_wrong() -> None:
    assert "**" not in fleet.verdict({50: [0.5, 2.0], 99: [0.25, 4.0]})
    for wrong in ({50: [1.0, 0.49], 99: [1.0]}, {50: [2.01], 99: [1.0]}):
        assert "p50 **is not** within a factor of 2" in fleet.verdict(wrong)
        assert "p99 is within" in fleet.verdict(wrong)
    assert "p99 **is not** within a factor of 4 of what was measured (farthest: 0.00)" in fleet.verdict(
        {50: [1.0], 99: [1.0, 0.0, 4.5]}
    )


def test_the_page_says_what_its_table_does() -> None:
    text = (ROOT / "docs" / "capacity.md").read_text()
    table = text[text.index("| calls/s") : text.index("The simulation's p50")]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:] if line]
    header = [cell.strip() for cell in table.splitlines()[0].split("|")[1:-1]]
    p50, p99 = (place for place, name in enumerate(header) if name == "ratio")
    ratios = {50: [float(row[p50]) for row in rows], 99: [float(row[p99]) for row in rows]}
    assert len(rows) == len(fleet.LOADS)
    assert fleet.verdict(ratios) in text


def test_a_simulation_in_which_nobody_waits_is_seen() -> None:
    """Of calls as in the middle of the page, at 78 % of the processor."""
    rng = np.random.default_rng(5)
    service, load = 1.0, 0.78
    waited = simulate(poisson(load / service, CALLS, rng), np.full(CALLS, service), Queues(1), rng).waited
    ratio = service / (service + float(np.percentile(waited, 99)))
    assert "p99 **is not**" in fleet.verdict({50: [1.0], 99: [ratio]})


@pytest.mark.timeout(600)
def test_the_report_is_written_and_the_page_has_a_place_for_it() -> None:
    command = [sys.executable, "-m", "benchmarks", "fleet", "--quick"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "nan" not in done.stdout
    for table in ("One worker", "the same simulated", "How many runs", "100,000 ordinary"):
        assert table in done.stdout
    written = page.with_tables((ROOT / "docs" / "capacity.md").read_text(), {"fleet": done.stdout})
    assert done.stdout in written
