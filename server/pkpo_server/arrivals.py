"""Messages that are on their way: calls that have begun and whose message is not whole yet, streams that wait for more.

gRPC says of what size a message is once it has all of it, and takes as many at once as there are calls. So those that
are on their way are bounded by how many calls there may be, and by giving them up where the process is as large as it
may become: all but the one that began first, so that a process which is too large for something else still answers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from grpc import aio

from pkpo_server.memory import LOOKING_SECONDS, Ceiling
from pkpo_server.refusal import DeadlinePassed, Overloaded, Refusal


class Arrivals:
    """What is on its way to one process. Belongs to one event loop.

    Args:
        ceiling: how large the process may become.
    """

    def __init__(self, ceiling: Ceiling) -> None:
        self._ceiling = ceiling
        # How each is given up.
        self._awaited: dict[object, Callable[[Refusal], None]] = {}
        self._looking: asyncio.TimerHandle | None = None

    def refusal(self) -> Overloaded | None:
        """What is said of more to come; None where there is room for it."""
        if not self._ceiling.reached():
            return None
        return Overloaded(f"the server has grown to max_memory_bytes = {self._ceiling.most}", "memory")

    @contextmanager
    def awaited(self, give_up: Callable[[Refusal], None]) -> Iterator[None]:
        """A message is on its way meanwhile.

        Args:
            give_up: waits for it no longer; called in the event loop, at most once, with what is to be said of it.
        """
        this = object()
        self._awaited[this] = give_up
        if self._looking is None and self._ceiling.most:
            self._looking = asyncio.get_running_loop().call_later(LOOKING_SECONDS, self._look)
        try:
            yield
        finally:
            self._awaited.pop(this, None)

    async def message(self, context: Any, seconds: float | None = None) -> bytes | None:
        """The message of a call, as bytes; None where it ends without one.

        Args:
            context: the call, of which nothing has been read.
            seconds: how long it may take; None for as long as the caller waits.

        Raises:
            Overloaded: the process has become as large as it may meanwhile.
            DeadlinePassed: it has not come in time.
        """
        read = asyncio.ensure_future(context.read())
        said: list[Refusal] = []

        def give_up(refusal: Refusal) -> None:
            if not read.done():
                said.append(refusal)
                read.cancel()

        late = None
        if seconds is not None:
            late = asyncio.get_running_loop().call_later(seconds, give_up, DeadlinePassed())
        try:
            with self.awaited(give_up):
                raw = await read
        except asyncio.CancelledError:
            if not said:
                raise
            raise said[0] from None
        finally:
            if late is not None:
                late.cancel()
        return None if raw is aio.EOF else raw

    def _look(self) -> None:
        self._looking = None
        if not self._awaited:
            return
        self._looking = asyncio.get_running_loop().call_later(LOOKING_SECONDS, self._look)
        refusal = self.refusal()
        if refusal is None:
            return
        _, *others = self._awaited
        for each in others:
            self._awaited.pop(each)(refusal)
