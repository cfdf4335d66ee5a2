"""How kernels become machine code.

A kernel has fixed signatures, so that there is one piece of machine code for each whatever arrays arrive; it releases
the GIL; and it is cached on disk, where there is a place to write. Inputs are typed read-only, which every array is fit
for, outputs are not.

What is cached counts only for the very sources of this package: numba itself looks at the kernel's own file, and not at
those of the parts that were compiled with it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeAlias

import numba
from numba import config, types

Kernel: TypeAlias = Callable[..., Any]


def stamp_of(folder: Path) -> str:
    """A text that differs where the Python sources in a folder do."""
    sources = sha256()
    for path in sorted(folder.glob("*.py")):
        sources.update(path.read_bytes())
    return sources.hexdigest()


_STAMP = stamp_of(Path(__file__).parent)


def reads(scalar: Any) -> Any:
    """The type of a contiguous input array."""
    return types.Array(scalar, 1, "C", readonly=True)


def writes(scalar: Any) -> Any:
    """The type of a contiguous output array."""
    return types.Array(scalar, 1, "C")


def inlined(function: Kernel) -> Kernel:
    """A part of kernels, compiled with them."""
    try:
        dispatcher: Kernel = numba.njit(function, nogil=True, cache=True, error_model="numpy")
    except RuntimeError:  # numba finds no place it may write a cache to: compile anew in each process
        dispatcher = numba.njit(function, nogil=True, error_model="numpy")
    cached = getattr(getattr(dispatcher, "_cache", None), "_cache_file", None)
    if cached is not None:
        cached._source_stamp = (cached._source_stamp, _STAMP)
    return dispatcher


_compiling = threading.Lock()  # a dispatcher whose compiler is off refuses a second thread


class _Kernel:
    """A compiled function that is called from Python, with the signatures it is compiled for and no others."""

    def __init__(self, function: Callable[..., Any], signatures: tuple[Any, ...]) -> None:
        self._dispatcher: Any = inlined(function)
        self._signatures = signatures
        self._call = self._compile_and_call

    def __call__(self, *arguments: Any) -> Any:
        return self._call(*arguments)

    def compile(self) -> None:
        with _compiling:
            if self._call is self._dispatcher:
                return
            if not config.DISABLE_JIT:  # type: ignore[attr-defined]
                for signature in self._signatures:
                    self._dispatcher.compile(signature)
                self._dispatcher.disable_compile()
            self._call = self._dispatcher

    def _compile_and_call(self, *arguments: Any) -> Any:
        self.compile()
        return self._dispatcher(*arguments)


_kernels: list[_Kernel] = []


def kernel(*signatures: Any) -> Callable[[Kernel], Kernel]:
    """Makes a function a kernel with the given signatures, compiled at its first call or by `compile_kernels`."""

    def made(function: Kernel) -> Kernel:
        _kernels.append(_Kernel(function, signatures))
        return _kernels[-1]

    return made


def compile_kernels() -> None:
    """Compiles every kernel, or loads it from the disk cache; afterwards no call waits for the compiler.

    Takes some seconds the first time on a machine, a fraction of one afterwards. Does nothing where NUMBA_DISABLE_JIT
    is set.
    """
    for each in _kernels:
        each.compile()
