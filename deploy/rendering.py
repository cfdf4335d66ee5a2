"""Charts as Helm itself renders them, in this process."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import helm_sdkpy
import yaml

from deploy.chart_files import CHART
from deploy.cluster import Cluster, Manifest, running_cluster


class CannotRender(Exception):
    """Helm refuses the values; the text is what it says."""


@dataclass(frozen=True)
class Release:
    """A chart with values, as installed.

    Attributes:
        manifests: its objects, in the order in which Helm applies them.
        hooks: those that run at their time only, as those of `helm test`.
        notes: what the installer is told.
    """

    manifests: list[Manifest]
    hooks: list[Manifest]
    notes: str


class Helm:
    """Helm, on a cluster in memory."""

    def __init__(self, cluster: Cluster, kubeconfig: Path) -> None:
        self.cluster = cluster
        self.kubeconfig = kubeconfig

    def configuration(self, namespace: str = "pkpo") -> Any:
        """What the library's actions are made with."""
        return helm_sdkpy.Configuration(namespace=namespace, kubeconfig=str(self.kubeconfig))

    def install(
        self, values: Mapping[str, Any], chart: Path = CHART, name: str = "pkpo", namespace: str = "pkpo"
    ) -> Release:
        """Installs a chart. Raises CannotRender."""
        install = helm_sdkpy.Install(self.configuration(namespace))
        # Applied by the server: what the cluster then holds is what was rendered.
        return self._done(install.run(name, str(chart), values=dict(values), wait=False, server_side_apply=True))

    def upgrade(
        self, values: Mapping[str, Any], chart: Path = CHART, name: str = "pkpo", namespace: str = "pkpo"
    ) -> Release:
        """Upgrades a release. Raises CannotRender."""
        upgrade = helm_sdkpy.Upgrade(self.configuration(namespace))
        # Without values Helm would take those of the release there is.
        return self._done(upgrade.run(name, str(chart), values=dict(values), wait=False, reset_values=True))

    def render(
        self, values: Mapping[str, Any], chart: Path = CHART, name: str = "pkpo", namespace: str = "pkpo"
    ) -> Release:
        """What installing a chart on an empty cluster would apply. Raises CannotRender."""
        self.cluster.manifests.clear()
        return self.install(values, chart, name, namespace)

    def _done(self, action: Any) -> Release:
        try:
            release = asyncio.run(action)
        except helm_sdkpy.HelmError as error:
            raise CannotRender(str(error)) from error
        hooks = (yaml.safe_load(hook["manifest"]) for hook in release.get("hooks", []))
        manifests = (each for each in yaml.safe_load_all(release.get("manifest", "")) if each)
        return Release(list(manifests), list(hooks), release["info"].get("notes", ""))


@contextmanager
def running_helm(version: str) -> Iterator[Helm]:
    """Helm on a cluster of a version of Kubernetes, as in 1.29."""
    with running_cluster(version) as cluster, tempfile.TemporaryDirectory() as folder:
        kubeconfig = Path(folder) / "kubeconfig"
        cluster.write_kubeconfig(kubeconfig)
        yield Helm(cluster, kubeconfig)
