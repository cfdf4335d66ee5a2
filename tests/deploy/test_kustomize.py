"""The manifests for kustomize: those of the chart, whichever way they are made."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from chart import commands
from chart.custom_resources import check
from chart.kustomize import built
from chart.rules import Rendering, complaints
from deploy.cluster import Manifest
from deploy.kustomization import COMPONENTS, FOLDER, SIDECAR_VERSION, VERSION, difference, files, plain, trainer
from deploy.rendering import Helm, running_helm
from pages import blocks
from pages import commands as commands_of

README = FOLDER / "README.md"
SECRETS = frozenset({"Secret/pkpo-tls", "Secret/pkpo-tokens"})
_PLAIN = {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization"}


@pytest.fixture(scope="module", name="helm")
def fixture_helm() -> Iterator[Helm]:
    with running_helm(VERSION) as helm:
        yield helm


def together(folder: Path, components: Sequence[str], **more: Any) -> list[Manifest]:
    """The base with components, built."""
    base = os.path.relpath(FOLDER, folder)
    overlay = {
        **_PLAIN,
        "resources": [f"{base}/base"],
        "components": [f"{base}/components/{name}" for name in components],
        **more,
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(overlay))
    return built(folder)


def in_order(manifests: Sequence[Manifest]) -> list[Manifest]:
    return sorted(manifests, key=lambda each: (each["kind"], each["metadata"]["name"]))


def test_the_files_are_those_of_the_chart() -> None:
    """Else: python -m deploy.kustomization."""
    generated = files()
    for path, text in generated.items():
        assert path.is_file(), path
        assert path.read_text() == text, path
    # Nothing is left over from what the chart was once.
    by_hand = {README, FOLDER / "overlays" / "production" / "kustomization.yaml"}
    assert {path for path in FOLDER.rglob("*") if path.is_file()} == {*generated, *by_hand}


def test_the_base_is_the_chart_with_its_defaults(helm: Helm) -> None:
    base = built(FOLDER / "base")
    assert in_order(base) == in_order(plain(helm.render({}).manifests))
    assert complaints(Rendering(base)) == []


@pytest.mark.parametrize("component", COMPONENTS)
def test_a_component_is_the_chart_with_values(helm: Helm, component: str, tmp_path: Path) -> None:
    made = together(tmp_path, [component])
    assert in_order(made) == in_order(plain(helm.render(COMPONENTS[component]).manifests))
    assert complaints(Rendering(made, SECRETS)) == []


def test_pods_stay_where_autoscaling_begins(tmp_path: Path) -> None:
    """By the command of the README; without it the number that was applied before is taken back, and becomes one."""
    with running_helm("1.30") as helm:
        command, *_ = (each for block in blocks(README) for each in commands_of(block.text) if "set-last" in each)
        for keeping in (True, False):
            helm.cluster.manifests.clear()
            commands.run("kubectl apply --kustomize deploy/kustomize/base --namespace pkpo", helm)
            (deployment,) = (path for path in helm.cluster.manifests if path.endswith("/deployments/pkpo"))
            assert helm.cluster.manifests[deployment]["spec"]["replicas"] == 2
            helm.cluster.manifests[deployment]["spec"]["replicas"] = 5  # by hand, say
            if keeping:
                commands.run(command, helm)
            together(tmp_path, ["autoscaling"], namespace="pkpo")
            commands.run(f"kubectl apply --kustomize {tmp_path}", helm)
            assert helm.cluster.manifests[deployment]["spec"].get("replicas") == (5 if keeping else None)


def test_components_go_together(helm: Helm, tmp_path: Path) -> None:
    names = [name for name in COMPONENTS if name != "tls"]  # mutual TLS is TLS
    values: dict[str, Any] = {}
    for name in names:
        values |= COMPONENTS[name]
    made = together(tmp_path, names)
    assert in_order(made) == in_order(plain(helm.render(values).manifests))


def test_the_example_for_production_is_valid() -> None:
    made = built(FOLDER / "overlays" / "production")
    for manifest in made:
        try:
            kubernetes_validate.validate(manifest, VERSION, strict=True)
        except kubernetes_validate.SchemaNotFoundError:
            check(manifest)
    assert complaints(Rendering(made, SECRETS)) == []
    assert {each["metadata"]["namespace"] for each in made} == {"pkpo"}


def test_a_prefix_for_all_names_breaks_nothing(tmp_path: Path) -> None:
    made = together(tmp_path, ["autoscaling", "monitoring"], namePrefix="research-", namespace="research")
    assert complaints(Rendering(made)) == []


def test_the_example_with_a_sidecar_is_the_trainer_s_chart() -> None:
    (made,) = built(FOLDER / "overlays" / "trainer")
    with running_helm(SIDECAR_VERSION) as helm:
        job = trainer(helm)
    assert complaints(Rendering([made])) == []
    pods = [each["spec"]["template"]["spec"] for each in (made, job)]
    for pod in pods:
        pod["volumes"].sort(key=lambda volume: volume["name"])
    assert pods[0] == pods[1]


@pytest.mark.parametrize(
    ("old", "new", "operations"),
    [
        ({"a": 1}, {"a": 1}, []),
        ({"a": 1}, {"b": 2}, [{"op": "remove", "path": "/a"}, {"op": "add", "path": "/b", "value": 2}]),
        ({"a/~": [1]}, {"a/~": [1, 2]}, [{"op": "add", "path": "/a~1~0/-", "value": 2}]),
        ({"a": [{"b": 1}]}, {"a": [{"b": 2}]}, [{"op": "replace", "path": "/a/0/b", "value": 2}]),
        ({"a": [1, 2]}, {"a": [1]}, [{"op": "replace", "path": "/a", "value": [1]}]),
    ],
)
def test_a_difference_is_what_turns_one_into_the_other(
    old: Mapping[str, Any], new: Mapping[str, Any], operations: list[Mapping[str, Any]]
) -> None:
    assert list(difference(old, new, "")) == operations


def test_the_example_for_production_names_what_is_to_be_named() -> None:
    """An image of a registry, and the label by which the operator's Prometheus finds what it is to read."""
    made = built(FOLDER / "overlays" / "production")
    images = [container["image"] for pod in Rendering(made).pods for container in pod.containers]
    assert images
    assert all(image.startswith("registry.example.com/pkpo:") for image in images)
    labels = {each["kind"]: each["metadata"]["labels"].get("release") for each in made}
    assert {kind for kind, release in labels.items() if release} == {"PodMonitor", "PrometheusRule"}
