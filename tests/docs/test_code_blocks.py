"""The README and the pages do what they say: every block of Python and every command in them is run."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from live_server import LiveServer
from pages import ROOT, check_page

PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
# What it runs needs torch: tests/trainer/test_page.py runs it.
OF_THE_TRAINER = ROOT / "docs" / "training.md"
# Run where their frameworks and their compilers are: by tests/integrations and tests/conformance.
OF_OTHERS = sorted([*(ROOT / "docs" / "integrations").glob("*.md"), ROOT / "examples" / "clients" / "README.md"])


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    with LiveServer() as live:
        yield live


@pytest.mark.parametrize("page", [page for page in PAGES if page != OF_THE_TRAINER], ids=lambda page: page.name)
def test_blocks_run_and_print_what_the_page_says(page: Path, server: LiveServer) -> None:
    check_page(page, server)


@pytest.mark.parametrize("page", [*PAGES, *OF_OTHERS], ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        if not target.startswith("https://"):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
