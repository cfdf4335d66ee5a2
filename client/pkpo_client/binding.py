"""Operations as methods: the names, docstrings and signatures that `help` and editors show."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

MethodT = TypeVar("MethodT", bound=Callable[..., Any])


def bound(method: MethodT, operation: Callable[..., Any], owner: str, returns: str) -> MethodT:
    """`method`, which looks like what it does.

    Args:
        method: of the class named `owner`, taking `self` and whatever `operation` takes after its `defaults`.
        operation: one of `operations`.
        owner: the class's name.
        returns: what the method returns, "{}" standing for what the operation returns.
    """
    signature = inspect.signature(operation)
    _, *parameters = signature.parameters.values()
    result = str(signature.return_annotation).partition("[")[2].removesuffix("]")
    method.__name__ = operation.__name__
    method.__qualname__ = f"{owner}.{operation.__name__}"
    method.__doc__ = operation.__doc__
    method.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD), *parameters],
        return_annotation=returns.format(result),
    )
    return method


__all__ = ["bound"]
