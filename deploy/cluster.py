"""The API of a Kubernetes cluster, in memory, as far as Helm and kubectl talk to one.

It tells its version and its kinds, and keeps what it is given. Nothing is defaulted, checked or run.
"""

from __future__ import annotations

import json
import threading
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

Manifest = dict[str, Any]

# What the chart may render, by group and version.
KINDS = {
    "v1": ("ConfigMap", "Namespace", "Pod", "Secret", "Service", "ServiceAccount"),
    "apps/v1": ("Deployment", "StatefulSet"),
    "autoscaling/v2": ("HorizontalPodAutoscaler",),
    "batch/v1": ("Job",),
    "cert-manager.io/v1": ("Certificate",),
    "monitoring.coreos.com/v1": ("PodMonitor", "PrometheusRule", "ServiceMonitor"),
    "networking.k8s.io/v1": ("NetworkPolicy",),
    "policy/v1": ("PodDisruptionBudget",),
}
_DISCOVERY = "APIGroupDiscoveryList"
_PROTOBUF = b"k8s\x00"


@dataclass
class Cluster:
    """What such an API holds.

    Attributes:
        version: of Kubernetes, as in 1.29.
        address: of the API.
        manifests: what was applied and not deleted since, by its path; Helm's releases are Secrets among them.
    """

    version: str
    address: str = ""
    manifests: dict[str, Manifest] = field(default_factory=dict)

    def write_kubeconfig(self, path: Path) -> None:
        """Writes what a client needs to find this cluster."""
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "memory", "cluster": {"server": self.address}}],
            "contexts": [{"name": "memory", "context": {"cluster": "memory", "user": ""}}],
            "current-context": "memory",
        }
        path.write_text(json.dumps(config))

    def answer(self, method: str, path: str, selector: str, kind: str, body: bytes) -> tuple[int, Manifest]:
        """The status and the body of an answer; the request's body is of a kind that HTTP calls its content type."""
        if path == "/version":
            major, minor = self.version.split(".")
            return 200, {"major": major, "minor": minor, "gitVersion": f"v{self.version}.0"}
        if path in ("/api", "/apis"):
            return 200, _discovery(path)
        group_version = path.removeprefix("/apis/").removeprefix("/api/")
        if group_version in KINDS:
            return 200, _resource_list(group_version)
        if method == "GET" and path.endswith("/secrets"):
            return 200, {"kind": "SecretList", "apiVersion": "v1", "items": list(self._selected(path, selector))}
        merge = method == "PATCH" and "merge-patch" in kind
        if (merge or method in ("GET", "DELETE")) and path not in self.manifests:
            return 404, {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404}
        if method == "GET":
            return 200, self.manifests[path]
        if method == "DELETE":
            return 200, self.manifests.pop(path)
        manifest = _secret(body) if body.startswith(_PROTOBUF) else json.loads(body)
        if merge:
            manifest = _merged(self.manifests[path], manifest)
        self.manifests[f"{path}/{manifest['metadata']['name']}" if method == "POST" else path] = manifest
        return 200, manifest

    def _selected(self, path: str, selector: str) -> Iterator[Manifest]:
        wanted = dict(pair.split("=") for pair in selector.split(",") if pair)
        for name, manifest in tuple(self.manifests.items()):
            if name.startswith(f"{path}/") and wanted.items() <= manifest["metadata"].get("labels", {}).items():
                yield manifest


@contextmanager
def running_cluster(version: str) -> Iterator[Cluster]:
    """A cluster whose API is served on a free port of the loopback."""
    cluster = Cluster(version)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def answer(self) -> None:
            url = urlsplit(self.path)
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            selector = parse_qs(url.query).get("labelSelector", [""])[0]
            kind = self.headers.get("Content-Type", "")
            status, manifest = cluster.answer(self.command, url.path, selector, kind, body)
            payload = json.dumps(manifest).encode()
            self.send_response(status)
            parameters = f";g=apidiscovery.k8s.io;v=v2;as={_DISCOVERY}" if manifest.get("kind") == _DISCOVERY else ""
            self.send_header("Content-Type", f"application/json{parameters}")
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer  # noqa: N815

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        cluster.address = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield cluster
        finally:
            server.shutdown()
            thread.join()


def _merged(old: Any, patch: Any) -> Any:
    """What a JSON merge patch (RFC 7386) makes of a value. Lists are replaced, by strategic patches too."""
    if not isinstance(old, dict) or not isinstance(patch, dict):
        return patch
    merged = {key: value for key, value in old.items() if patch.get(key, value) is not None}
    return merged | {key: _merged(old.get(key), value) for key, value in patch.items() if value is not None}


def _discovery(path: str) -> Manifest:
    """The kinds there are: those of the core under /api, those of groups under /apis."""
    return {
        "kind": _DISCOVERY,
        "apiVersion": "apidiscovery.k8s.io/v2",
        "items": [_group(version) for version in KINDS if ("/" in version) == (path == "/apis")],
    }


def _group(group_version: str) -> Manifest:
    group, _, version = group_version.rpartition("/")
    resources = [
        {
            "resource": plural(kind),
            "responseKind": {"group": group, "version": version, "kind": kind},
            "scope": "Cluster" if kind == "Namespace" else "Namespaced",
            "singularResource": kind.lower(),
            "verbs": ["create", "delete", "get", "list", "patch", "update"],
        }
        for kind in KINDS[group_version]
    ]
    return {
        "metadata": {"name": group},
        "versions": [{"version": version, "freshness": "Current", "resources": resources}],
    }


def _resource_list(group_version: str) -> Manifest:
    """The kinds of one group, in the form that a chart's own look-ups ask for."""
    resources = [
        {"name": plural(kind), "singularName": kind.lower(), "namespaced": True, "kind": kind, "verbs": ["get", "list"]}
        for kind in KINDS[group_version]
    ]
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": resources}


def plural(kind: str) -> str:
    """What a path of the API calls a kind."""
    return kind.lower()[:-1] + "ies" if kind.endswith("y") else kind.lower() + "s"


def _secret(body: bytes) -> Manifest:
    """A Secret from the binary form in which Helm writes its releases; the numbers are those of Kubernetes' fields."""
    (raw,) = _fields(body[len(_PROTOBUF) :])[2]
    secret = _fields(raw)
    metadata = _fields(secret[1][0])
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": metadata[1][0].decode(),
            "labels": {key.decode(): value.decode() for key, value in map(_entry, metadata.get(11, []))},
        },
        "type": secret[3][0].decode(),
        "data": {key.decode(): b64encode(value).decode() for key, value in map(_entry, secret.get(2, []))},
    }


def _entry(raw: bytes) -> tuple[bytes, bytes]:
    entry = _fields(raw)
    return entry[1][0], entry[2][0]


def _fields(raw: bytes) -> dict[int, list[bytes]]:
    """The fields of a protobuf message that have a length, by number."""
    found: dict[int, list[bytes]] = {}
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = raw[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(raw):
        number, kind = divmod(varint(), 8)
        length = varint()
        if kind == 2:
            found.setdefault(number, []).append(raw[at : at + length])
            at += length
    return found
