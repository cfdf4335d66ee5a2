"""The chart's values: what is refused, and that schema, comments and README say the same as the server's settings."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import yaml

from deploy import chart_files
from deploy.chart_files import CHART, ELSEWHERE, documented_values, value_name
from deploy.rendering import CannotRender, Helm, running_helm
from pkpo_server.settings import SETTINGS, flag
from pkpo_server.workers import BYTES_PER_RUN

_ISSUER = {"enabled": True, "issuerRef": {"name": "letters"}}

# What a container has at /dev/shm, where the image keeps what several workers count.
_SHARED_MEMORY = 64 * 2**20

REFUSED: list[tuple[Mapping[str, Any], str]] = [
    # By the schema, which names the value by its path.
    ({"replicas": 3}, "replicas"),
    ({"server": {"maxRows": 3}}, "maxRows"),
    ({"server": {"workers": 0}}, "/server/workers"),
    ({"server": {"workers": 257}}, "/server/workers"),
    ({"server": {"workers": "four"}}, "/server/workers"),
    ({"server": {"logLevel": "loud"}}, "/server/logLevel"),
    ({"server": {"port": 0}}, "/server/port"),
    ({"server": {"reflection": "false"}}, "/server/reflection"),
    ({"replicaCount": -1}, "/replicaCount"),
    ({"mode": "daemon"}, "/mode"),
    ({"image": {"digest": "sha256:short"}}, "/image/digest"),
    ({"image": {"pullPolicy": "Sometimes"}}, "/image/pullPolicy"),
    ({"fullnameOverride": "Pkpo"}, "/fullnameOverride"),
    ({"fullnameOverride": "x" * 54}, "/fullnameOverride"),
    ({"terminationGracePeriodSeconds": "60s"}, "/terminationGracePeriodSeconds"),
    ({"tokens": {"values": ["two words of a text"]}}, "/tokens/values/0"),
    ({"tokens": {"values": ["too-short"]}}, "/tokens/values/0"),
    ({"service": {"port": 65536}}, "/service/port"),
    ({"service": {"type": "NodePort", "nodePort": 65536}}, "/service/nodePort"),
    ({"service": {"nodePort": 30051}}, "service.nodePort: 30051 with service.type ClusterIP"),
    ({"global": {"imageRegistry": 5}}, "/global/imageRegistry"),
    ({"global": {"imagePullSecrets": [{"secret": "registry"}]}}, "/global/imagePullSecrets/0"),
    ({"monitoring": {"prometheusRule": {"runbookUrl": "docs/alerts.md"}}}, "/monitoring/prometheusRule/runbookUrl"),
    ({"autoscaling": {"minReplicas": 0}}, "/autoscaling/minReplicas"),
    ({"podDisruptionBudget": {"minAvailable": "half"}}, "/podDisruptionBudget/minAvailable"),
    ({"podLabels": {"a": 1}}, "/podLabels/a"),
    ({"monitoring": {"podMonitor": {"interval": "often"}}}, "/monitoring/podMonitor/interval"),
    ({"probes": {"liveness": {"httpGet": {"port": 80}}}}, "httpGet"),
    ({"sidecar": {"socketPath": "pkpo.sock"}}, "/sidecar/socketPath"),
    ({"sidecar": {"socketPath": f"/run/{'x' * 103}"}}, "/sidecar/socketPath"),
    ({"sidecar": {"socketMode": "rw"}}, "/sidecar/socketMode"),
    ({"sidecar": {"socketMode": 660}}, "/sidecar/socketMode"),
    ({"resources": {"memory": "1Gi"}}, "memory"),
    # By what the schema cannot say.
    ({"autoscaling": {"enabled": True, "minReplicas": 11}}, "autoscaling.minReplicas: 11; must be at most"),
    ({"autoscaling": {"enabled": True, "targetCPUUtilizationPercentage": None}}, "autoscaling: nothing to scale by"),
    ({"autoscaling": {"enabled": True}, "resources": {"limits": {"memory": "1Gi"}}}, "resources.requests.cpu: not set"),
    ({"terminationGracePeriodSeconds": 44}, "terminationGracePeriodSeconds: 44; must be at least 45"),
    ({"terminationGracePeriodSeconds": 60, "server": {"drainSeconds": 50.5}}, "must be at least 66"),
    ({"tls": {"enabled": True}}, "tls.enabled: true without a certificate"),
    ({"tls": {"enabled": True, "existingSecret": "one", "certManager": _ISSUER}}, "tls.existingSecret: one, and"),
    ({"tls": {"enabled": True, "certManager": {"enabled": True}}}, "tls.certManager.issuerRef.name: not set"),
    ({"tls": {"clientAuthentication": True}}, "tls.clientAuthentication: true without tls.enabled"),
    (
        {"tokens": {"existingSecret": "one", "values": ["token-of-another"]}},
        "tokens.existingSecret: one, and tokens.values",
    ),
    ({"podDisruptionBudget": {"minAvailable": 1, "maxUnavailable": 1}}, "minAvailable 1 and maxUnavailable 1"),
    ({"podDisruptionBudget": {"minAvailable": 2}}, "podDisruptionBudget.minAvailable: 2 of 2 pods"),
    (
        {"monitoring": {"podMonitor": {"enabled": True}, "serviceMonitor": {"enabled": True}}},
        "podMonitor.enabled and serviceMonitor.enabled",
    ),
    ({"server": {"metricsPort": 50051}}, "server.port, server.metricsPort, server.healthPort: 50051, 50051, 50052"),
    ({"extraEnv": [{"name": "PKPO_WORKERS", "value": "4"}]}, "extraEnv: PKPO_WORKERS"),
    ({"podDisruptionBudget": {"maxUnavailable": 0}}, "podDisruptionBudget: lets no pod go"),
    ({"podDisruptionBudget": {"minAvailable": "100%"}}, "podDisruptionBudget: lets no pod go"),
    ({"strategy": {"rollingUpdate": {"maxSurge": 0}}}, "strategy.rollingUpdate: maxUnavailable 0 and maxSurge 0"),
    ({"server": {"healthHost": "127.0.0.1"}}, "server.healthHost: 127.0.0.1"),
    ({"service": {"ipFamilies": ["IPv6"]}}, "server.host: 0.0.0.0 with service.ipFamilies IPv6"),
    (
        {"tls": {"enabled": True, "clientAuthentication": True, "certManager": _ISSUER}},
        "tls.clientCaSecret: not set",
    ),
    ({"extraArgs": ["--drain-seconds=300"]}, "extraArgs"),
    ({"service": {"loadBalancerSourceRanges": ["anyone"]}}, "/service/loadBalancerSourceRanges/0"),
    (
        {"server": {"workers": 4, "maxRunIds": 2048}},
        "server.maxRunIds: 2048 for each of 4 server.workers; must be at most 744",
    ),
    ({"server": {"workers": 47, "maxRunIds": None}}, "server.maxRunIds: 64 for each of 47 server.workers"),
    ({"mode": "sidecar", "server": {"workers": 2}}, "server.workers: 2 with mode sidecar"),
    ({"mode": "sidecar", "tls": {"enabled": True, "existingSecret": "one"}}, "tls.enabled: set with mode sidecar"),
    ({"mode": "sidecar", "tokens": {"existingSecret": "one"}}, "tokens: set with mode sidecar"),
    ({"mode": "sidecar", "autoscaling": {"enabled": True}}, "autoscaling.enabled: set with mode sidecar"),
]


@pytest.fixture(scope="module", name="helm")
def fixture_helm() -> Iterator[Helm]:
    with running_helm("1.30") as helm:
        yield helm


@pytest.mark.parametrize(("values", "complaint"), REFUSED)
def test_values_that_cannot_be_used_are_named(helm: Helm, values: Mapping[str, Any], complaint: str) -> None:
    with pytest.raises(CannotRender) as caught:
        helm.render(values)
    assert complaint in str(caught.value)


def test_a_limit_is_a_request_too(helm: Helm) -> None:
    release = helm.render({"autoscaling": {"enabled": True}, "resources": {"limits": {"cpu": 2, "memory": "4Gi"}}})
    assert "HorizontalPodAutoscaler" in {each["kind"] for each in release.manifests}


def test_several_workers_have_as_many_runs_as_their_memory_holds(helm: Helm) -> None:
    most = _SHARED_MEMORY // (2 * BYTES_PER_RUN)
    assert helm.render({"server": {"workers": 2, "maxRunIds": most}}).manifests
    with pytest.raises(CannotRender, match=rf"must be at most {most}, or a volume be mounted at /dev/shm"):
        helm.render({"server": {"workers": 2, "maxRunIds": most + 1}})
    # One worker keeps them in its own.
    assert helm.render({"server": {"workers": 1, "maxRunIds": 2048}}).manifests


@pytest.mark.parametrize(
    "more",
    [
        {"extraVolumeMounts": [{"name": "shm", "mountPath": "/dev/shm/"}]},
        {"extraVolumeMounts": [{"name": "shm", "mountPath": "{{ printf `/dev/shm` }}"}]},
        {"extraEnv": [{"name": "TMPDIR", "value": "/tmp"}]},
    ],
    ids=["mounted", "by a template", "elsewhere"],
)
def test_or_as_many_as_other_memory_holds(helm: Helm, more: Mapping[str, Any]) -> None:
    many = {"server": {"workers": 4, "maxRunIds": 2048}}
    volumes = {"extraVolumes": [{"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "256Mi"}}]}
    assert helm.render({**many, **volumes, **more}).manifests
    with pytest.raises(CannotRender, match=r"server\.maxRunIds: 2048"):
        helm.render({**many, **volumes, "extraVolumeMounts": [{"name": "shm", "mountPath": "/dev/shm/more"}]})


def test_all_complaints_come_at_once(helm: Helm) -> None:
    with pytest.raises(CannotRender) as caught:
        helm.render({"tls": {"enabled": True}, "terminationGracePeriodSeconds": 1})
    assert "tls.enabled" in str(caught.value)
    assert "terminationGracePeriodSeconds" in str(caught.value)


def test_a_release_whose_name_names_no_service_is_told(helm: Helm) -> None:
    with pytest.raises(CannotRender, match=r"fullnameOverride: not set, and 1st-pkpo cannot name a Service"):
        helm.render({}, name="1st")
    assert helm.render({"fullnameOverride": "pkpo"}, name="1st").manifests


def test_an_older_cluster_is_refused() -> None:
    with running_helm("1.26") as helm, pytest.raises(CannotRender, match=r"requires kubeVersion: >=1\.27\.0-0"):
        helm.render({})


def test_every_setting_is_a_value() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert {*values["server"]} == {value_name(name) for name in SETTINGS if name not in ELSEWHERE}
    for path in ELSEWHERE.values():
        place = values
        for key in path.split("."):
            place = place[key]
    assert all(f"--{flag(name)[2:]}=" in (CHART / "templates" / "_container.tpl").read_text() for name in ELSEWHERE)


def test_the_schema_knows_the_values_and_no_others() -> None:
    text = (CHART / "values.yaml").read_text()
    schema = json.loads((CHART / "values.schema.json").read_text())
    # What Helm and the charts above this one put among its values.
    del schema["properties"]["enabled"]
    schema["properties"]["global"] |= {"additionalProperties": False}
    for parent in {name.rpartition(".")[0] for name, _, _ in documented_values(text)}:
        values, known = yaml.safe_load(text), schema
        for key in parent.split(".") if parent else ():
            values, known = values[key], known["properties"][key]
        assert {*values} == {*known["properties"]}, parent
        assert known["additionalProperties"] is False, parent


def test_what_follows_from_elsewhere_is_up_to_date() -> None:
    """Versions, the values of the server, their schema and the README's table; else: python -m deploy.chart_files."""
    for path, text in chart_files.files().items():
        assert path.read_text() == text, path


def test_a_value_without_a_comment_is_seen() -> None:
    text = "a:\n  # One.\n  b: 1\n\n  c: 2\n"
    with pytest.raises(ValueError, match=r"a\.c has no comment"):
        list(documented_values(text))
    assert list(documented_values(text.replace("\n\n", "\n  # Two\n  # lines.\n"))) == [
        ("a.b", 1, "One."),
        ("a.c", 2, "Two lines."),
    ]
