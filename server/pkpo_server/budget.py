"""A bound on something that requests hold while they are answered, of which no tenant can take all."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

# Beyond the limit there is a quarter more for those who hold little: so a tenant that has taken everything leaves room.
_RESERVE = 1.25
_LITTLE = 1 / 8
# Whoever was let in takes its part a moment later, or never if it has nothing to say: then the next one is looked at.
_MOMENT_SECONDS = 0.001


class Hold:
    """What is held of a budget.

    Args:
        give_back: what ends it.
    """

    __slots__ = ("_give_back",)

    def __init__(self, give_back: Callable[[], None]) -> None:
        self._give_back: Callable[[], None] | None = give_back

    def end(self) -> None:
        """It is held no longer; nothing if it was ended before."""
        if self._give_back is not None:
            self._give_back()
            self._give_back = None


def together(*holds: Hold) -> Hold:
    """Several, as one."""

    def end() -> None:
        for hold in holds:
            hold.end()

    return Hold(end)


class Budget:
    """So much of something, and who holds how much of it. Belongs to one event loop.

    Args:
        limit: how much may be held; tenants that hold at most an eighth of it, a quarter beyond it.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0
        self._held_by: dict[str, int] = {}
        # Those who wait for room, in the order in which they came, by whose and by how much it is.
        self._lines: dict[str, dict[int, dict[asyncio.Future[None], None]]] = {}
        self._looking: asyncio.TimerHandle | None = None

    def fits(self, tenant: str, amount: int, little: bool = False) -> bool:
        """Whether a tenant may take so much now. Whoever is alone may take anything.

        Args:
            tenant: who takes it.
            amount: how much.
            little: whether the tenant counts as one that holds little, whatever it holds.
        """
        if self.held + amount <= self.limit or not self.held:
            return True
        return (little or self.little(tenant, amount)) and self.held + amount <= self.limit * _RESERVE

    def little(self, tenant: str, amount: int = 0) -> bool:
        """Whether what a tenant holds, and so much more, is little."""
        return self._held_by.get(tenant, 0) + amount <= self.limit * _LITTLE

    def take(self, tenant: str, amount: int) -> None:
        """A tenant holds so much more."""
        self.held += amount
        self._held_by[tenant] = self._held_by.get(tenant, 0) + amount

    def give_back(self, tenant: str, amount: int) -> None:
        """A tenant holds so much less."""
        self.held -= amount
        left = self._held_by.get(tenant, 0) - amount
        if left:
            self._held_by[tenant] = left
        else:
            self._held_by.pop(tenant, None)
        if self._lines and self.held <= self.limit * _RESERVE:
            self._let_next_in()

    def hold(self, tenant: str, amount: int) -> Hold:
        """Takes so much for a tenant, until it is ended."""
        self.take(tenant, amount)
        return Hold(partial(self.give_back, tenant, amount))

    async def room(self, tenant: str, amount: int) -> None:
        """Returns once so much of a tenant's fits; it has yet to be taken.

        Tenants are let in by turns, each as soon as what it asks for fits: who asks for much waits while others take
        what would be enough for them.
        """
        while not self.fits(tenant, amount):
            let_in = asyncio.get_running_loop().create_future()
            self._lines.setdefault(tenant, {}).setdefault(amount, {})[let_in] = None
            try:
                await let_in
            finally:
                self._leave(tenant, amount, let_in)

    def _let_next_in(self) -> None:
        # Nothing that a tenant waits for fits where the least of it does not.
        fitting = (tenant for tenant, lines in self._lines.items() if self.fits(tenant, min(lines)))
        tenant = next(fitting, None)
        if tenant is None:
            return
        amount = next(amount for amount in self._lines[tenant] if self.fits(tenant, amount))
        # To the end, both: tenants take turns, and what one asks for does.
        lines = self._lines[tenant] = self._lines.pop(tenant)
        line = lines[amount] = lines.pop(amount)
        let_in = next(iter(line))
        self._leave(tenant, amount, let_in)
        if not let_in.done():
            let_in.set_result(None)
        if self._lines and self._looking is None:
            self._looking = let_in.get_loop().call_later(_MOMENT_SECONDS, self._look_again)

    def _look_again(self) -> None:
        self._looking = None
        self._let_next_in()

    def _leave(self, tenant: str, amount: int, waiter: asyncio.Future[None]) -> None:
        lines = self._lines.get(tenant, {})
        line = lines.get(amount, {})
        line.pop(waiter, None)
        if not line:
            lines.pop(amount, None)
        if not lines:
            self._lines.pop(tenant, None)
