"""The pages beside the chart and the manifests: their commands run, their values render."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from chart import commands
from chart.rules import Rendering, complaints
from deploy.chart_files import CHART
from deploy.kustomization import FOLDER
from deploy.rendering import running_helm
from pages import ILLUSTRATIONS, ROOT, blocks
from pages import commands as commands_of

PAGES = (CHART / "README.md", FOLDER / "README.md")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_says_can_be_done(page: Path) -> None:
    """One cluster for a page, from its first command to its last; blocks of yaml are values."""
    with running_helm("1.30") as helm, running_helm("1.30") as another:
        for block in blocks(page):
            if block.language == "sh":
                for command in commands_of(block.text):
                    commands.run(command, helm)
            elif block.language == "yaml":
                release = another.render(yaml.safe_load(block.text))
                secrets = frozenset({"Secret/pkpo-tls", "Secret/pkpo-tokens"})
                assert complaints(Rendering([*release.manifests, *release.hooks], secrets)) == []
            else:
                assert block.language in ILLUSTRATIONS, block


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text()
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (page.parent / target).exists(), target
