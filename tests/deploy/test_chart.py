"""The chart, rendered by Helm for many values and at both ends of what we support, and what must be true of it then."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterator

import kubernetes_validate
import pytest
import yaml

from chart.cases import CASES
from chart.custom_resources import check
from chart.rules import Rendering, complaints, server_settings
from deploy.chart_files import CHART
from deploy.cluster import Manifest
from deploy.rendering import Release, running_helm
from pkpo_server.settings import SETTINGS, Settings

OLDEST, NEWEST = "1.27", kubernetes_validate.latest_version().rpartition(".")[0]
VERSIONS = (OLDEST, NEWEST)
Render = Callable[[str, str], Release]


@pytest.fixture(scope="module", name="render")
def fixture_render() -> Iterator[Render]:
    """What a case gives at a version; each is rendered once."""
    with running_helm(OLDEST) as oldest, running_helm(NEWEST) as newest:
        helms = {OLDEST: oldest, NEWEST: newest}

        @functools.cache
        def render(case: str, version: str) -> Release:
            return helms[version].render(CASES[case].values)

        yield render


@functools.cache
def check_schema(manifest: str, version: str) -> None:
    """Most objects of a case are those of another; each is validated once."""
    try:
        kubernetes_validate.validate(json.loads(manifest), version, strict=True)
    except kubernetes_validate.SchemaNotFoundError:
        check(json.loads(manifest))


def everything(release: Release) -> list[Manifest]:
    return [*release.manifests, *release.hooks]


def test_the_oldest_version_is_the_chart_s() -> None:
    assert yaml.safe_load((CHART / "Chart.yaml").read_text())["kubeVersion"] == f">={OLDEST}.0-0"


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("version", VERSIONS)
def test_what_is_rendered_is_valid(render: Render, case: str, version: str) -> None:
    release = render(case, version)
    for manifest in everything(release):
        check_schema(json.dumps(manifest), version)
    assert complaints(Rendering(everything(release), CASES[case].existing)) == []


@pytest.mark.parametrize("version", VERSIONS)
def test_a_field_that_kubernetes_does_not_know_is_seen(render: Render, version: str) -> None:
    for manifest in everything(render("everything", version)):
        with pytest.raises(Exception, match="surprise"):
            check_schema(json.dumps({**manifest, "surprise": 1}), version)


def test_a_pod_is_told_of_every_setting(render: Render) -> None:
    """As the server's own defaults are, but for what a pod needs otherwise."""
    (server,) = deployment(render("everything", NEWEST))["containers"]
    told = {re.sub("^no-", "", flag[2:].partition("=")[0]).replace("-", "_") for flag in server["args"]}
    by_itself = {"max_bytes_in_flight", "max_rewards_in_flight", "max_memory_bytes"}
    assert told == {*SETTINGS} - {"unix_socket", "unix_socket_mode"} - by_itself
    settings, defaults = server_settings(server), Settings()
    differing = {name for name in SETTINGS if getattr(settings, name) != getattr(defaults, name)}
    assert differing == {
        *("host", "metrics_host", "health_host", "health_port", "threads", "max_connection_age_seconds"),
        *("tls_certificate", "tls_key", "tls_client_ca", "tokens"),
    }


def test_what_is_set_arrives(render: Render) -> None:
    settings = server_settings(deployment(render("settings", NEWEST))["containers"][0])
    assert settings == Settings(
        host="::",
        metrics_host="::",
        health_host="::",
        port=6000,
        metrics_port=6001,
        health_port=6002,
        threads=3,
        max_message_bytes=2**31 - 1,
        drain_seconds=0.5,
        reflection=False,
        server_info=False,
        log_level="warning",
    )


@pytest.mark.parametrize(
    ("case", "threads", "resources"),
    [
        ("defaults", 1, {"requests": {"cpu": "1", "memory": "512Mi"}, "limits": {"memory": "2Gi"}}),
        ("four workers", 1, {"requests": {"cpu": "4", "memory": "2048Mi"}, "limits": {"memory": "8Gi"}}),
        ("everything extra", 2, {"requests": {"cpu": "1500m", "memory": "1Gi"}, "limits": {"cpu": 2, "memory": "4Gi"}}),
    ],
)
def test_threads_are_those_of_the_pod_s_cpus(
    render: Render, case: str, threads: int, resources: dict[str, dict[str, str]]
) -> None:
    server = deployment(render(case, NEWEST))["containers"][-1 if case != "everything extra" else 0]
    assert (server_settings(server).threads, server["resources"]) == (threads, resources)


def test_a_pod_has_time_to_end(render: Render) -> None:
    assert deployment(render("defaults", OLDEST))["terminationGracePeriodSeconds"] == 5 + 30 + 10
    assert deployment(render("settings", OLDEST))["terminationGracePeriodSeconds"] == 5 + 1 + 10
    assert deployment(render("everything extra", OLDEST))["terminationGracePeriodSeconds"] == 120


def test_the_pause_before_the_end_is_the_kubelet_s_where_it_can(render: Render) -> None:
    (old,), (new,) = (deployment(render("defaults", version))["containers"] for version in VERSIONS)
    assert old["lifecycle"] == {"preStop": {"exec": {"command": ["python3", "-c", "import time; time.sleep(5)"]}}}
    assert new["lifecycle"] == {"preStop": {"sleep": {"seconds": 5}}}
    assert "lifecycle" not in deployment(render("no preStop", NEWEST))["containers"][0]


@pytest.mark.parametrize(
    ("case", "replicas", "budget"),
    [
        ("defaults", 2, {"maxUnavailable": 1}),
        ("one pod", 1, None),
        ("autoscaling", None, {"maxUnavailable": 1}),
        ("autoscaling from one pod", None, None),
        ("budget at least", 2, {"minAvailable": 1}),
        ("budget in percent", 10, {"maxUnavailable": "25%"}),
        ("no budget", 2, None),
    ],
)
def test_pods_and_how_many_may_go(
    render: Render, case: str, replicas: int | None, budget: dict[str, object] | None
) -> None:
    release = render(case, NEWEST)
    (owner,) = of(release, "Deployment")
    budgets = [
        {key: value for key, value in each["spec"].items() if key.endswith("vailable")}
        for each in of(release, "PodDisruptionBudget")
    ]
    assert owner["spec"].get("replicas") == replicas
    assert budgets == ([] if budget is None else [budget])


def test_scaling_by_calls_asks_for_the_metric_by_its_name(render: Render) -> None:
    (scaler,) = of(render("autoscaling by open calls", NEWEST), "HorizontalPodAutoscaler")
    (metric,) = scaler["spec"]["metrics"]
    assert metric == {
        "type": "Pods",
        "pods": {"metric": {"name": "pkpo_calls"}, "target": {"type": "AverageValue", "averageValue": "64"}},
    }
    (scaler,) = of(render("autoscaling by all", NEWEST), "HorizontalPodAutoscaler")
    assert [each["type"] for each in scaler["spec"]["metrics"]] == ["Resource", "Pods", "Resource"]


@pytest.mark.parametrize(
    ("case", "protocol"),
    [("defaults", "kubernetes.io/h2c"), ("tls", "https"), ("everything extra", "grpc")],
)
def test_services_say_what_is_spoken(render: Render, case: str, protocol: str) -> None:
    services = of(render(case, NEWEST), "Service")
    assert {each["spec"]["ports"][0]["appProtocol"] for each in services} == {protocol}
    assert [each["spec"].get("clusterIP") for each in services].count("None") == 1


@pytest.mark.parametrize(("case", "listed"), [("pod monitor", "podMetricsEndpoints"), ("service monitor", "endpoints")])
def test_monitors_scrape_as_told(render: Render, case: str, listed: str) -> None:
    (monitor,) = of(render(case, NEWEST), "PodMonitor", "ServiceMonitor")
    (endpoint,) = monitor["spec"][listed]
    assert (endpoint["port"], endpoint["path"], endpoint["interval"]) == ("metrics", "/metrics", "15s")
    assert len(endpoint["relabelings"]) == len(endpoint["metricRelabelings"]) == 1
    assert monitor["metadata"]["labels"]["release"] == "prometheus"


def test_rules_and_dashboard_are_the_files(render: Render) -> None:
    release = render("rules and dashboard", NEWEST)
    (rule,) = of(release, "PrometheusRule")
    assert rule["spec"] == yaml.safe_load((CHART / "files" / "rules.yaml").read_text())
    (dashboard,) = of(release, "ConfigMap")
    assert json.loads(dashboard["data"]["pkpo.json"]) == json.loads((CHART / "files" / "dashboard.json").read_text())
    assert dashboard["metadata"]["labels"]["grafana_dashboard"] == "1"


def test_every_alert_leads_to_its_section_of_the_page(render: Render) -> None:
    (rules,) = of(render("rules with runbooks", NEWEST), "PrometheusRule")
    expected = yaml.safe_load((CHART / "files" / "rules.yaml").read_text())
    for rule in (rule for group in expected["groups"] for rule in group["rules"] if "alert" in rule):
        page = f"https://docs.example.com/pkpo/alerts.html#{rule['alert'].lower()}"
        rule["annotations"] = {**rule["annotations"], "runbook_url": page}
    assert rules["spec"] == expected


def test_what_all_charts_are_told_of_images_holds_here_too(render: Render) -> None:
    release = render("below another chart", NEWEST)
    (hook,) = release.hooks
    for pod in (deployment(release), hook["spec"]):
        assert pod["containers"][0]["image"].startswith("my-registry:5000/pkpo:")
        assert pod["imagePullSecrets"] == [{"name": "registry"}, {"name": "another"}]


def test_a_node_port_is_that_of_the_one_service(render: Render) -> None:
    ports = {
        each["metadata"]["name"]: [port.get("nodePort") for port in each["spec"]["ports"]]
        for each in of(render("node port", NEWEST), "Service")
    }
    assert ports == {"pkpo": [30051], "pkpo-headless": [None, None, None]}


def test_tokens_of_the_values_are_lines_of_a_secret(render: Render) -> None:
    (secret,) = of(render("tokens", NEWEST), "Secret")
    assert secret["stringData"] == {"tokens": "token-of-one-team\ntoken-of-another==\n"}
    assert not of(render("tokens, existing", NEWEST), "Secret")


def test_a_certificate_is_for_every_name_of_the_services(render: Render) -> None:
    release = render("cert-manager", NEWEST)
    (certificate,) = of(release, "Certificate")
    for service in of(release, "Service"):
        name = service["metadata"]["name"]
        for written in (name, f"{name}.pkpo", f"{name}.pkpo.svc", f"{name}.pkpo.svc.cluster.local"):
            assert written in certificate["spec"]["dnsNames"]
    assert "pkpo.example.com" in certificate["spec"]["dnsNames"]


def test_what_users_add_is_there(render: Render) -> None:
    release = render("everything extra", NEWEST)
    (owner,) = of(release, "Deployment")
    pod = owner["spec"]["template"]["spec"]
    server = pod["containers"][0]
    assert server["image"] == "my-registry:5000/ml/pkpo:1.2.3"
    assert server["env"][0] == {"name": "GRPC_VERBOSITY", "value": "pkpo"}
    for key in (
        *("nodeSelector", "tolerations", "priorityClassName", "schedulerName", "runtimeClassName", "hostAliases"),
        *("dnsPolicy", "dnsConfig"),
    ):
        assert pod[key] == CASES["everything extra"].values[key]
    assert pod["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][0]["labelSelector"] == {
        "matchLabels": {"app.kubernetes.io/instance": "pkpo"}
    }
    assert pod["securityContext"]["runAsUser"] == 1000720000
    assert not {"runAsGroup", "fsGroup"} & {*pod["securityContext"]}
    assert all(
        each["metadata"]["labels"]["team"] == "reinforcement-learning"
        for each in everything(release)
        if "labels" in each["metadata"]
    )
    assert owner["spec"]["template"]["metadata"]["labels"]["queue"] == "research"


@pytest.mark.parametrize("name", ["p" + "x" * 51 + "p", "pkpo" + "x" * 49, "x"])
@pytest.mark.parametrize("version", VERSIONS)
def test_a_release_may_have_any_name(name: str, version: str) -> None:
    with running_helm(version) as helm:
        release = helm.render(CASES["everything"].values, name=name)
    assert complaints(Rendering(everything(release), CASES["everything"].existing)) == []


def test_two_releases_share_a_namespace() -> None:
    """Helm itself refuses an object that another release owns."""
    with running_helm(NEWEST) as helm:
        first = helm.install(CASES["everything"].values, name="first")
        second = helm.install(CASES["everything"].values, name="second")
    assert complaints(Rendering([*everything(first), *everything(second)], CASES["everything"].existing)) == []


def deployment(release: Release) -> Manifest:
    """The pod that the Deployment makes."""
    (owner,) = of(release, "Deployment")
    spec: Manifest = owner["spec"]["template"]["spec"]
    return spec


def of(release: Release, *kinds: str) -> list[Manifest]:
    return [each for each in release.manifests if each["kind"] in kinds]
