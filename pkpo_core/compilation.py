"""How kernels become machine code.

A kernel has fixed signatures, so that there is one piece of machine code for each whatever arrays arrive; it releases
the GIL; and it is cached on disk, where there is a place to write. Inputs are typed read-only, which every array is fit
for, outputs are not.

What is cached counts only for the very sources of this package: numba itself looks at the kernel's own file, and not at
those of the parts that were compiled with it.
"""

from __future__ import annotations

import os
import pickle
import threading
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeAlias

import numba
from numba import config, types
from numba.core.caching import CompileResultCacheImpl, FunctionCache, IndexDataCacheFile, NullCache

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


@cache
def _tell_unkept(reason: str) -> None:
    """Says, once, that what is compiled is not kept."""
    # Nothing depends on it, also where warnings are errors.
    with suppress(RuntimeWarning):
        warnings.warn(
            f"compiled kernels are not kept, so that each process compiles them: {reason}", RuntimeWarning, stacklevel=2
        )


_CHECKSUM_BYTES = sha256().digest_size
_Files: Any = IndexDataCacheFile
_Kept: Any = FunctionCache


class _CheckedFiles(_Files):  # type: ignore[misc]
    """The files of one kernel, each with a checksum, and machine code with what it is of.

    numba runs what it finds: after a full disk has cut a write short, that may be what former sources were compiled to.
    """

    def save(self, key: Any, data: Any) -> None:
        super().save(key, (self._source_stamp, key, data))

    def load(self, key: Any) -> Any:
        stamp, of, data = super().load(key) or (None, None, None)
        return data if (stamp, of) == (self._source_stamp, key) else None

    def _load_index(self) -> Any:
        stamp, overloads = _read(self._index_path) or (None, None)
        return overloads if stamp == self._source_stamp else {}

    def _save_index(self, overloads: Any) -> None:
        self._write(self._index_path, (self._source_stamp, overloads))

    def _load_data(self, name: str) -> Any:
        return _read(self._data_path(name))

    def _save_data(self, name: str, data: Any) -> None:
        self._write(self._data_path(name), data)

    def _write(self, path: str, value: Any) -> None:
        content = self._dump(value)
        with self._open_for_write(path) as file:
            file.write(content + _checksum(content))


def _read(path: str) -> Any:
    """What a file holds; None where it cannot be read, is not as it was written, or is another numba's."""
    try:
        content = Path(path).read_bytes()
    except OSError:
        return None
    content, checksum = content[:-_CHECKSUM_BYTES], content[-_CHECKSUM_BYTES:]
    return pickle.loads(content) if _checksum(content) == checksum else None


def _checksum(content: bytes) -> bytes:
    return sha256(numba.__version__.encode() + content).digest()


class _Cache(_Kept):  # type: ignore[misc]
    """What is compiled is kept where that can be done; nothing depends on it."""

    def __init__(self, function: Kernel) -> None:
        super().__init__(function)
        stamp = (self._impl.locator.get_source_stamp(), _STAMP)
        self._cache_file = _CheckedFiles(self._cache_path, self._impl.filename_base, stamp)

    def save_overload(self, sig: Any, data: Any) -> None:
        try:
            super().save_overload(sig, data)
        except OSError as error:
            _tell_unkept(f"{error.strerror or error}: {self._cache_path}")


_Locator: Any = CompileResultCacheImpl._locator_classes[0]  # that of NUMBA_CACHE_DIR; its name varies with numba


class _ReadOnlyLocator(_Locator):  # type: ignore[misc]
    """Finds NUMBA_CACHE_DIR where it can be read and not written to, which numba's own passes by."""

    def ensure_cache_path(self) -> None:
        path = self.get_cache_path()
        if not os.path.isdir(path) or os.access(path, os.W_OK):
            raise OSError(f"{path} is not there, or not read-only")


class _ReadOnlyImplementation(CompileResultCacheImpl):
    _locator_classes = [_ReadOnlyLocator]  # noqa: RUF012


class _ReadOnlyCache(_Cache):
    """What was compiled while a container image was built. What is missing is compiled anew in each process."""

    _impl_class = _ReadOnlyImplementation

    def save_overload(self, sig: Any, data: Any) -> None:
        _tell_unkept(f"{self._cache_path} is read-only")


class _NoCache(NullCache):
    """There is no folder to write to."""

    def save_overload(self, sig: Any, cres: Any) -> None:
        _tell_unkept("neither NUMBA_CACHE_DIR nor the user's cache folder can be written to")


def _cache_of(function: Kernel) -> Any:
    kinds: tuple[Any, ...] = (_ReadOnlyCache, _Cache)
    for kind in kinds:
        try:
            return kind(function)
        except RuntimeError:  # there is no such place
            continue
    return _NoCache()


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


def compile_kernels(*, checkpoint: Callable[[], None] | None = None) -> None:
    """Compiles every kernel, or loads it from the disk cache; afterwards no call waits for the compiler.

    Takes some seconds the first time on a machine, a fraction of one afterwards. Does nothing where NUMBA_DISABLE_JIT
    is set.

    Args:
        checkpoint: called before each kernel.

    Raises:
        BaseException: what `checkpoint` raises; it stops the work and passes through.
    """
    for each in _kernels:
        if checkpoint is not None:
            checkpoint()
        each.compile()
