"""Who gets in: a bound on the calls open at once."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from pkpo_server.refusal import Overloaded


class Admission:
    """Counts open calls; belongs to one event loop.

    Args:
        most: how many may be open at once.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._open = 0
        self._emptied: asyncio.Event | None = None

    @property
    def open_calls(self) -> int:
        """How many are open."""
        return self._open

    def enter(self) -> None:
        """Lets one call in. Raises Overloaded where no more are taken."""
        if self._open >= self._most:
            raise Overloaded(
                f"{self._open} calls are open; at most max_concurrent_rpcs = {self._most} are taken at once"
            )
        self._open += 1

    def leave(self) -> None:
        """One call is over."""
        self._open -= 1
        if not self._open and self._emptied is not None:
            self._emptied.set()

    async def empty(self, seconds: float) -> None:
        """Returns once no call is open, or so many seconds have passed."""
        if not self._open:
            return
        self._emptied = asyncio.Event()
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._emptied.wait(), seconds)
