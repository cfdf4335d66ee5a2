"""A release from installing to uninstalling, what `helm test` runs, and the commands that the chart writes, run."""

from __future__ import annotations

import asyncio
import copy
import shutil
import subprocess
import sys
from pathlib import Path

import helm_sdkpy
import pytest

from chart.cases import CASES
from deploy.chart_files import CHART
from deploy.cluster import Manifest, plural
from deploy.rendering import Helm, running_helm
from live_server import LiveServer
from pkpo import __version__

# Helm's: the one piece of information is that there is no icon.
INFORMATION, ERROR = 1, 3


def applied(helm: Helm) -> dict[str, Manifest]:
    """What the cluster holds but Helm's own releases, by path."""
    return {path: copy.deepcopy(each) for path, each in helm.cluster.manifests.items() if "sh.helm" not in path}


def test_a_packaged_chart_is_the_chart(tmp_path: Path) -> None:
    values = CASES["rules and dashboard"].values
    with running_helm("1.30") as helm:
        package = asyncio.run(helm_sdkpy.Package(helm.configuration()).run(str(CHART), str(tmp_path)))
        assert Path(package).name == f"pkpo-{__version__}.tgz"
        assert helm.render(values, Path(package)) == helm.render(values)


def test_a_release_is_installed_changed_changed_back_and_gone() -> None:
    """Not by Rollback, which the library cannot: a rollback is the upgrade to what was."""
    with running_helm("1.30") as helm:
        first = helm.install({})
        installed = applied(helm)
        assert {path.rpartition("/")[0].rpartition("/")[2] for path in installed} == {
            plural(each["kind"]) for each in first.manifests
        }
        helm.upgrade(CASES["everything"].values)
        assert len(applied(helm)) > len(installed)
        helm.upgrade({})
        assert applied(helm) == installed
        history = asyncio.run(helm_sdkpy.History(helm.configuration()).run("pkpo"))
        assert [each["version"] for each in history] == [1, 2, 3]
        asyncio.run(helm_sdkpy.Uninstall(helm.configuration()).run("pkpo", wait=False))
        assert applied(helm) == {}


def test_autoscaling_begins_from_the_pods_there_are() -> None:
    """An absent number of replicas would be 1, and all others would end at once."""
    with running_helm("1.30") as helm:
        helm.install({"replicaCount": 4})
        for autoscaling in ({"enabled": True}, {"enabled": True, "minReplicas": 6}):
            release = helm.upgrade({"autoscaling": autoscaling})
            (deployment,) = (each for each in release.manifests if each["kind"] == "Deployment")
            assert deployment["spec"]["replicas"] == max(4, autoscaling.get("minReplicas", 2))
        (live,) = (each for path, each in helm.cluster.manifests.items() if path.endswith("/deployments/pkpo"))
        live["spec"]["replicas"] = 9  # as the autoscaler does
        release = helm.upgrade({"autoscaling": {"enabled": True, "minReplicas": 6}})
        (deployment,) = (each for each in release.manifests if each["kind"] == "Deployment")
        assert deployment["spec"]["replicas"] == 9


def test_an_upgrade_that_is_refused_changes_nothing() -> None:
    with running_helm("1.30") as helm:
        helm.install({})
        installed = applied(helm)
        with pytest.raises(Exception, match="terminationGracePeriodSeconds"):
            helm.upgrade({"terminationGracePeriodSeconds": 1})
        assert applied(helm) == installed


def test_a_token_or_certificate_that_changes_restarts_nothing() -> None:
    """The server reads them again; a setting that changes does replace the pods."""
    with running_helm("1.30") as helm:
        templates = [
            next(each for each in helm.render(values).manifests if each["kind"] == "Deployment")["spec"]["template"]
            for values in (
                {"tokens": {"values": ["token-of-one-team"]}},
                {"tokens": {"values": ["token-of-another"]}},
                {"server": {"maxRunIds": 5}},
            )
        ]
    assert templates[0] == templates[1] != templates[2]


@pytest.mark.parametrize(("template", "severity"), [("", INFORMATION), ("{{ .Values.nothing.there }}", ERROR)])
def test_helm_finds_nothing_to_complain_of(tmp_path: Path, template: str, severity: int) -> None:
    """But in a template that is broken; the library passes on how bad it is, and not what."""
    chart = tmp_path / "pkpo"
    shutil.copytree(CHART, chart)
    (chart / "templates" / "more.yaml").write_text(template)
    with running_helm("1.30") as helm:
        found = asyncio.run(helm_sdkpy.Lint(helm.configuration()).run(str(chart)))
    assert found["TotalChartsLinted"] == 1
    assert max(message["Severity"] for message in found["Messages"]) == severity


@pytest.mark.parametrize("case", ["defaults", "tls"])
def test_what_helm_test_runs_asks_a_server_that_the_chart_s_flags_start(case: str) -> None:
    """The real probe and the real server; only the addresses are ours."""
    with running_helm("1.30") as helm:
        release = helm.render(CASES[case].values)
    (pod,) = release.hooks
    (probe,) = pod["spec"]["containers"]
    name, _, port = probe["command"][-1].rpartition(":")
    service = next(each for each in release.manifests if (each["kind"], each["metadata"]["name"]) == ("Service", name))
    (target,) = (each["targetPort"] for each in service["spec"]["ports"] if each["port"] == int(port))
    deployment = next(each for each in release.manifests if each["kind"] == "Deployment")
    (server,) = deployment["spec"]["template"]["spec"]["containers"]
    flags = [flag for flag in server["args"] if "tls" not in flag and "host=" not in flag]
    with LiveServer(*(f"{flag.partition('=')[0]}=0" if "port=" in flag else flag for flag in flags)) as live:
        address = live.address if target == "grpc" else str(live.log_lines("health")[0]["address"])
        command = [sys.executable, *probe["command"][1:-1], address]
        assert subprocess.run(command, timeout=60, check=False).returncode == 0
    (waiting,) = (each for each in command if each.startswith("--within="))
    at_once = ["--within=0" if each == waiting else each for each in command]
    assert subprocess.run(at_once, timeout=60, check=False, stderr=subprocess.DEVNULL).returncode == 1


def test_the_pause_before_the_end_can_be_run() -> None:
    with running_helm("1.27") as helm:
        release = helm.render({"drain": {"preStopSeconds": 1}})
    deployment = next(each for each in release.manifests if each["kind"] == "Deployment")
    (server,) = deployment["spec"]["template"]["spec"]["containers"]
    command = server["lifecycle"]["preStop"]["exec"]["command"]
    assert subprocess.run([sys.executable, *command[1:]], timeout=60, check=False).returncode == 0
