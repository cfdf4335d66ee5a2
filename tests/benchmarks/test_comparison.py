"""What docs/integrations/comparison.md says of each estimator, asked again, in each framework's environment.

Its times are not judged, here or anywhere.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import reference

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks import page  # noqa: E402
from benchmarks.comparison.__main__ import FOUND, section  # noqa: E402
from benchmarks.comparison.answers import NotAsked, answers, asked  # noqa: E402
from benchmarks.comparison.cases import CASES, POLICIES, Case, Policy  # noqa: E402
from benchmarks.comparison.estimators import ESTIMATORS, mean_deviation, passk_training, z_score  # noqa: E402
from benchmarks.comparison.judgement import angle, expected_update, gradient, verdict  # noqa: E402

PAGE = ROOT / "docs" / "integrations" / "comparison.md"
BY_NAME = {peer: {each.name: each for each in of_peer} for peer, of_peer in ESTIMATORS.items()}

# What was found where an estimator is asked at all; everything else is right.
NAN, ALONE, FLOAT32 = "NaN for one sample", "a group of one", "close rewards, float32"
REFUSED = {"k > n": "refuses", ALONE: "refuses", NAN: "refuses"}
OTHERWISE: dict[str, dict[str, dict[str, str]]] = {
    "published": {
        "PKPO's listing": {
            "k = 1": "no number",
            "k > n": "wrong",
            "0/1 as integers": "wrong",
            NAN: "no number",
            FLOAT32: "wrong",
        },
        "Pass@k Training": {
            "k > n": "no number",
            ALONE: "no number",
            NAN: "no number",
            "n = 2048, k = 1024, three right": "no number",
        },
        "pkpo: sloo_minus_one": REFUSED,
        "pkpo: passk_analytic": REFUSED,
    },
    "verl": {
        "grpo": {"all equal": "wrong", NAN: "no number", FLOAT32: "wrong"},
        "grpo_vectorized": {"all equal": "wrong", NAN: "no number", FLOAT32: "wrong"},
        "grpo_passk": {ALONE: "refuses", NAN: "no number"},
        "grpo_passk, no deviation": {ALONE: "refuses", NAN: "no number"},
        "rloo": {NAN: "no number", FLOAT32: "wrong"},
        "rloo_vectorized": {NAN: "no number", FLOAT32: "wrong"},
        "pkpo": REFUSED,
    },
    "trl": {
        "GRPOTrainer": {FLOAT32: "wrong"},
        'GRPOTrainer, scale_rewards="none"': {FLOAT32: "wrong"},
        "RLOOTrainer": {FLOAT32: "wrong"},
        "pkpo": {"k > n": "refuses"},
    },
    "tunix": {
        "grpo": {NAN: "silent"},
        "drgrpo": {NAN: "silent"},
        "rloo": {NAN: "silent"},
        "pkpo": {NAN: "silent", "k > n": "refuses"},
    },
}


@pytest.fixture(scope="module", params=list(ESTIMATORS))
def answered(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """The peers of one environment, and what they answered here."""
    peer: str = request.param
    if peer != "published" and importlib.util.find_spec(peer) is None:
        pytest.skip(f"needs {peer}")
    # What frameworks warn of is theirs.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peer, answers(importlib.import_module(f"benchmarks.comparison.{peer}").ESTIMATORS)


# --- each estimator, held to its own formula and to the gradient of pass@k -------------------------------------------


def test_every_estimator_is_right_but_where_the_page_says(answered: tuple[str, dict[str, Any]]) -> None:
    peer, given = answered
    assert set(given["cases"]) == set(BY_NAME[peer]) == set(OTHERWISE[peer])
    cells = cells_of_page(peer)
    for name, estimator in BY_NAME[peer].items():
        for case in CASES:
            found = verdict(estimator, case, given["cases"][name][case.name])
            usual = "not asked" if found.kind == "not asked" else "right"
            assert found.kind == OTHERWISE[peer][name].get(case.name, usual), (name, case.name, found)
            assert cells[case.name][name].startswith("**") == (found.kind in FOUND), (name, case.name)


def test_ours_follow_the_gradient_of_pass_at_k_and_others_at_most_one(answered: tuple[str, dict[str, Any]]) -> None:
    peer, given = answered
    cells = cells_of_page(peer)
    for name, of_name in given["policies"].items():
        for policy in POLICIES:
            for k in policy.ks:
                of_page = cells[f"{policy.name}@{k}, n = {policy.n}"][name]
                found = angle(policy, k, of_name[policy.name][str(k)])
                if of_page != "not for these rewards":
                    stated = float(of_page[:-1]) if of_page.endswith("°") else float("nan")
                    assert found == pytest.approx(stated, abs=0.1, nan_ok=True), (name, policy.name, k)
                if name in ("pkpo", "pkpo: sloo_minus_one"):
                    assert found < 0.05, (name, policy.name, k)


def test_the_page_has_the_tables_of_every_environment(answered: tuple[str, dict[str, Any]]) -> None:
    peer, given = answered
    times = {name: (2.0, 1.5, 3.0, 0.5, 0.25, "") for name, each in BY_NAME[peer].items() if not each.ours}
    written = section(peer, {"versions": {peer: "1"}, "times": times, **given})
    assert written.count("| 500 ms") == len(times) == written.count("| 2.00 (1.50 to 3.00)")
    assert written.count("| 250 ms") == len(BY_NAME[peer]) - len(times) > 0
    assert not re.search(r"nan(°| ms|%| \()", written)
    for case in CASES:
        assert f"\n| {case.name} " in written
        assert set(cells_of_page(peer)[case.name]) == set(BY_NAME[peer])


def cells_of_page(peer: str) -> dict[str, dict[str, str]]:
    """The page's tables of one environment, but for the first: row, column, cell."""
    text = PAGE.read_text().split(f"<!-- {peer} -->")[1].split(f"<!-- end of {peer} -->")[0]
    found: dict[str, dict[str, str]] = {}
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)[1:]:
        header, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
        for row, *cells in rows:
            found[row] = dict(zip(header[1:], cells, strict=True))
    return found


# --- the judges ------------------------------------------------------------------------------------------------------


def test_own_formulas_agree_with_the_oracle() -> None:
    group = [0.3, 0.9, 0.45, 0.1, 0.7]
    assert z_score(1e-6)(group, 1) == pytest.approx(reference.advantages("grpo", group, 1, scale="mean"), rel=1e-15)
    assert mean_deviation(group, 1) == pytest.approx(
        [4 / 5 * a for a in reference.advantages("loo", group, 1, scale="mean")]
    )
    binary = [1.0, 0.0, 0.0, 1.0, 0.0]
    exact = reference.advantages("passk_analytic", binary, 2, scale="mean")
    assert passk_training(binary, 2) == pytest.approx(exact, rel=1e-5)
    assert passk_training(binary, 2) != pytest.approx(exact, rel=1e-8)  # it has 1e-6 added
    assert passk_training(binary, 6) is None
    assert passk_training(group, 2) is None


RIGHT, ONE_OF_TWO = Case("", ((1.0, 0.0, 0.5),), 2), Case("", ((1.0, 0.0), (1.0,)), 1)


@pytest.mark.parametrize(
    ("case", "answer", "kind"),
    [
        (RIGHT, [[1 / 2, -1 / 2, 0.0]], "right"),
        (RIGHT, [[1 / 2 + 4e-4, -1 / 2, 0.0]], "right"),
        (RIGHT, [[1 / 2 + 6e-4, -1 / 2, 0.0]], "wrong"),
        (RIGHT, [[1 / 2, -1 / 2, float("inf")]], "no number"),
        (RIGHT, {"raised": "ValueError", "refusal": True, "said": ""}, "refuses"),
        (RIGHT, {"raised": "IndexError", "refusal": False, "said": ""}, "crash"),
        (RIGHT, {"not_asked": "it has no groups"}, "not asked"),
        (ONE_OF_TWO, [[1 / 2, -1 / 2], [7.0]], "right"),
        (replace(RIGHT, groups=((1.0,),)), [[7.0]], "wrong"),
        (replace(RIGHT, groups=((1.0, 0.0, float("nan")),)), [[1 / 2, -1 / 2, 0.0]], "right"),
        (replace(RIGHT, groups=((1.0, 0.5, float("nan")),)), [[1 / 2, 0.0, -1 / 2]], "silent"),
        (replace(RIGHT, groups=((1.0, 0.5, float("nan")),)), [[1 / 2, 0.0, 0.0]], "wrong"),
        (replace(RIGHT, about_k=True), [[1 / 2, -1 / 2, 0.0]], "not asked"),
    ],
)
def test_verdicts(case: Case, answer: Any, kind: str) -> None:
    assert verdict(BY_NAME["tunix"]["drgrpo"], case, answer).kind == kind


@pytest.mark.parametrize("k", [1, 2, 5])
def test_the_gradient_is_that_of_the_definition(k: int) -> None:
    policy = Policy("", (0.0, 0.25, 1.0), ((0.5, 0.3, 0.2), (0.1, 0.6, 0.3)), 5, (k,))
    step = 1e-5

    def max_at_k(logits: np.ndarray) -> float:
        total = 0.0
        for row in logits:
            below = np.concatenate([[0.0], np.cumsum(np.exp(row) / np.exp(row).sum())]) ** k
            total += float(np.dot(policy.levels, np.diff(below)))
        return total / len(logits)

    logits = np.log(np.array(policy.prompts))
    for place in np.ndindex(*logits.shape):
        moved = np.zeros_like(logits)
        moved[place] = step
        measured = (max_at_k(logits + moved) - max_at_k(logits - moved)) / (2 * step)
        assert gradient(policy, k)[place] == pytest.approx(measured, abs=1e-9)

    exact = [reference.advantages("sloo_minus_one", group.tolist(), k) for group in policy.rewards()]
    np.testing.assert_allclose(expected_update(policy, exact), gradient(policy, k), atol=1e-15)
    assert angle(policy, k, exact) < 1e-6
    raw = [[reward**2 for reward in group] for group in policy.rewards()]
    assert angle(policy, k, raw) > 1
    assert np.isnan(angle(policy, k, [[0.0] * 5] * len(raw)))


def test_what_is_raised_is_written_down() -> None:
    def refused(*_: Any) -> Any:
        raise ValueError("k is 12")

    def broken(*_: Any) -> Any:
        raise ZeroDivisionError

    def inexpressible(*_: Any) -> Any:
        raise NotAsked("no uids")

    assert asked(refused, [], 1) == {"raised": "ValueError", "refusal": True, "said": "k is 12"}
    assert asked(broken, [], 1) == {"raised": "ZeroDivisionError", "refusal": False, "said": ""}
    assert asked(inexpressible, [], 1) == {"not_asked": "no uids"}


# --- the command -----------------------------------------------------------------------------------------------------


def comparison(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.comparison", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )


def test_the_command_prints_tables(tmp_path: Path) -> None:
    prefix = tmp_path / "venv"
    (prefix / "bin").mkdir(parents=True)
    python = prefix / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    done = comparison("published", "verl", "--quick", "--venv", str(prefix))
    assert done.returncode == 0, done.stderr
    times = re.findall(
        r"^\| (PKPO's listing|Pass@k Training) .*\| [\d.]+ ms +\| ([\d.]+) \(", done.stdout, re.MULTILINE
    )
    assert len(times) == 2
    assert "verl: not measured" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["verl", "--write", "page.md", "--venv", "nowhere"], "`make nowhere-verl/installed` makes it"),
        (["--quick", "--write", "page.md"], "must be without --write"),
        (["slime"], "unknown peer slime"),
    ],
)
def test_the_command_refuses(arguments: list[str], said: str) -> None:
    done = comparison(*arguments)
    assert done.returncode == 2
    assert said in done.stderr


def test_the_page_tells_the_command_that_writes_it() -> None:
    text = PAGE.read_text()
    recipe = (ROOT / "Makefile").read_text().partition("\ncomparison:")[2].splitlines()[1]
    assert "`make comparison`" in text
    assert recipe.endswith("-m benchmarks.comparison --venv $(VENV) --write docs/integrations/comparison.md")
    assert page.with_tables(text, {peer: peer for peer in ESTIMATORS}).count("<!-- end of") == len(ESTIMATORS) + 1
