"""A bound on something that requests hold while they are answered, of which no tenant can take all."""

from __future__ import annotations

# Beyond the limit there is a quarter more for those who hold little: so a tenant that has taken everything leaves room.
_RESERVE = 1.25
_LITTLE = 1 / 8


class Budget:
    """So much of something, and who holds how much of it. Belongs to one event loop.

    Args:
        limit: how much may be held; tenants that hold at most an eighth of it, a quarter beyond it.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0
        self._held_by: dict[str, int] = {}

    def fits(self, tenant: str, amount: int) -> bool:
        """Whether a tenant may take so much now. Whoever is alone may take anything."""
        if self.held + amount <= self.limit or not self.held:
            return True
        little = self._held_by.get(tenant, 0) + amount <= self.limit * _LITTLE
        return little and self.held + amount <= self.limit * _RESERVE

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
