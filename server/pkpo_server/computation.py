"""Where the work is done: small batches on the event loop, big ones in threads, and none longer than someone waits."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from pkpo_server import memory
from pkpo_server.refusal import CallCancelled, DeadlinePassed

_Result = TypeVar("_Result")

# Handing work to a thread and back takes about 100 us, in which some thirty thousand rewards are sorted and weighed. Up
# to here the work is done at once, which holds the event loop for some tenths of a millisecond.
INLINE_COST = 2**15
# The bytes of a message that parsing and checking alone may hold the event loop for; as many rewards as above.
INLINE_BYTES = 8 * INLINE_COST

# So long after a big batch its answer has left, and what it leaves behind is given back: at most so often.
TIDYING_SECONDS = 1.0

# A caller hangs up when its deadline passes, and its clock started before ours.
HANGING_UP_SECONDS = 0.1


class Patience:
    """How long the caller of one request waits. Called between slices of the work, it ends the work when that is over.

    Args:
        deadline: on time.monotonic's clock; None where the caller set none.
    """

    __slots__ = ("_cancelled", "_deadline")

    def __init__(self, deadline: float | None) -> None:
        self._deadline = deadline
        self._cancelled = False

    def __call__(self) -> None:
        """Raises DeadlinePassed or CallCancelled when nobody waits any more."""
        if self.deadline_passed():
            raise DeadlinePassed
        if self._cancelled:
            raise CallCancelled

    def cancel(self) -> None:
        """Ends the work at its next checkpoint."""
        self._cancelled = True

    def deadline_passed(self, slack: float = 0.0) -> bool:
        """Whether the caller's deadline is over, or will be within `slack` seconds."""
        return self._deadline is not None and time.monotonic() + slack >= self._deadline


class Computation:
    """The threads of one process that compute big batches.

    Args:
        threads: how many; core releases the GIL.
    """

    def __init__(self, threads: int) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="compute")
        self._tidying: asyncio.TimerHandle | None = None

    async def in_thread(self, work: Callable[[], _Result]) -> _Result:
        """The result of `work`, computed beside the event loop."""
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._pool, work)
        finally:
            if self._tidying is None:
                self._tidying = loop.call_later(TIDYING_SECONDS, self._tidy)

    def stop(self) -> None:
        """Takes no more work."""
        if self._tidying is not None:
            self._tidying.cancel()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _tidy(self) -> None:
        self._tidying = None
        self._pool.submit(memory.give_back)


def default_threads(workers: int) -> int:
    """The CPUs this process may use, divided among the workers; at least one."""
    return max(1, len(os.sched_getaffinity(0)) // workers)
