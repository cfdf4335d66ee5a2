"""The client for programs that compute in their own process."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any, Concatenate, Generic, ParamSpec

from pkpo import __version__
from pkpo_client import operations
from pkpo_client.binding import bound
from pkpo_client.driving import run
from pkpo_client.errors import ClientClosed
from pkpo_client.local_engine import LocalEngine
from pkpo_client.operations import Plan
from pkpo_client.options import Defaults
from pkpo_client.results import ArrayT, TransformResult
from pkpo_client.work import Operation, ResultT

P = ParamSpec("P")


def _computing(
    operation: Callable[Concatenate[Defaults, P], Operation[ResultT]],
) -> Callable[Concatenate[LocalClient, P], ResultT]:
    def method(self: LocalClient, /, *args: P.args, **kwargs: P.kwargs) -> ResultT:
        return self._run(operation(self._defaults, *args, **kwargs))

    return bound(method, operation, "LocalClient", "{}")


def _streaming(
    plan: Callable[Concatenate[Defaults, P], Plan[ArrayT]],
) -> Callable[Concatenate[LocalClient, P], LocalStream[ArrayT]]:
    def method(self: LocalClient, /, *args: P.args, **kwargs: P.kwargs) -> LocalStream[ArrayT]:
        self._check_open()
        return LocalStream(self, plan(self._defaults, *args, **kwargs))

    return bound(method, plan, "LocalClient", "LocalStream[{}]")


class LocalClient:
    """The same calls without a service: computed in this process, with the same bits.

    Needs `pip install 'pkpo[local]'`. The first call loads the compiled kernels, or compiles them once per machine. A
    `LocalClient` may be shared by threads, pickled and forked.

    Args:
        variant: of calls that do not say theirs, as are the following: "sloo_minus_one".
        scale: "sum" or "mean".
        k_policy: "strict" or "clamp".
        run_id: checked and not used, there being no metrics and logs.
        timeout: seconds a call may take; `math.inf` for no end.

    Raises:
        InvalidArgument: an argument that cannot be.
        LocalComputingMissing: numba is not installed.
    """

    #: The version of the mathematics.
    server_version: str = __version__

    def __init__(
        self,
        *,
        variant: str = "sloo_minus_one",
        scale: str = "sum",
        k_policy: str = "strict",
        run_id: str = "",
        timeout: float = math.inf,
    ) -> None:
        self._defaults = Defaults(variant, scale, k_policy, run_id, timeout)
        self._engine = LocalEngine()
        self._closed = False

    transform = _computing(operations.transform)
    transform_detailed = _computing(operations.transform_detailed)
    estimate = _computing(operations.estimate)
    server_info = _computing(operations.server_info)
    stream = _streaming(operations.stream)

    def close(self) -> None:
        """Nothing is open; calls are refused from here on, as by the other clients."""
        self._closed = True

    def __enter__(self) -> LocalClient:
        self._check_open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"LocalClient({'closed' if self._closed else ''})"

    def _check_open(self) -> None:
        if self._closed:
            raise ClientClosed("this client was closed; make another one")

    def _run(self, operation: Operation[ResultT]) -> ResultT:
        self._check_open()
        started = time.monotonic()
        return run(operation, lambda work: self._engine.answer(work, work.timeout - (time.monotonic() - started)))


class LocalStream(Generic[ArrayT]):
    """The results of a stream, in the order of its batches: an iterator and a context manager.

    Each batch is pulled and computed when its result is asked for.
    """

    def __init__(self, client: LocalClient, plan: Plan[ArrayT]) -> None:
        if not isinstance(plan.batches, Iterable):
            raise TypeError(
                f"batches is a {type(plan.batches).__name__}, and no iterable (asynchronous ones are AsyncClient's)"
            )
        self._client = client
        self._plan = plan
        self._batches: Iterator[Any] = iter(plan.batches)

    def __iter__(self) -> LocalStream[ArrayT]:
        return self

    def __next__(self) -> TransformResult[ArrayT]:
        return self._client._run(self._plan.operation(next(self._batches)))

    def close(self) -> None:
        """Iterating afterwards ends at once."""
        self._batches = iter(())

    def __enter__(self) -> LocalStream[ArrayT]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


__all__ = ["LocalClient", "LocalStream"]
