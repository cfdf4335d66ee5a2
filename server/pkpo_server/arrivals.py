"""Messages that are on their way: calls that have begun and whose message is not whole yet, streams that wait for more.

gRPC says of what size a message is once it has all of it, and takes as many at once as there are calls. So those that
are on their way are bounded by how many calls there may be, and by giving them up where the process is as large as it
may become: all but the one that began first, so that a process which is too large for something else still answers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, TypeVar

from grpc import aio

from pkpo_server.memory import LOOKING_SECONDS, Ceiling
from pkpo_server.refusal import DeadlinePassed, Overloaded, Refusal

_Result = TypeVar("_Result")


class Arrivals:
    """What is on its way to one process. Belongs to one event loop.

    Args:
        ceiling: how large the process may become.
    """

    def __init__(self, ceiling: Ceiling) -> None:
        self._ceiling = ceiling
        # Who waits, in the order in which they began, and what is said to those that are given up.
        self._waiting: dict[asyncio.Task[Any], Refusal | None] = {}
        self._looking: asyncio.TimerHandle | None = None

    def refusal(self) -> Overloaded | None:
        """What is said of more to come; None where there is room for it."""
        if not self._ceiling.reached():
            return None
        return Overloaded(f"the server has grown to max_memory_bytes = {self._ceiling.most}", "memory")

    async def message(self, context: Any, seconds: float | None = None) -> bytes | None:
        """The next message of a call, as bytes; None where it ends without one.

        Args:
            context: the call.
            seconds: how long it may take; None for as long as the caller waits.

        Raises:
            Overloaded: the process has become as large as it may meanwhile.
            DeadlinePassed: it has not come in time.
        """
        raw = await self.unless_too_large(context.read(), seconds)
        return None if raw is aio.EOF else raw

    async def unless_too_large(self, awaited: Awaitable[_Result], seconds: float | None = None) -> _Result:
        """What is awaited while a message is held, or on its way. Raises as `message` does."""
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        self._waiting[task] = None
        if self._looking is None and self._ceiling.most:
            self._looking = loop.call_later(LOOKING_SECONDS, self._look)
        late = None if seconds is None else loop.call_later(seconds, self._give_up, task, DeadlinePassed())
        try:
            return await awaited
        except asyncio.CancelledError:
            refusal = self._waiting[task]
            if refusal is None:
                raise
            raise refusal from None
        finally:
            del self._waiting[task]
            if late is not None:
                late.cancel()

    def _look(self) -> None:
        self._looking = None
        if not self._waiting:
            return
        self._looking = asyncio.get_running_loop().call_later(LOOKING_SECONDS, self._look)
        refusal = self.refusal()
        if refusal is not None:
            for task in tuple(self._waiting)[1:]:
                self._give_up(task, refusal)

    def _give_up(self, task: asyncio.Task[Any], refusal: Refusal) -> None:
        if self._waiting[task] is None:
            self._waiting[task] = refusal
            task.cancel()
