"""How kernels become machine code.

A kernel has fixed signatures, so that there is one piece of machine code for each whatever arrays arrive; it releases
the GIL; and it is cached on disk, where there is a place to write. Inputs are typed read-only, which every array is fit
for, outputs are not.

What is cached counts only for the very sources of this package: numba itself looks at the kernel's own file, and not at
those of the parts that were compiled with it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeAlias

import numba
from numba import config, types
from numba.core.caching import CompileResultCacheImpl, FunctionCache, NullCache

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


_Locator: Any = CompileResultCacheImpl._locator_classes[0]  # that of NUMBA_CACHE_DIR; its name varies with numba


class _ReadOnlyLocator(_Locator):  # type: ignore[misc]
    """Finds NUMBA_CACHE_DIR where it can be read and not written to, which numba's own passes by."""

    def ensure_cache_path(self) -> None:
        path = self.get_cache_path()
        if not os.path.isdir(path) or os.access(path, os.W_OK):
            raise OSError(f"{path} is not there, or not read-only")


class _ReadOnlyImplementation(CompileResultCacheImpl):
    _locator_classes = [_ReadOnlyLocator]  # noqa: RUF012


class _ReadOnlyCache(FunctionCache):
    """What was compiled while a container image was built. What is missing is compiled anew in each process."""

    _impl_class = _ReadOnlyImplementation

    def save_overload(self, sig: Any, data: Any) -> None:
        pass


def _cache_of(function: Kernel) -> Any:
    kinds: tuple[Any, ...] = (_ReadOnlyCache, FunctionCache)
    for kind in kinds:
        try:
            cache = kind(function)
        except RuntimeError:  # there is no such place
            continue
        cache._cache_file._source_stamp = (cache._cache_file._source_stamp, _STAMP)
        return cache
    return NullCache()


def inlined(function: Kernel) -> Kernel:
    """A part of kernels, compiled with them."""
    dispatcher: Any = numba.njit(function, nogil=True, error_model="numpy")
    if not config.DISABLE_JIT:  # type: ignore[attr-defined]
        dispatcher._cache = _cache_of(function)
    return dispatcher  # type: ignore[no-any-return]


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
