"""Messages that are on their way: calls that have begun, and whose message is not whole yet.

gRPC says of what size a message is once it has all of it, and takes as many at once as there are calls. So those that
are on their way are bounded by how many calls there may be, and by giving them up where the process is as large as it
may become.
"""

from __future__ import annotations

import asyncio
from typing import Any

from grpc import aio

from pkpo_server.memory import LOOKING_SECONDS, Ceiling
from pkpo_server.refusal import DeadlinePassed, Overloaded, Refusal


def grown(ceiling: Ceiling) -> Overloaded:
    """What is said where the process is as large as it may become."""
    return Overloaded(f"the server has grown to max_memory_bytes = {ceiling.most}", "memory")


class Arrivals:
    """What is on its way to one process. Belongs to one event loop.

    Args:
        ceiling: how large the process may become.
    """

    def __init__(self, ceiling: Ceiling) -> None:
        self._ceiling = ceiling
        # What is said to those that are given up.
        self._awaited: dict[asyncio.Future[Any], Refusal | None] = {}
        self._looking: asyncio.TimerHandle | None = None

    async def message(self, context: Any, seconds: float | None = None) -> bytes | None:
        """The message of a call, as bytes; None where it ends without one.

        Args:
            context: the call, of which nothing has been read.
            seconds: how long it may take; None for as long as the caller waits.

        Raises:
            Overloaded: the process has become as large as it may meanwhile.
            DeadlinePassed: it has not come in time.
        """
        loop = asyncio.get_running_loop()
        read = asyncio.ensure_future(context.read())
        self._awaited[read] = None
        if self._looking is None and self._ceiling.most:
            self._looking = loop.call_later(LOOKING_SECONDS, self._look)
        late = None if seconds is None else loop.call_later(seconds, self._give_up, read, DeadlinePassed())
        try:
            raw = await read
        except asyncio.CancelledError:
            refusal = self._awaited[read]
            if refusal is None:
                raise
            raise refusal from None
        finally:
            del self._awaited[read]
            if late is not None:
                late.cancel()
        return None if raw is aio.EOF else raw

    def _look(self) -> None:
        self._looking = None
        if self._awaited and self._ceiling.reached():
            for read in self._awaited:
                self._give_up(read, grown(self._ceiling))
        elif self._awaited:
            self._looking = asyncio.get_running_loop().call_later(LOOKING_SECONDS, self._look)

    def _give_up(self, read: asyncio.Future[Any], refusal: Refusal) -> None:
        if not read.done():
            self._awaited[read] = refusal
            read.cancel()
