"""The deployment's tests need tools that `make test` does not install: they say so here."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest


def test_the_deployments_tests_are_collected() -> None:
    if find_spec("kubernetes_validate") is None:
        pytest.skip("needs kubernetes-validate: `make test-deploy` installs it and runs tests/deploy")
    assert list((Path(__file__).parent / "deploy").glob("test_*.py"))
