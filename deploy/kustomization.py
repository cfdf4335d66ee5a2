"""Manifests for kustomize, taken from the chart: a base with its defaults, and a component for each thing to add.

Rewritten by `python -m deploy.kustomization`.
"""

from __future__ import annotations

import shutil
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from deploy.chart_files import CHART
from deploy.cluster import Manifest
from deploy.rendering import Helm, running_helm

FOLDER = Path(__file__).parent / "kustomize"
# What the base is for: every version from the oldest of the chart on.
VERSION = "1.27"
# Sidecars that are init containers.
SIDECAR_VERSION = "1.29"
# What each component adds, as values of the chart. The Secrets are the user's.
COMPONENTS: Mapping[str, Mapping[str, Any]] = {
    "autoscaling": {"autoscaling": {"enabled": True}},
    "monitoring": {"monitoring": {"podMonitor": {"enabled": True}, "prometheusRule": {"enabled": True}}},
    "mutual-tls": {"tls": {"enabled": True, "existingSecret": "pkpo-tls", "clientAuthentication": True}},
    "tls": {"tls": {"enabled": True, "existingSecret": "pkpo-tls"}},
    "tokens": {"tokens": {"existingSecret": "pkpo-tokens"}},
}
# What whoever reads a component must know of it.
_REMARKS: Mapping[str, str] = {
    "autoscaling": """\
# The number of pods is the autoscaler's from here on, so the Deployment says none: the first apply starts one pod, of
# which the autoscaler makes minReplicas when it next looks, within 15 s. A Deployment that was applied with a number
# before would fall to one pod; deploy/kustomize/README.md has the command that keeps its pods.
""",
}
_HELMS_LABELS = ("app.kubernetes.io/managed-by", "helm.sh/chart")
_NOTICE = "# From the chart, by `python -m deploy.kustomization`.\n"
_SIDECARS = "Deployment|Job|StatefulSet"


def files() -> dict[Path, str]:
    """The text that each file should have."""
    with running_helm(VERSION) as helm:
        base = plain(helm.render({}).manifests)
        texts = _folder(FOLDER / "base", base, {"kind": "Kustomization"})
        for name, values in COMPONENTS.items():
            changed = plain(helm.render(values).manifests)
            component = _component(patches(base, changed))
            texts |= _folder(FOLDER / "components" / name, added(base, changed), component, _REMARKS.get(name, ""))
    with running_helm(SIDECAR_VERSION) as helm:
        job = trainer(helm)
    texts |= _folder(FOLDER / "components" / "sidecar", [], _component([sidecar_patch(job)]))
    example = {"kind": "Kustomization", "components": ["../../components/sidecar"]}
    texts |= _folder(FOLDER / "overlays" / "trainer", [without_sidecar(job)], example)
    return texts


def plain(manifests: Sequence[Manifest]) -> list[Manifest]:
    """Manifests without what Helm alone needs: its labels, and a namespace, which kustomize sets."""
    return [_plain(manifest) for manifest in manifests]


def added(base: Sequence[Manifest], changed: Sequence[Manifest]) -> list[Manifest]:
    """Those that the base does not have."""
    return [manifest for manifest in changed if _same(manifest, base) is None]


def patches(base: Sequence[Manifest], changed: Sequence[Manifest]) -> list[Manifest]:
    """What makes those of the base what they have changed to."""
    found = []
    for manifest in base:
        operations = list(difference(manifest, _same(manifest, changed), ""))
        if operations:
            target = {"kind": manifest["kind"], "name": manifest["metadata"]["name"]}
            found.append({"target": target, "patch": _dumped(operations)})
    return found


def difference(old: Any, new: Any, path: str) -> Iterator[Manifest]:
    """The operations of a JSON patch (RFC 6902) that turn one value into the other; lists grow at their end."""
    if old == new:
        return
    if isinstance(old, dict) and isinstance(new, dict):
        for key in (*old, *(key for key in new if key not in old)):
            below = f"{path}/{key.replace('~', '~0').replace('/', '~1')}"
            if key not in new:
                yield {"op": "remove", "path": below}
            elif key not in old:
                yield {"op": "add", "path": below, "value": new[key]}
            else:
                yield from difference(old[key], new[key], below)
    elif isinstance(old, list) and isinstance(new, list) and len(old) <= len(new):
        for index, (one, other) in enumerate(zip(old, new, strict=False)):
            yield from difference(one, other, f"{path}/{index}")
        for item in new[len(old) :]:
            yield {"op": "add", "path": f"{path}/-", "value": item}
    else:
        yield {"op": "replace", "path": path, "value": new}


def trainer(helm: Helm, **values: Any) -> Manifest:
    """The Job of the trainer's chart, in which pkpo is a sidecar."""
    with tempfile.TemporaryDirectory() as folder:
        chart = Path(folder) / "trainer"
        shutil.copytree(CHART.parent / "trainer", chart)
        shutil.copytree(CHART, chart / "charts" / "pkpo")
        (job,) = helm.render(values, chart, "trainer").manifests
    return job


def sidecar_patch(job: Manifest) -> Manifest:
    """What adds the sidecar to the pods of an object that has the label pkpo-sidecar."""
    pod = job["spec"]["template"]["spec"]
    volumes = [volume for volume in pod["volumes"] if volume["name"].startswith("pkpo-")]
    template = {"spec": {"initContainers": pod["initContainers"], "volumes": volumes}}
    patch = {"apiVersion": "any", "kind": "any", "metadata": {"name": "any"}, "spec": {"template": template}}
    return {"target": {"kind": _SIDECARS, "labelSelector": "pkpo-sidecar"}, "patch": _dumped(patch)}


def without_sidecar(job: Manifest) -> Manifest:
    """A Job that asks for the sidecar by a label, and mounts the socket's folder."""
    template = job["spec"]["template"]
    pod = {key: value for key, value in template["spec"].items() if key != "initContainers"}
    pod["volumes"] = [volume for volume in pod["volumes"] if not volume["name"].startswith("pkpo-")]
    metadata = {"name": job["metadata"]["name"], "labels": template["metadata"]["labels"]}
    return {**job, "metadata": metadata, "spec": {**job["spec"], "template": {**template, "spec": pod}}}


def _plain(manifest: Manifest) -> Manifest:
    labels = {key: value for key, value in manifest["metadata"]["labels"].items() if key not in _HELMS_LABELS}
    metadata = {key: value for key, value in manifest["metadata"].items() if key != "namespace"}
    return {**manifest, "metadata": {**metadata, "labels": labels}}


def _same(manifest: Manifest, others: Sequence[Manifest]) -> Manifest | None:
    for other in others:
        if (other["kind"], other["metadata"]["name"]) == (manifest["kind"], manifest["metadata"]["name"]):
            return other
    return None


def _component(patches: Sequence[Manifest]) -> Manifest:
    return {"kind": "Component", **({"patches": patches} if patches else {})}


def _folder(folder: Path, manifests: Sequence[Manifest], kustomization: Manifest, remark: str = "") -> dict[Path, str]:
    """A file for each kind of object, and the one that says what they are, with a remark for who reads it."""
    by_file = defaultdict(list)
    for manifest in manifests:
        by_file[folder / f"{manifest['kind'].lower()}.yaml"].append(manifest)
    version = "v1beta1" if kustomization["kind"] == "Kustomization" else "v1alpha1"
    resources = {"resources": sorted(path.name for path in by_file)} if by_file else {}
    kustomization = {"apiVersion": f"kustomize.config.k8s.io/{version}", **kustomization, **resources}
    texts = {path: _NOTICE + "---\n".join(map(_dumped, each)) for path, each in by_file.items()}
    return {folder / "kustomization.yaml": _NOTICE + remark + _dumped(kustomization), **texts}


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]
    """Writes text of several lines as such."""


def _text(dumper: _Dumper, text: str) -> yaml.Node:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def _dumped(value: Any) -> str:
    text: str = yaml.dump(value, Dumper=_Dumper, sort_keys=False, width=120)
    return text


if __name__ == "__main__":
    for path, text in files().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
