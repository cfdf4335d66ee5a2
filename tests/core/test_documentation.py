"""Whatever is public says what it takes, what it returns and what it refuses."""

from __future__ import annotations

import doctest
import enum
import inspect
from typing import Any

import numpy as np
import pytest

import pkpo_core

PUBLIC = {name: getattr(pkpo_core, name) for name in pkpo_core.__all__}
FUNCTIONS = {name: value for name, value in PUBLIC.items() if inspect.isfunction(value)}


def test_the_public_surface() -> None:
    assert set(pkpo_core.__all__) == {
        "VARIANTS",
        "CoreError",
        "GroupStatus",
        "InvalidArgument",
        "KPolicy",
        "MaxAtK",
        "RewardGroups",
        "Scale",
        "Transformed",
        "Variant",
        "VariantInfo",
        "Violation",
        "compile_kernels",
        "estimate",
        "transform",
    }


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_document_their_arguments_result_and_refusals(name: str) -> None:
    function = FUNCTIONS[name]
    text = inspect.getdoc(function) or ""
    signature = inspect.signature(function)
    assert text.splitlines()[0].endswith(".")
    if signature.parameters:
        arguments = text.partition("Args:")[2].partition("Returns:")[0]
        for parameter in signature.parameters:
            assert f"{parameter}:" in arguments
        assert "Raises:" in text
    if signature.return_annotation not in (None, "None"):
        assert "Returns:" in text


@pytest.mark.parametrize("name", [name for name in PUBLIC if inspect.isclass(PUBLIC[name])])
def test_classes_are_documented(name: str) -> None:
    described = PUBLIC[name].__doc__ or ""
    assert described.strip()
    assert not described.startswith(f"{name}("), "only what a dataclass writes by itself"
    if not issubclass(PUBLIC[name], enum.Enum):
        for attribute, value in vars(PUBLIC[name]).items():
            if isinstance(value, property) or (inspect.isfunction(value) and not attribute.startswith("_")):
                assert inspect.getdoc(value), attribute


@pytest.mark.parametrize(
    "module", [pkpo_core, *(m for _, m in inspect.getmembers(pkpo_core, inspect.ismodule))], ids=str
)
def test_examples_in_the_documentation_are_true(module: Any) -> None:
    with np.printoptions():
        assert doctest.testmod(module).failed == 0
