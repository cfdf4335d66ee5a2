"""The trainer's tests need torch, which `make test` does not install: they say so here."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest


def test_the_trainers_tests_are_collected() -> None:
    if find_spec("torch") is None:
        pytest.skip("needs torch: `make test-trainer` installs it and runs tests/trainer")
    assert list((Path(__file__).parent / "trainer").glob("test_*.py"))
