"""Work that waits for a thread, of many tenants, each of which gets the same share of the threads' time.

Start-time fair queueing (Goyal, Vin and Cheng, 1996): each piece of work starts, in virtual time, when the one before
it of the same tenant ends or, if that was long ago, when it came; the one that starts first is next. A tenant that
queues a thousand pieces waits for itself: another's first piece goes before all but one of them. Only work that is
done counts: what was taken out of the queue leaves its tenant where it was.
"""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass, field
from typing import Generic, TypeVar

_Work = TypeVar("_Work")
# What is over is kept until there is this much of it.
_FEW = 64


@dataclass(slots=True, eq=False)
class Place(Generic[_Work]):
    """A piece of work and its place in the queue."""

    tenant: str
    seconds: float
    came: float
    number: int
    work: _Work | None


@dataclass(slots=True, order=True)
class _Turn:
    """When the first piece of a tenant starts; of a tenant that has nothing waiting any more, nobody's."""

    start: float
    number: int
    tenant: str | None = field(compare=False)


@dataclass(slots=True, eq=False)
class _Tenant(Generic[_Work]):
    places: deque[Place[_Work]] = field(default_factory=deque)
    turn: _Turn | None = None
    pieces: int = 0
    seconds: float = 0.0
    end: float = 0.0

    def first(self) -> Place[_Work]:
        """The first piece that is still there."""
        while self.places[0].work is None:
            self.places.popleft()
        return self.places[0]


class FairQueue(Generic[_Work]):
    """What waits, in the order in which it is to be done."""

    def __init__(self) -> None:
        self._turns: list[_Turn] = []
        self._tenants: dict[str, _Tenant[_Work]] = {}
        self._now = 0.0
        self._number = 0
        self._waiting = self._active = 0

    def __len__(self) -> int:
        return self._waiting

    def wait(self, tenant: str, seconds: float, most: float) -> float:
        """How long work of so many seconds would wait for one thread if it came now: for what its tenant has waiting,
        and for as much of every other tenant's. No longer than `most` is added up."""
        own = self._tenants[tenant].seconds if tenant in self._tenants else 0.0
        total = own
        for name, other in self._tenants.items():
            if total > most:
                break
            if name != tenant:
                total += min(other.seconds, own + seconds)
        return total

    def push(self, tenant: str, seconds: float, work: _Work) -> Place[_Work]:
        """Queues work that takes so long, and returns its place."""
        self._tidy()
        known = self._tenants.setdefault(tenant, _Tenant())
        self._number += 1
        self._waiting += 1
        place = Place(tenant, seconds, self._now, self._number, work)
        known.places.append(place)
        known.pieces += 1
        known.seconds += seconds
        if known.turn is None:
            self._active += 1
            self._take_turn(known)
        return place

    def pop(self) -> _Work:
        """The next piece of work. Raises IndexError where there is none."""
        while (turn := heapq.heappop(self._turns)).tenant is None:
            pass
        tenant = self._tenants[turn.tenant]
        place = tenant.first()
        # Virtual time goes on as each of those who wait is served in its turn, also where ever new ones come.
        self._now = max(self._now, turn.start) + place.seconds / self._active
        tenant.end = turn.start + place.seconds
        work = place.work
        assert work is not None
        self._leave(place, tenant)
        if tenant.pieces:
            self._take_turn(tenant)
        return work

    def remove(self, place: Place[_Work]) -> bool:
        """Takes work out that nobody waits for any more; False where it has been popped."""
        if place.work is None:
            return False
        tenant = self._tenants[place.tenant]
        first = tenant.first() is place
        self._leave(place, tenant)
        if first and tenant.turn is not None:
            tenant.turn.tenant = None
            self._take_turn(tenant)
        return True

    def _take_turn(self, tenant: _Tenant[_Work]) -> None:
        first = tenant.first()
        tenant.turn = _Turn(max(first.came, tenant.end), first.number, first.tenant)
        heapq.heappush(self._turns, tenant.turn)

    def _leave(self, place: Place[_Work], tenant: _Tenant[_Work]) -> None:
        place.work = None
        self._waiting -= 1
        tenant.pieces -= 1
        tenant.seconds -= place.seconds
        if not tenant.pieces:
            self._active -= 1
            if tenant.turn is not None:
                tenant.turn.tenant = None
            # With what rounding has left of the sum.
            tenant.turn, tenant.seconds = None, 0.0
            tenant.places.clear()
            if tenant.end <= self._now:
                del self._tenants[place.tenant]
        elif len(tenant.places) > 2 * tenant.pieces + _FEW:
            tenant.places = deque(each for each in tenant.places if each.work is not None)
        if not self._waiting:
            self._tenants.clear()
            self._turns.clear()

    def _tidy(self) -> None:
        """Forgets turns that are nobody's, and tenants whose last work is over in virtual time too."""
        if len(self._turns) > 2 * self._active + _FEW:
            self._turns = [turn for turn in self._turns if turn.tenant is not None]
            heapq.heapify(self._turns)
        if len(self._tenants) > 2 * self._waiting + _FEW:
            self._tenants = {name: t for name, t in self._tenants.items() if t.pieces or t.end > self._now}
