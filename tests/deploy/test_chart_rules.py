"""Each rule that renderings are held to is seen to fail on one that breaks it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from chart.cases import CASES
from chart.rules import RULES, Rendering
from deploy.cluster import Manifest
from deploy.rendering import running_helm

Objects = Mapping[str, Manifest]
_DEPLOYMENT, _SERVICE, _HEADLESS = "Deployment/pkpo", "Service/pkpo", "Service/pkpo-headless"


@pytest.fixture(scope="module", name="manifests")
def fixture_manifests() -> list[Manifest]:
    with running_helm("1.30") as helm:
        monitor = helm.render(CASES["service monitor"].values)
        release = helm.render(CASES["everything"].values)
    # With the one kind of monitor that cannot be had with the other.
    return [
        *release.manifests,
        *release.hooks,
        *(each for each in monitor.manifests if each["kind"] == "ServiceMonitor"),
    ]


def pod(objects: Objects) -> Manifest:
    spec: Manifest = objects[_DEPLOYMENT]["spec"]["template"]["spec"]
    return spec


def server(objects: Objects) -> Manifest:
    container: Manifest = pod(objects)["containers"][0]
    return container


def setting(place: Callable[[Objects], Any], *path: str | int, to: Any) -> Callable[[Objects], None]:
    """Sets what is at a path."""

    def broken(objects: Objects) -> None:
        at = place(objects)
        for key in path[:-1]:
            at = at[key]
        at[path[-1]] = to

    return broken


def lacking(place: Callable[[Objects], Any], *path: str | int) -> Callable[[Objects], None]:
    """Takes away what is at a path."""

    def broken(objects: Objects) -> None:
        at = place(objects)
        for key in path[:-1]:
            at = at[key]
        del at[path[-1]]

    return broken


def appending(place: Callable[[Objects], Any], *path: str | int, value: Any) -> Callable[[Objects], None]:
    """Adds to the list at a path."""

    def broken(objects: Objects) -> None:
        at = place(objects)
        for key in path:
            at = at[key]
        at.append(value)

    return broken


def of(name: str) -> Callable[[Objects], Manifest]:
    return lambda objects: objects[name]


MUTATIONS: list[tuple[str, str, Callable[[Objects], None]]] = [
    ("unique", "twice", setting(of(_HEADLESS), "metadata", "name", to="pkpo")),
    ("names", "cannot be so called", setting(of(_SERVICE), "metadata", "name", to="1st")),
    ("names", "cannot be so called", setting(of(_SERVICE), "metadata", "name", to="x" * 64)),
    ("names", "cannot be so called", setting(of(_DEPLOYMENT), "metadata", "name", to="Pkpo")),
    ("names", "label", setting(of(_SERVICE), "metadata", "labels", "team", to="x" * 64)),
    ("names", "label", setting(of(_DEPLOYMENT), "spec", "template", "metadata", "labels", "a/b/c", to="x")),
    ("namespaces", "namespaces", setting(of(_SERVICE), "metadata", "namespace", to="other")),
    ("ports", "twice", setting(server, "ports", 1, "name", to="grpc")),
    ("ports", "twice", setting(server, "ports", 1, "containerPort", to=50051)),
    ("ports", "cannot have the port", setting(server, "ports", 0, "name", to="a-name-that-is-too-long")),
    ("ports", "cannot have the port", setting(server, "ports", 0, "containerPort", to=70000)),
    ("services", "selects no pod", setting(of(_SERVICE), "spec", "selector", "tier", to="other")),
    ("services", "port rpc", setting(of(_SERVICE), "spec", "ports", 0, "targetPort", to="rpc")),
    ("services", "port 50053", setting(of(_SERVICE), "spec", "ports", 0, "targetPort", to=50053)),
    ("services", "port 443", lacking(of(_SERVICE), "spec", "ports", 0, "targetPort")),
    ("selectors", "own pods", setting(of(_DEPLOYMENT), "spec", "selector", "matchLabels", "tier", to="x")),
    ("selectors", "PodDisruptionBudget/pkpo selects no pod",
     setting(of("PodDisruptionBudget/pkpo"), "spec", "selector", "matchLabels", to={"app": "pkpo"})),
    ("selectors", "NetworkPolicy/pkpo selects no pod",
     setting(of("NetworkPolicy/pkpo"), "spec", "podSelector", "matchLabels", "tier", to="x")),
    ("selectors", "PodMonitor/pkpo selects no pod",
     setting(of("PodMonitor/pkpo"), "spec", "selector", "matchLabels", "tier", to="x")),
    ("selectors", "spread",
     setting(pod, "topologySpreadConstraints", 0, "labelSelector", "matchLabels", "tier", to="x")),
    ("monitors", "port http", setting(of("PodMonitor/pkpo"), "spec", "podMetricsEndpoints", 0, "port", to="http")),
    ("monitors", "job", setting(of("PodMonitor/pkpo"), "spec", "jobLabel", to="job")),
    ("monitors", "2 Services", setting(of("ServiceMonitor/pkpo"), "spec", "endpoints", 0, "port", to="grpc")),
    ("monitors", "0 Services", setting(of("ServiceMonitor/pkpo"), "spec", "endpoints", 0, "port", to="http")),
    ("probes", "asks port 50053", setting(server, "livenessProbe", "grpc", "port", to=50053)),
    ("probes", "no startupProbe", lacking(server, "startupProbe")),
    ("autoscalers", "11 pods at least", setting(of("HorizontalPodAutoscaler/pkpo"), "spec", "minReplicas", to=11)),
    ("autoscalers", "not there", setting(of("HorizontalPodAutoscaler/pkpo"), "spec", "scaleTargetRef", "name", to="x")),
    ("autoscalers", "both say", setting(of(_DEPLOYMENT), "spec", "replicas", to=3)),
    ("autoscalers", "nothing to scale by", setting(of("HorizontalPodAutoscaler/pkpo"), "spec", "metrics", to=[])),
    ("autoscalers", "what CPU pkpo", lacking(server, "resources", "requests", "cpu")),
    ("budgets", "says", setting(of("PodDisruptionBudget/pkpo"), "spec", "minAvailable", to=1)),
    ("budgets", "says nothing", lacking(of("PodDisruptionBudget/pkpo"), "spec", "maxUnavailable")),
    ("budgets", "lets no pod of 1", setting(of("HorizontalPodAutoscaler/pkpo"), "spec", "minReplicas", to=1)),
    ("references", "Secret/tls", setting(pod, "volumes", 1, "projected", "sources", 0, "secret", "name", to="tls")),
    ("references", "Secret/tokens", setting(pod, "volumes", 2, "secret", "secretName", to="tokens")),
    ("references", "Secret/other", setting(pod, "imagePullSecrets", 0, "name", to="other")),
    ("references", "ServiceAccount/robot", setting(pod, "serviceAccountName", to="robot")),
    ("references", "ConfigMap/files",
     appending(pod, "volumes", value={"name": "files", "configMap": {"name": "files"}})),
    ("references", "PersistentVolumeClaim/disk",
     appending(pod, "volumes", value={"name": "disk", "persistentVolumeClaim": {"claimName": "disk"}})),
    ("references", "ConfigMap/env", setting(server, "envFrom", to=[{"configMapRef": {"name": "env"}}])),
    ("references", "Secret/env",
     setting(server, "env", to=[{"name": "X", "valueFrom": {"secretKeyRef": {"name": "env", "key": "x"}}}])),
    ("mounts", "no volume", lacking(pod, "volumes", 0)),
    ("mounts", "nowhere", lacking(server, "volumeMounts", 0)),
    ("mounts", "two volumes of one name", setting(pod, "volumes", 1, "name", to="tmp")),
    ("mounts", "at one of", setting(server, "volumeMounts", 1, "mountPath", to="/tmp")),
    ("mounts", "by subPath", setting(server, "volumeMounts", 1, "subPath", to="tls.crt")),
    ("flags", "no such flag", appending(server, "args", value="--colour=red")),
    ("flags", "--workers", appending(server, "args", value="--workers=many")),
    ("flags", "PKPO_WORKERS", setting(server, "env", to=[{"name": "PKPO_WORKERS", "value": "4"}])),
    ("flags", "are served", appending(server, "args", value="--port=50055")),
    ("flags", "are served", appending(server, "args", value="--unix-socket=/tmp/pkpo.sock")),
    ("flags", "within the pod alone", appending(server, "args", value="--health-host=127.0.0.1")),
    ("flags", "no folder that is shared", appending(server, "args", value="--unix-socket=/run/pkpo/pkpo.sock")),
    ("flags", "no folder with a Secret", appending(server, "args", value="--tokens=/tmp")),
    ("flags", "is not mounted", appending(server, "args", value="--tls-key=/etc/pkpo/tls/key.pem")),
    ("grace", "is killed after 35 s", setting(pod, "terminationGracePeriodSeconds", to=35)),
    ("grace", "and needs 20 s",
     setting(server, "lifecycle", "preStop", to={"exec": {"command": ["python3", "-c", "time.sleep(20)"]}})),
    ("rollout", "before there are new ones", setting(of(_DEPLOYMENT), "spec", "strategy", to={"type": "Recreate"})),
    ("network", "opens port http",
     setting(of("NetworkPolicy/pkpo"), "spec", "ingress", 1, "ports", 0, "port", to="http")),
    ("network", "closes port health", lacking(of("NetworkPolicy/pkpo"), "spec", "ingress", 2)),
    ("network", "keeps Pod/pkpo-test out",
     setting(of("NetworkPolicy/pkpo"), "spec", "ingress", 0, "from", to=[{"ipBlock": {"cidr": "10.0.0.0/8"}}])),
    ("network", "keeps Pod/pkpo-test out",
     setting(of("NetworkPolicy/pkpo"), "spec", "ingress", 0, "from", 1, "podSelector", "matchLabels", "a", to="b")),
    ("hardening", "token", lacking(pod, "automountServiceAccountToken")),
    ("hardening", "PKPO_PORT", setting(pod, "enableServiceLinks", to=True)),
    ("hardening", "readOnlyRootFilesystem", lacking(server, "securityContext", "readOnlyRootFilesystem")),
    ("resources", "says too little", lacking(server, "resources", "limits", "memory")),
    ("resources", "more memory", setting(server, "resources", "requests", "memory", to="3Gi")),
    ("images", "is no one image", setting(server, "image", to="pkpo:latest")),
    ("images", "is no one image", setting(server, "image", to="pkpo")),
]  # fmt: skip


def broken(manifests: list[Manifest], mutation: Callable[[Objects], None]) -> Rendering:
    copies = copy.deepcopy(manifests)
    mutation({f"{each['kind']}/{each['metadata']['name']}": each for each in copies})
    return Rendering(copies, CASES["everything"].existing)


@pytest.mark.parametrize(("rule", "complaint", "mutation"), MUTATIONS)
def test_a_rule_sees_what_breaks_it(
    manifests: list[Manifest], rule: str, complaint: str, mutation: Callable[[Objects], None]
) -> None:
    assert not list(RULES[rule](broken(manifests, lambda _: None)))
    assert any(complaint in each for each in RULES[rule](broken(manifests, mutation)))


def test_every_rule_is_tried() -> None:
    assert {rule for rule, _, _ in MUTATIONS} == {*RULES}
