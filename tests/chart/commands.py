"""The commands of a page, run against a cluster in memory: helm's by its library, kubectl's by kubectl itself."""

from __future__ import annotations

import argparse
import asyncio
import os
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import helm_sdkpy
import pytest
import yaml

from deploy.rendering import Helm
from pages import ROOT


def run(command: str, helm: Helm) -> None:
    """Runs one. Fails where it does."""
    if command.startswith("helm "):
        _helm(shlex.split(command)[1:], helm)
    else:
        assert command.startswith("kubectl "), command
        _kubectl(command, helm)


def _helm(arguments: list[str], helm: Helm) -> None:
    parser = argparse.ArgumentParser("helm", allow_abbrev=False)
    parser.add_argument("action", choices=("install", "upgrade", "history", "test", "uninstall", "lint"))
    parser.add_argument("name")
    parser.add_argument("chart", nargs="?", default="")
    parser.add_argument("--namespace", default="default")
    parser.add_argument("--create-namespace", action="store_true")
    parser.add_argument("--reset-then-reuse-values", action="store_true")
    # Nothing in this cluster ever becomes ready.
    parser.add_argument("--wait", action="store_true")
    parser.add_argument("--timeout", default="5m")
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--values", action="append", default=[])
    given = parser.parse_args(arguments)
    configuration = helm.configuration(given.namespace)
    chart = str(ROOT / given.chart)
    options: dict[str, Any] = {"values": _values(given.values, given.set), "wait": False}
    if given.action == "install":
        # Namespaces need no creating here.
        asyncio.run(helm_sdkpy.Install(configuration).run(given.name, chart, **options, server_side_apply=True))
    elif given.action == "upgrade":
        asyncio.run(
            helm_sdkpy.Upgrade(configuration).run(
                given.name, chart, **options, reuse_values=given.reset_then_reuse_values
            )
        )
    elif given.action == "uninstall":
        asyncio.run(helm_sdkpy.Uninstall(configuration).run(given.name, wait=False))
    elif given.action == "lint":
        assert not asyncio.run(helm_sdkpy.Lint(configuration).run(str(ROOT / given.name)))["Errors"]
    else:
        # A test's pod is made, but nothing in this cluster would run it: there is a release to be tested.
        assert asyncio.run(helm_sdkpy.History(configuration).run(given.name))


def _values(files: list[str], pairs: list[str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for file in files:
        values |= yaml.safe_load((ROOT / file).read_text())
    for pair in ",".join(pairs).split(",") if pairs else []:
        path, _, text = pair.partition("=")
        *parents, last = path.split(".")
        place = values
        for key in parents:
            place = place.setdefault(key, {})
        place[last] = yaml.safe_load(text)
    return values


def _kubectl(command: str, helm: Helm) -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("needs kubectl")
    # This cluster has no schemas to check against.
    command = command.replace("kubectl apply --", "kubectl apply --validate=false --")
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"],
        cwd=ROOT,
        env={**os.environ, "KUBECONFIG": str(helm.kubeconfig), "HOME": str(Path(helm.kubeconfig).parent)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stderr}"
