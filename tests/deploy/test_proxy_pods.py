"""Envoy on Kubernetes: the configuration is the one that test_proxies.py runs, and its pods start and end with it."""

from __future__ import annotations

import re
import subprocess
from dataclasses import replace
from pathlib import Path

import kubernetes_validate
import numpy as np
import pytest
import yaml

from chart import commands
from chart.kustomize import built
from chart.rules import Rendering, complaints
from deploy.cluster import Manifest
from deploy.kustomization import FOLDER, VERSION
from deploy.rendering import running_helm
from fleet.proxies import ENVOY, LocalProxy
from live_server import LiveServer, poll
from pages import OF_A_CLUSTER, ROOT, blocks
from pages import commands as commands_of
from pkpo_client import Client, LocalClient

PROXIES = ROOT / "deploy" / "proxies"
PAGE = ROOT / "docs" / "proxies.md"
ROWS = np.random.default_rng(7).random((32, 16))


@pytest.fixture(scope="module", name="manifests")
def fixture_manifests() -> list[Manifest]:
    return built(PROXIES)


def of(manifests: list[Manifest], kind: str, name: str = "") -> Manifest:
    (found,) = (each for each in manifests if each["kind"] == kind and name in ("", each["metadata"]["name"]))
    return found


def pod(manifests: list[Manifest]) -> Manifest:
    spec: Manifest = of(manifests, "Deployment")["spec"]["template"]["spec"]
    return spec


def container(manifests: list[Manifest]) -> Manifest:
    (only,) = pod(manifests)["containers"]
    found: Manifest = only
    return found


@pytest.mark.parametrize("version", [VERSION, kubernetes_validate.latest_version().rpartition(".")[0]])
def test_the_manifests_are_valid(manifests: list[Manifest], version: str) -> None:
    for manifest in manifests:
        kubernetes_validate.validate(manifest, version, strict=True)
    assert complaints(Rendering(manifests, frozenset({"Secret/pkpo-proxy-tls"}))) == []


def test_they_hold_what_the_other_tests_run(manifests: list[Manifest]) -> None:
    assert of(manifests, "ConfigMap")["data"] == {"envoy.yaml": ENVOY.configuration}
    version = subprocess.run([ENVOY.program(), "--version"], capture_output=True, text=True, check=True).stdout
    assert f"/{container(manifests)['image'].partition(':v')[2]}/" in version


def test_it_asks_the_servers_of_the_base_and_may(manifests: list[Manifest]) -> None:
    configuration = yaml.safe_load(ENVOY.configuration)["static_resources"]
    (listener,), (cluster,) = configuration["listeners"], configuration["clusters"]
    assert container(manifests)["ports"][0]["containerPort"] == listener["address"]["socket_address"]["port_value"]
    (endpoint,) = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"]
    asked = endpoint["endpoint"]["address"]["socket_address"]
    servers = built(FOLDER / "base")
    service = of(servers, "Service", asked["address"])
    (port,) = (each["port"] for each in service["spec"]["ports"] if each["name"] == "grpc")
    (outward, _) = of(manifests, "NetworkPolicy")["spec"]["egress"]
    assert {port} == {asked["port_value"], *(each["port"] for each in outward["ports"])}
    ((selected,),) = (Rendering(servers).selected(to["podSelector"]["matchLabels"]) for to in outward["to"])
    assert selected.owner == "Deployment/pkpo"
    assert [{"port": "grpc", "protocol": "TCP"}] in (
        rule["ports"] for rule in of(servers, "NetworkPolicy")["spec"]["ingress"] if "from" not in rule
    )


def test_where_tls_is_read_it_is_mounted(manifests: list[Manifest]) -> None:
    read = set(re.findall(r"/etc/pkpo/tls[\w./]*", ENVOY.configuration))
    mounted = {each["mountPath"]: each["name"] for each in container(manifests)["volumeMounts"]}
    assert {str(Path(each).parent) if Path(each).suffix else each for each in read} == {"/etc/pkpo/tls"} <= {*mounted}
    (volume,) = (each for each in pod(manifests)["volumes"] if each["name"] == mounted["/etc/pkpo/tls"])
    assert volume["secret"]["optional"] is True


def test_a_pod_starts_serves_and_ends(manifests: list[Manifest], tmp_path: Path) -> None:
    """By the command and the pause of its container; only addresses, times and the file's place are ours."""
    arguments = container(manifests)["args"]
    drain_seconds = int(arguments[arguments.index("--drain-time-s") + 1])
    *_, script = container(manifests)["lifecycle"]["preStop"]["exec"]["command"]
    slept = int(re.search(r"sleep (\d+)", script)[1])  # type: ignore[index]
    assert drain_seconds < slept < pod(manifests)["terminationGracePeriodSeconds"]

    ours = {"/etc/envoy/envoy.yaml": "", str(drain_seconds): "2"}
    assert {*ours} < {*arguments}
    kind = replace(ENVOY, command=lambda file: [ours.get(each, each) or str(file) for each in arguments])
    with (
        LiveServer() as server,
        LocalProxy(kind, tmp_path, [server.address] * 3) as proxy,
        Client(proxy.address) as client,
    ):
        np.testing.assert_array_equal(client.transform(ROWS, 4), LocalClient().transform(ROWS, 4))
        ended = script.replace("127.0.0.1/9901", proxy.admin_address.replace(":", "/")).replace(f"sleep {slept}", "")
        assert "9901" not in ended
        subprocess.run(["bash", "-c", ended], check=True, timeout=30)
        poll(lambda: not proxy.takes_connections(), "closed port of the proxy")


def test_what_the_page_says_can_be_done() -> None:
    with running_helm("1.30") as helm:
        ran = []
        for block in blocks(PAGE):
            for command in commands_of(block.text) if block.language == "sh" else ():
                if command.startswith(OF_A_CLUSTER):
                    commands.run(command, helm)
                    ran.append(command)
        assert ran
        names = {(each["kind"], each["metadata"]["name"]) for each in helm.cluster.manifests.values()}
    assert {("Deployment", "pkpo-proxy"), ("Service", "pkpo-proxy")} <= names
