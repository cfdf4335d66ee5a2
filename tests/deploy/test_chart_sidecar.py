"""The sidecar in a pod of another chart, the example trainer's, which takes it from this one."""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator
from pathlib import Path

import kubernetes_validate
import numpy as np
import pytest

from chart.rules import Rendering, complaints, server_settings
from deploy.cluster import Manifest
from deploy.kustomization import trainer
from deploy.rendering import Helm, running_helm
from live_server import LiveServer
from pages import ROOT
from pkpo_client import Client, LocalClient

CONFIGURATION = ROOT / "trainer_example" / "configuration.py"
_REWARDS = np.array([[1.0, 1.0, 0.0, 0.0]])
NEWEST = kubernetes_validate.latest_version().rpartition(".")[0]


@pytest.fixture(scope="module", params=["1.27", "1.28", "1.29", NEWEST], name="helm")
def fixture_helm(request: pytest.FixtureRequest) -> Iterator[Helm]:
    with running_helm(request.param) as helm:
        yield helm


def test_a_pod_takes_in_the_sidecar(helm: Helm) -> None:
    job = trainer(helm)
    kubernetes_validate.validate(job, helm.cluster.version, strict=True)
    assert complaints(Rendering([job])) == []


def test_it_serves_before_the_others_start_where_it_can(helm: Helm) -> None:
    pod = trainer(helm)["spec"]["template"]["spec"]
    if helm.cluster.version in ("1.27", "1.28"):
        assert [each["name"] for each in pod["containers"]] == ["trainer", "pkpo"]
        assert "initContainers" not in pod
    else:
        (sidecar,) = pod["initContainers"]
        assert (sidecar["name"], sidecar["restartPolicy"]) == ("pkpo", "Always")
        assert [each["name"] for each in pod["containers"]] == ["trainer"]


def test_its_values_are_those_of_the_chart(helm: Helm) -> None:
    socket = {"socketPath": "/sockets/one", "socketMode": "0660"}
    pod = trainer(helm, pkpo={"sidecar": socket, "server": {"metricsPort": 9999}})
    (sidecar,) = Rendering([pod]).pods[0].servers
    settings = server_settings(sidecar)
    assert (settings.unix_socket, settings.unix_socket_mode) == (Path("/sockets/one"), "0660")
    assert {"name": "metrics", "containerPort": 9999, "protocol": "TCP"} in sidecar["ports"]
    (other,) = (each for each in pod["spec"]["template"]["spec"]["containers"] if each["name"] == "trainer")
    assert "--server=unix:/sockets/one" in other["args"]
    assert {"name": "pkpo-socket", "mountPath": "/sockets"} in other["volumeMounts"]


def test_its_pod_has_what_it_wants_besides(helm: Helm) -> None:
    wanted = {
        "global": {"imagePullSecrets": ["registry"]},
        "pkpo": {
            "imagePullSecrets": [{"name": "another"}],
            "extraVolumes": [{"name": "extra", "configMap": {"name": "{{ .Release.Name }}-files"}}],
            "extraVolumeMounts": [{"name": "extra", "mountPath": "/extra", "readOnly": True}],
        },
    }
    job = trainer(helm, **wanted)
    kubernetes_validate.validate(job, helm.cluster.version, strict=True)
    existing = frozenset({"Secret/registry", "Secret/another", "ConfigMap/trainer-files"})
    assert complaints(Rendering([job], existing)) == []
    pod = job["spec"]["template"]["spec"]
    assert pod["imagePullSecrets"] == [{"name": "registry"}, {"name": "another"}]
    (sidecar,) = Rendering([job]).pods[0].servers
    assert wanted["pkpo"]["extraVolumeMounts"][0] in sidecar["volumeMounts"]
    assert {"name": "extra", "configMap": {"name": "trainer-files"}} in pod["volumes"]


def test_the_chart_itself_brings_no_server(helm: Helm) -> None:
    release = helm.render({"mode": "sidecar"})
    assert release.manifests == release.hooks == []
    assert "unix:/run/pkpo/pkpo.sock" in release.notes


def test_its_metrics_are_scraped_by_its_label(helm: Helm) -> None:
    monitor: Manifest
    (monitor,) = helm.render(
        {"mode": "sidecar", "monitoring": {"podMonitor": {"enabled": True}}}, name="trainer"
    ).manifests
    job = trainer(helm)
    assert complaints(Rendering([job, {**monitor, "metadata": {**monitor["metadata"], "namespace": "pkpo"}}])) == []
    assert monitor["spec"]["selector"]["matchLabels"] == job["spec"]["template"]["metadata"]["labels"]


def test_the_trainer_is_given_flags_that_it_has(helm: Helm) -> None:
    """Read as text: to import it takes torch."""
    options = re.findall(r"(?m)^    (\w+): .* = _option\(", CONFIGURATION.read_text())
    containers = trainer(helm)["spec"]["template"]["spec"]["containers"]
    (container,) = (each for each in containers if each["name"] == "trainer")
    given = {flag[2:].partition("=")[0] for flag in container["args"]}
    assert given == {"server", "run_dir", "task", "method"}
    assert given <= {*options}


def test_its_flags_start_a_server(tmp_path: Path) -> None:
    with running_helm(NEWEST) as helm:
        job = trainer(helm, pkpo={"sidecar": {"socketMode": "660"}})
    (sidecar,) = job["spec"]["template"]["spec"]["initContainers"]
    flags = [flag for flag in sidecar["args"] if "host=" not in flag and "unix-socket=" not in flag]
    flags = [f"{flag.partition('=')[0]}=0" if "port=" in flag else flag for flag in flags]
    with LiveServer(*flags, f"--unix-socket={tmp_path / 'pkpo.sock'}") as live, Client(live.address) as client:
        assert live.address == f"unix:{tmp_path / 'pkpo.sock'}"
        assert stat.S_IMODE((tmp_path / "pkpo.sock").stat().st_mode) == 0o660
        assert client.transform(_REWARDS, k=2).tolist() == LocalClient().transform(_REWARDS, k=2).tolist()
