"""docs/operations.md and docs/metrics.md say what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import pkpo_server
from pkpo_server import documentation, lifecycle, pulse, servicer, workers
from pkpo_server.settings import SETTINGS, flag, variable

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "operations.md"


@pytest.mark.parametrize("page", documentation.PAGES)
def test_the_tables_are_those_of_now(page: str) -> None:
    text = (ROOT / "docs" / page).read_text()
    assert documentation.with_tables(page, text) == text, f"run: python -m pkpo_server.documentation docs/{page}"


def test_a_page_without_markers_is_refused() -> None:
    with pytest.raises(ValueError, match="settings"):
        documentation.with_tables("operations.md", "nothing")


def test_every_setting_is_in_the_table() -> None:
    table = documentation.settings_table()
    for name in SETTINGS:
        assert f"`{flag(name)}`" in table
        assert f"`{variable(name)}`" in table


def test_every_log_event_is_documented_and_no_other() -> None:
    source = "".join(path.read_text() for path in Path(pkpo_server.__file__).parent.glob("*.py"))
    written = set(re.findall(r"log\.(?:debug|info|warning|error)\(\s*\"(\w+)\"", source))
    written |= set(re.findall(r"\"event\": \"(\w+)\"", source))  # what the log says of itself
    section = PAGE.read_text().partition("## Logs")[2].partition("\n## ")[0]
    documented = set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE))
    assert documented == written


def test_what_the_page_says_of_times_is_so() -> None:
    text = " ".join(PAGE.read_text().split())
    least, most = workers.LEAST_BACKOFF_SECONDS, workers.MOST_BACKOFF_SECONDS
    assert (
        f"replaced after {least} s, one that keeps dying after {2 * least} s, {4 * least} s, ... up to {most:g} s"
        in text
    )
    assert f"no sign of life for {pulse.MOST_MISSED * pulse.BEAT_SECONDS:g} s" in text
    assert f"as often as every {lifecycle.LEAST_PING_INTERVAL_MS // 1000} s" in text
    assert (
        f"after {lifecycle.KEEPALIVE_TIME_MS // 1000} s, and drops it {lifecycle.KEEPALIVE_TIMEOUT_MS // 1000} s later"
        in text
    )
    assert servicer.REQUEST_ID_KEY in text
    assert servicer.VERSION_KEY in text
    assert servicer.SERVICE in text
    assert "grpc.health.v1.Health" in text
