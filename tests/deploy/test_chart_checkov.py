"""What checkov finds in the rendered manifests: no more, and no less, than deploy/helm/checkov.yaml says and why."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from chart.cases import CASES
from deploy.chart_files import CHART
from deploy.kustomization import trainer
from deploy.rendering import running_helm

# It wants versions of its own of much that others use too, and so an environment of its own.
CHECKOV = os.environ.get("PKPO_CHECKOV") or shutil.which("checkov")


@pytest.mark.skipif(CHECKOV is None, reason="needs checkov: on the path, or where PKPO_CHECKOV says")
def test_checkov_finds_what_we_know_of(tmp_path: Path) -> None:
    with running_helm("1.30") as helm:
        release = helm.render(CASES["everything"].values)
        manifests = [*release.manifests, *release.hooks, trainer(helm)]
    (tmp_path / "manifests.yaml").write_text(yaml.safe_dump_all(manifests))
    options = ("--framework", "kubernetes", "--skip-download", "--output", "json", "--soft-fail")
    done = subprocess.run(
        [str(CHECKOV), "--directory", str(tmp_path), *options],
        stdout=subprocess.PIPE,
        text=True,
        timeout=240,
        check=True,
    )
    results = json.loads(done.stdout)["results"]
    assert len(results["passed_checks"]) > 200
    found = {(each["resource"].partition(".")[0], each["check_id"]) for each in results["failed_checks"]}
    known = yaml.safe_load((CHART.parent / "checkov.yaml").read_text())
    assert found == {(kind, check) for kind, checks in known.items() for check in checks}
    assert all(reason for checks in known.values() for reason in checks.values())
