"""Tests of deploy/, against real Prometheus, Helm, nginx, Envoy, images and hosts, where they are."""

from __future__ import annotations

from importlib.util import find_spec

# tests/test_deploy_suite.py says so, by name.
collect_ignore_glob = [] if find_spec("kubernetes_validate") else ["test_*.py"]
