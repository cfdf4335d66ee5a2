"""Who gets in: a bound on the calls open at once."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from pkpo_server.budget import Budget
from pkpo_server.refusal import Overloaded


class Admission:
    """Counts open calls; belongs to one event loop.

    Args:
        most: how many may be open at once; tenants that have few, a quarter beyond it.
    """

    def __init__(self, most: int) -> None:
        self._open = Budget(most)
        self._emptied: asyncio.Event | None = None

    @property
    def open_calls(self) -> int:
        """How many are open."""
        return self._open.held

    def enter(self, tenant: str) -> None:
        """Lets a call of a tenant in. Raises Overloaded where no more are taken."""
        if not self._open.fits(tenant, 1):
            raise Overloaded(
                f"{self.open_calls} calls are open; at most max_concurrent_rpcs = {self._open.limit} are taken at once",
                "overloaded",
            )
        self._open.take(tenant, 1)

    def leave(self, tenant: str) -> None:
        """A call of a tenant is over."""
        self._open.give_back(tenant, 1)
        if not self.open_calls and self._emptied is not None:
            self._emptied.set()

    async def empty(self, seconds: float) -> None:
        """Returns once no call is open, or so many seconds have passed."""
        if not self.open_calls:
            return
        self._emptied = asyncio.Event()
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._emptied.wait(), seconds)
