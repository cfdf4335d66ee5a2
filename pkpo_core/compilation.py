"""How kernels become machine code.

A kernel is typed eagerly, so that no call ever waits for the compiler; it releases the GIL; and it is cached on disk,
where there is a place to write. Inputs are typed read-only, which both kinds of array satisfy, outputs are not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba
from numba import config, types

Function = TypeVar("Function", bound=Callable[..., Any])

_kernels: list[tuple[Any, tuple[Any, ...]]] = []


def reads(scalar: Any) -> Any:
    """The type of a contiguous input array."""
    return types.Array(scalar, 1, "C", readonly=True)


def writes(scalar: Any) -> Any:
    """The type of a contiguous output array."""
    return types.Array(scalar, 1, "C")


def kernel(*signatures: Any) -> Callable[[Function], Function]:
    """Marks a function as a kernel with the given signatures; `compile_kernels` compiles it for them."""

    def compiled(function: Function) -> Function:
        dispatcher = inlined(function)
        _kernels.append((dispatcher, signatures))
        return dispatcher

    return compiled


def inlined(function: Function) -> Function:
    """A part of kernels, compiled with them."""
    try:
        dispatcher: Function = numba.njit(function, nogil=True, cache=True, error_model="numpy")
    except RuntimeError:  # numba finds no place it may write a cache to: compile anew in each process
        dispatcher = numba.njit(function, nogil=True, error_model="numpy")
    return dispatcher


def compile_kernels() -> None:
    """Compiles every kernel, or loads it from the disk cache; afterwards no call waits for the compiler.

    Takes about a second per kernel the first time on a machine, milliseconds afterwards. Does nothing where
    NUMBA_DISABLE_JIT is set.
    """
    if config.DISABLE_JIT:  # type: ignore[attr-defined]
        return
    for dispatcher, signatures in _kernels:
        for signature in signatures:
            dispatcher.compile(signature)
