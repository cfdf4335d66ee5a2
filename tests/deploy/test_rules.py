"""The alerts fire when they must, and only then; and each is explained in docs/alerts.md, with queries that parse."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from pages import ROOT, blocks

RULES = ROOT / "deploy" / "helm" / "pkpo" / "files" / "rules.yaml"
CASES = sorted((Path(__file__).parent / "rules").glob("*.yaml"))
PAGE = ROOT / "docs" / "alerts.md"


class Alert(NamedTuple):
    """Which alert; those of one name differ in their severity or their window."""

    name: str
    severity: str | None
    window: str | None


def alerts() -> list[dict[str, Any]]:
    """The alerting rules."""
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"] if "alert" in rule]


ALERTS = [Alert(rule["alert"], rule["labels"]["severity"], rule["labels"].get("window")) for rule in alerts()]


def promtool(*arguments: str) -> str:
    if shutil.which("promtool") is None:
        pytest.skip("needs promtool on PATH")
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def matchers(selector: str) -> dict[str, str]:
    """The labels a selector asks for."""
    return dict(re.findall(r'(\w+)="([^"]*)"', selector))


def checks() -> Iterator[tuple[dict[str, str], list[dict[str, str]]]]:
    """Each time a case looks for alerts: what it asks for, and the labels of those that it expects."""
    for file in CASES:
        for case in yaml.safe_load(file.read_text())["tests"]:
            for check in case["promql_expr_test"]:
                if check["expr"].startswith("ALERTS{"):
                    yield matchers(check["expr"]), [matchers(sample["labels"]) for sample in check["exp_samples"]]


def test_promtool_finds_nothing_to_say() -> None:
    assert "SUCCESS" in promtool("check", "rules", "--lint-fatal", str(RULES))


@pytest.mark.parametrize("file", CASES, ids=lambda file: file.stem)
def test_alerts_fire_when_they_must_and_only_then(file: Path) -> None:
    assert "SUCCESS" in promtool("test", "rules", str(file))


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: "-".join(filter(None, alert)))
def test_there_is_a_case_for_either(alert: Alert) -> None:
    fires = [expected for _, found in checks() for expected in found]
    assert any((labels["alertname"], labels["severity"], labels.get("window")) == alert for labels in fires)
    quiet = [asked for asked, found in checks() if not found]
    assert any(
        asked["alertname"] == alert.name
        and asked.get("severity") in (None, alert.severity)
        and asked.get("window") in (None, alert.window)
        for asked in quiet
    )


@pytest.mark.parametrize("rule", alerts(), ids=lambda rule: rule["alert"])
def test_an_alert_says_what_whose_and_what_to_do(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in {"page", "ticket", "info"}
    annotations = rule["annotations"]
    assert annotations.keys() == {"summary", "description", "runbook"}
    assert annotations["runbook"] == f"docs/alerts.md#{rule['alert'].lower()}"
    if rule["alert"] != "PkpoNotScraped":
        assert "{{ $labels.job }}" in annotations["summary"] + annotations["description"]
        assert "{{ $labels.namespace }}" in annotations["description"]


def test_every_alert_has_its_section_and_no_section_is_left_over() -> None:
    sections = re.findall(r"^### (\w+)$", PAGE.read_text(), re.MULTILINE)
    assert sections == list(dict.fromkeys(alert.name for alert in ALERTS))
    for section in re.split(r"^### ", PAGE.read_text(), flags=re.MULTILINE)[1:]:
        for part in ("**Means.**", "**Hurts.**", "**Look.**", "**Do.**", "**Ends**"):
            assert part in section, f"{section.splitlines()[0]} has no {part}"


def test_the_queries_of_the_page_parse(tmp_path: Path) -> None:
    queries = [block.text.strip() for block in blocks(PAGE) if block.language == "promql"]
    assert queries
    rules = [{"record": f"page:query:{number}", "expr": query} for number, query in enumerate(queries)]
    (tmp_path / "queries.yaml").write_text(yaml.safe_dump({"groups": [{"name": "page", "rules": rules}]}))
    promtool("check", "rules", str(tmp_path / "queries.yaml"))


def test_the_page_states_the_objectives_that_the_rules_defend() -> None:
    dashboard = (RULES.parent / "dashboard.json").read_text()
    for text in (PAGE.read_text(), RULES.read_text()):
        assert "99.9 % of requests" in text
        assert "99 % of requests" in text
    failed = re.search(r'code=~"([^"]+)"', RULES.read_text())
    assert failed is not None
    assert failed[1].replace('"', "") in dashboard
