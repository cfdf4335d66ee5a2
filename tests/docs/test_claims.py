"""What the pages claim, tests show: each that they name is there."""

from __future__ import annotations

import ast
import re

import pytest

from pages import ROOT

PAGES = [ROOT / "docs" / name for name in ("security.md", "reliability.md")]
NAMED = re.compile(r"(tests/[\w/]+\.py)::(\w+)")
BY_ITSELF = re.compile(r"`(test_\w+)`")


def defined_in(path: str) -> set[str]:
    tree = ast.parse((ROOT / path).read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_each_test_that_is_named_is_there(page: object) -> None:
    named = NAMED.findall(page.read_text())  # type: ignore[attr-defined]
    assert named
    assert [f"{path}::{name}" for path, name in named if name not in defined_in(path)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_each_test_that_is_named_without_its_file_is_in_one_that_the_page_names(page: object) -> None:
    text = page.read_text()  # type: ignore[attr-defined]
    there = set().union(*(defined_in(path) for path in re.findall(r"tests/[\w/]+\.py", text)))
    assert [name for name in BY_ITSELF.findall(text) if name not in there] == []


def test_each_claim_of_the_threat_model_names_one() -> None:
    """In the tables whose second column is the test, no row is without."""
    rows, counted = iter((ROOT / "docs" / "security.md").read_text().splitlines()), 0
    for row in rows:
        if row != "| Claim | Test |":
            continue
        next(rows)
        for claim in rows:
            if not claim.startswith("|"):
                break
            assert NAMED.search(claim.split("|")[2]), claim
            counted += 1
    assert counted > 25
