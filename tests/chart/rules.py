"""What must be true of any set of rendered manifests, beyond the schemas of Kubernetes.

Each rule yields a complaint for everything in it that is wrong. They know nothing of the chart's templates.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any
from unittest.mock import patch

from deploy.cluster import Manifest
from pkpo_server.settings import ENVIRONMENT_PREFIX, InvalidSettings, Settings, read_settings

_RELEASE = "app.kubernetes.io/instance"
_LABEL = re.compile(r"([a-z0-9.-]{1,253}/)?[A-Za-z0-9]([-_.A-Za-z0-9]{0,61}[A-Za-z0-9])?")
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-_.A-Za-z0-9]{0,61}[A-Za-z0-9])?)?")
_SERVICE_NAME = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")
_NAME = re.compile(r"[a-z0-9]([-.a-z0-9]{0,251}[a-z0-9])?")
_UNITS = {"m": 1e-3, "": 1, "k": 1e3, "Ki": 2**10, "M": 1e6, "Mi": 2**20, "G": 1e9, "Gi": 2**30}


@dataclass(frozen=True)
class Pod:
    """A pod, or what a Deployment, a Job and the like make pods from."""

    owner: str
    labels: Mapping[str, str]
    spec: Mapping[str, Any]

    @property
    def containers(self) -> list[Mapping[str, Any]]:
        return [*(self.spec.get("initContainers") or []), *self.spec["containers"]]

    @property
    def ports(self) -> dict[str, int]:
        """By name."""
        return {port["name"]: port["containerPort"] for each in self.containers for port in each.get("ports", [])}

    @property
    def servers(self) -> list[Mapping[str, Any]]:
        """The containers that run pkpo-server."""
        return [each for each in self.containers if each["name"] == "pkpo"]


@dataclass(frozen=True)
class Rendering:
    """A set of manifests.

    Attributes:
        manifests: all of them, hooks too.
        existing: kind/name of what they may count on though it is not among them.
    """

    manifests: Sequence[Manifest]
    existing: frozenset[str] = field(default=frozenset())

    def of(self, *kinds: str) -> Iterator[Manifest]:
        return (each for each in self.manifests if each["kind"] in kinds)

    @cached_property
    def pods(self) -> list[Pod]:
        found = []
        for each in self.manifests:
            template = each if each["kind"] == "Pod" else each.get("spec", {}).get("template")
            if isinstance(template, dict) and "containers" in template["spec"]:
                found.append(Pod(_called(each), template["metadata"].get("labels", {}), template["spec"]))
        return found

    def selected(self, selector: Mapping[str, str]) -> list[Pod]:
        return [pod for pod in self.pods if selector and selector.items() <= pod.labels.items()]


Rule = Callable[[Rendering], Iterable[str]]


def complaints(rendering: Rendering) -> list[str]:
    """Everything that any rule finds wrong."""
    return [f"{name}: {complaint}" for name, rule in RULES.items() for complaint in rule(rendering)]


def _unique(rendering: Rendering) -> Iterator[str]:
    names = [_called(each) for each in rendering.manifests]
    yield from (f"{name} is there twice" for name in sorted({name for name in names if names.count(name) > 1}))


def _names(rendering: Rendering) -> Iterator[str]:
    for each in rendering.manifests:
        legal = _SERVICE_NAME if each["kind"] == "Service" else _NAME
        if not legal.fullmatch(each["metadata"]["name"]):
            yield f"{_called(each)} cannot be so called"
    labels = [(_called(each), each["metadata"].get("labels", {})) for each in rendering.manifests]
    labels += [(f"a pod of {pod.owner}", pod.labels) for pod in rendering.pods]
    for name, pairs in labels:
        for key, value in pairs.items():
            if not _LABEL.fullmatch(key) or not _LABEL_VALUE.fullmatch(value):
                yield f"{name} cannot have the label {key}={value}"


def _namespaces(rendering: Rendering) -> Iterator[str]:
    found = {each["metadata"].get("namespace") for each in rendering.manifests}
    if len(found) > 1:
        yield f"namespaces {found}"


def _ports(rendering: Rendering) -> Iterator[str]:
    for pod in rendering.pods:
        ports = [port for each in pod.containers for port in each.get("ports", [])]
        for key in ("name", "containerPort"):
            values = [port[key] for port in ports]
            if len(set(values)) < len(values):
                yield f"{pod.owner} has the same {key} twice: {values}"
        for port in ports:
            if not 1 <= port["containerPort"] <= 65535 or not re.fullmatch(r"[a-z][-a-z0-9]{0,14}", port["name"]):
                yield f"{pod.owner} cannot have the port {port['name']} {port['containerPort']}"


def _services(rendering: Rendering) -> Iterator[str]:
    for service in rendering.of("Service"):
        pods = rendering.selected(service["spec"]["selector"])
        if not pods:
            yield f"{_called(service)} selects no pod"
        for port in service["spec"]["ports"]:
            target = port.get("targetPort", port["port"])
            for pod in pods:
                if target not in (pod.ports if isinstance(target, str) else pod.ports.values()):
                    yield f"{_called(service)} leads to port {target}, which {pod.owner} has not"


def _selectors(rendering: Rendering) -> Iterator[str]:
    for owner in rendering.of("Deployment", "StatefulSet"):
        selector = owner["spec"]["selector"]["matchLabels"]
        if not selector.items() <= owner["spec"]["template"]["metadata"]["labels"].items():
            yield f"{_called(owner)} selects {selector}, which its own pods are not"
    for kind, key in (
        ("PodDisruptionBudget", "selector"),
        ("NetworkPolicy", "podSelector"),
        ("PodMonitor", "selector"),
    ):
        for each in rendering.of(kind):
            # A monitor may be for the pods of other charts, to which ours is a sidecar.
            if not rendering.selected(each["spec"][key]["matchLabels"]) and rendering.pods:
                yield f"{_called(each)} selects no pod"
    for pod in rendering.pods:
        for constraint in pod.spec.get("topologySpreadConstraints", []):
            if not constraint["labelSelector"]["matchLabels"].items() <= pod.labels.items():
                yield f"{pod.owner} is spread over pods that it is not one of"


def _monitors(rendering: Rendering) -> Iterator[str]:
    for monitor in rendering.of("PodMonitor"):
        for pod in rendering.selected(monitor["spec"]["selector"]["matchLabels"]):
            for endpoint in monitor["spec"]["podMetricsEndpoints"]:
                if endpoint["port"] not in pod.ports:
                    yield f"{_called(monitor)} scrapes port {endpoint['port']}, which {pod.owner} has not"
            if monitor["spec"]["jobLabel"] not in pod.labels:
                yield f"{_called(monitor)} names its job by a label that {pod.owner} has not"
    for monitor in rendering.of("ServiceMonitor"):
        selector = monitor["spec"]["selector"]["matchLabels"].items()
        services = [each for each in rendering.of("Service") if selector <= each["metadata"]["labels"].items()]
        for endpoint in monitor["spec"]["endpoints"]:
            with_port = [
                each for each in services if endpoint["port"] in (port["name"] for port in each["spec"]["ports"])
            ]
            if len(with_port) != 1:
                yield f"{_called(monitor)} scrapes port {endpoint['port']}, which {len(with_port)} Services have"


def _probes(rendering: Rendering) -> Iterator[str]:
    for pod in rendering.pods:
        for container in pod.containers:
            ports = {port["containerPort"] for port in container.get("ports", [])}
            for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
                probe = container.get(kind, {})
                if "grpc" in probe and probe["grpc"]["port"] not in ports:
                    yield f"{pod.owner}: {kind} asks port {probe['grpc']['port']}, which {container['name']} has not"
        for server in pod.servers:
            for kind in ("startupProbe", "readinessProbe"):
                if kind not in server:
                    yield f"{pod.owner}: no {kind}"


def _autoscalers(rendering: Rendering) -> Iterator[str]:
    for scaler in rendering.of("HorizontalPodAutoscaler"):
        spec, name = scaler["spec"], _called(scaler)
        if not 1 <= spec["minReplicas"] <= spec["maxReplicas"]:
            yield f"{name}: {spec['minReplicas']} pods at least, {spec['maxReplicas']} at most"
        target = f"{spec['scaleTargetRef']['kind']}/{spec['scaleTargetRef']['name']}"
        found = [each for each in rendering.manifests if _called(each) == target]
        if not found:
            yield f"{name} scales {target}, which is not there"
        for each in found:
            if "replicas" in each["spec"]:
                yield f"{name} and {target} both say how many pods"
        if not spec.get("metrics"):
            yield f"{name} has nothing to scale by"
        utilizations = [metric for metric in spec["metrics"] if metric["type"] == "Resource"]
        for pod in rendering.pods:
            if pod.owner == target and utilizations:
                for container in pod.containers:
                    if "cpu" not in container.get("resources", {}).get("requests", {}):
                        yield f"{name} needs to know what CPU {container['name']} of {target} requests"


def _budgets(rendering: Rendering) -> Iterator[str]:
    for budget in rendering.of("PodDisruptionBudget"):
        spec = budget["spec"]
        given = [key for key in ("minAvailable", "maxUnavailable") if key in spec]
        if len(given) != 1:
            yield f"{_called(budget)} says {given or 'nothing'}"
        for owner in rendering.of("Deployment"):
            scaled = [each["spec"]["minReplicas"] for each in rendering.of("HorizontalPodAutoscaler")]
            pods = owner["spec"].get("replicas", min(scaled, default=1))
            if pods < 2 or (isinstance(spec.get("minAvailable"), int) and spec["minAvailable"] >= pods):
                yield f"{_called(budget)} lets no pod of {pods} go"


def _references(rendering: Rendering) -> Iterator[str]:
    there = {_called(each) for each in rendering.manifests} | rendering.existing
    there |= {f"Secret/{each['spec']['secretName']}" for each in rendering.of("Certificate")}
    for pod in rendering.pods:
        for name in {*_referred(pod.spec)} - there:
            yield f"{pod.owner} wants {name}, which is not there"


def _referred(spec: Mapping[str, Any]) -> Iterator[str]:
    """kind/name of everything that a pod cannot start without."""
    if spec.get("serviceAccountName", "default") != "default":
        yield f"ServiceAccount/{spec['serviceAccountName']}"
    yield from (f"Secret/{each['name']}" for each in spec.get("imagePullSecrets", []))
    for volume in spec.get("volumes", []):
        for source in (volume, *volume.get("projected", {}).get("sources", [])):
            if "secret" in source:
                yield f"Secret/{source['secret'].get('secretName') or source['secret'].get('name')}"
            if "configMap" in source:
                yield f"ConfigMap/{source['configMap']['name']}"
        if "persistentVolumeClaim" in volume:
            yield f"PersistentVolumeClaim/{volume['persistentVolumeClaim']['claimName']}"
    for container in (*(spec.get("initContainers") or []), *spec["containers"]):
        sources = [each.get("valueFrom", {}) for each in container.get("env", [])]
        for source in (*sources, *container.get("envFrom", [])):
            for kind, keys in (
                ("Secret", ("secretKeyRef", "secretRef")),
                ("ConfigMap", ("configMapKeyRef", "configMapRef")),
            ):
                yield from (f"{kind}/{source[key]['name']}" for key in keys if key in source)


def _mounts(rendering: Rendering) -> Iterator[str]:
    for pod in rendering.pods:
        volumes = {volume["name"]: volume for volume in pod.spec.get("volumes", [])}
        if len(volumes) < len(pod.spec.get("volumes", [])):
            yield f"{pod.owner} has two volumes of one name"
        mounts = [mount for each in pod.containers for mount in each.get("volumeMounts", [])]
        for name in {mount["name"] for mount in mounts} - {*volumes}:
            yield f"{pod.owner} mounts {name}, which is no volume"
        for name in {*volumes} - {mount["name"] for mount in mounts}:
            yield f"{pod.owner} mounts {name} nowhere"
        for container in pod.containers:
            paths = [mount["mountPath"] for mount in container.get("volumeMounts", [])]
            if len({*paths}) < len(paths):
                yield f"{pod.owner} mounts two volumes at one of {paths}"
        for mount in mounts:
            if "subPath" in mount and not {"secret", "projected"}.isdisjoint(volumes.get(mount["name"], {})):
                yield f"{pod.owner} mounts {mount['name']} by subPath, which never changes"


def _flags(rendering: Rendering) -> Iterator[str]:
    for pod in rendering.pods:
        for server in pod.servers:
            try:
                settings = server_settings(server)
            except InvalidSettings as error:
                yield f"{pod.owner}: {error}"
                continue
            yield from (f"{pod.owner}: {complaint}" for complaint in _unserved(pod, server, settings))
            for name in (each["name"] for each in server.get("env", [])):
                if name.startswith(ENVIRONMENT_PREFIX):
                    yield f"{pod.owner}: {name} has no effect beside its flag"


def server_settings(server: Mapping[str, Any]) -> Settings:
    """What pkpo-server makes of a container's flags. Raises InvalidSettings."""
    with patch.dict(os.environ, {}, clear=True):
        try:
            return read_settings(server["args"])
        except SystemExit as error:
            raise InvalidSettings(f"no such flag among {server['args']}") from error


def _unserved(pod: Pod, server: Mapping[str, Any], settings: Settings) -> Iterator[str]:
    """What the manifest counts on and the settings do not give, or the other way round."""
    ports = {port["name"]: port["containerPort"] for port in server.get("ports", [])}
    served = {"metrics": settings.metrics_port, "health": settings.health_port}
    if settings.unix_socket is None:
        served["grpc"] = settings.port
    if ports != served:
        yield f"the ports are {ports}, and {served} are served"
    hosts = {settings.metrics_host, settings.health_host}
    if settings.unix_socket is None:
        hosts.add(settings.host)
    if hosts & {"127.0.0.1", "::1", "localhost"}:
        yield f"serves within the pod alone, at {hosts}"
    volumes = {volume["name"]: volume for volume in pod.spec["volumes"]}
    mounted = {PurePosixPath(each["mountPath"]): volumes.get(each["name"], {}) for each in server["volumeMounts"]}
    if settings.unix_socket is not None and "emptyDir" not in mounted.get(
        PurePosixPath(settings.unix_socket).parent, {}
    ):
        yield f"{settings.unix_socket} is in no folder that is shared"
    if settings.tokens is not None and "secret" not in mounted.get(PurePosixPath(settings.tokens), {}):
        yield f"{settings.tokens} is no folder with a Secret"
    for file in (settings.tls_certificate, settings.tls_key, settings.tls_client_ca):
        if file is not None:
            sources = mounted.get(PurePosixPath(file).parent, {}).get("projected", {}).get("sources", [])
            if file.name not in (item["path"] for source in sources for item in source["secret"]["items"]):
                yield f"{file} is not mounted"


def _grace(rendering: Rendering) -> Iterator[str]:
    for owner in rendering.of("Deployment"):
        spec = owner["spec"]["template"]["spec"]
        for server in (each for each in spec["containers"] if each["name"] == "pkpo"):
            try:
                drain = server_settings(server).drain_seconds
            except InvalidSettings:
                continue  # another rule's
            stop = server.get("lifecycle", {}).get("preStop", {})
            slept = stop["sleep"]["seconds"] if "sleep" in stop else 0
            if "exec" in stop:
                slept = int(re.search(r"sleep\((\d+)\)", stop["exec"]["command"][-1])[1])  # type: ignore[index]
            if spec["terminationGracePeriodSeconds"] <= slept + drain:
                given = spec["terminationGracePeriodSeconds"]
                yield f"{_called(owner)} is killed after {given} s, and needs {slept} s and {drain} s"


def _rollout(rendering: Rendering) -> Iterator[str]:
    for owner in rendering.of("Deployment"):
        rolling = owner["spec"]["strategy"].get("rollingUpdate", {})
        if rolling.get("maxUnavailable") != 0 or rolling.get("maxSurge") in (0, "0%", None):
            yield f"{_called(owner)} takes pods away before there are new ones"


def _network(rendering: Rendering) -> Iterator[str]:
    for policy in rendering.of("NetworkPolicy"):
        rules = policy["spec"]["ingress"]
        inward = [port["port"] for rule in rules for port in rule["ports"]]
        for pod in rendering.selected(policy["spec"]["podSelector"]["matchLabels"]):
            for port in inward:
                if port not in (pod.ports if isinstance(port, str) else pod.ports.values()):
                    yield f"{_called(policy)} opens port {port}, which {pod.owner} has not"
            for server in pod.servers:
                for port in server["ports"]:
                    if not {port["name"], port["containerPort"]} & {*inward}:
                        yield f"{_called(policy)} closes port {port['name']} of {pod.owner}"
        grpc = [rule for rule in rules if "grpc" in (port["port"] for port in rule["ports"])]
        callers = [caller for rule in grpc for caller in rule.get("from", [{"namespaceSelector": {}}])]
        for hook in rendering.of("Pod"):
            labels = hook["metadata"]["labels"]
            ours = labels[_RELEASE] == policy["metadata"]["labels"][_RELEASE]
            if ours and not any(_lets_in(caller, labels) for caller in callers):
                yield f"{_called(policy)} keeps {_called(hook)} out"


def _lets_in(caller: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """Whether a `from` is for a pod of the policy's own namespace, of which it cannot know the labels."""
    pods = caller.get("podSelector", {}).get("matchLabels", {})
    return not caller.get("namespaceSelector") and "ipBlock" not in caller and pods.items() <= labels.items()


def _hardening(rendering: Rendering) -> Iterator[str]:
    for pod in rendering.pods:
        if pod.spec.get("automountServiceAccountToken") is not False:
            yield f"{pod.owner} has a service account's token"
        if pod.spec.get("enableServiceLinks") is not False:
            yield f"{pod.owner} has variables of Services, such as PKPO_PORT"
        for container in pod.servers:
            context = container.get("securityContext", {})
            hardened = {
                "runAsNonRoot": True,
                "readOnlyRootFilesystem": True,
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
                "seccompProfile": {"type": "RuntimeDefault"},
            }
            for key in (key for key, value in hardened.items() if context.get(key) != value):
                yield f"{pod.owner}: {key} of {container['name']} is {context.get(key)}"


def _resources(rendering: Rendering) -> Iterator[str]:
    for pod in rendering.pods:
        for container in pod.servers:
            resources = container.get("resources", {})
            requests, limits = resources.get("requests", {}), resources.get("limits", {})
            if not {"cpu", "memory"} <= {*requests} or "memory" not in limits:
                yield f"{pod.owner}: {container['name']} says too little of what it needs: {resources}"
            for key in {*requests} & {*limits}:
                if quantity(requests[key]) > quantity(limits[key]):
                    yield f"{pod.owner}: {container['name']} requests more {key} than it may have"


def quantity(text: str | float) -> float:
    """What a quantity such as 500m or 2Gi says."""
    number, unit = re.fullmatch(r"([\d.]+)([A-Za-z]*)", str(text)).groups()  # type: ignore[union-attr]
    return float(number) * _UNITS[unit]


def _images(rendering: Rendering) -> Iterator[str]:
    for pod in rendering.pods:
        for container in pod.containers:
            if not re.fullmatch(r"[^:@]+(:\d+/[^:@]+)?(:(?!latest$)[\w.-]+|@sha256:[0-9a-f]{64})", container["image"]):
                yield f"{pod.owner}: {container['image']} is no one image"


def _called(manifest: Manifest) -> str:
    return f"{manifest['kind']}/{manifest['metadata']['name']}"


RULES: Mapping[str, Rule] = {
    "unique": _unique,
    "names": _names,
    "namespaces": _namespaces,
    "ports": _ports,
    "services": _services,
    "selectors": _selectors,
    "monitors": _monitors,
    "probes": _probes,
    "autoscalers": _autoscalers,
    "budgets": _budgets,
    "references": _references,
    "mounts": _mounts,
    "flags": _flags,
    "grace": _grace,
    "rollout": _rollout,
    "network": _network,
    "hardening": _hardening,
    "resources": _resources,
    "images": _images,
}
