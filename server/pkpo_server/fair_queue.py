"""Work that waits for a thread, of many tenants, each of which gets the same share of the threads' time.

Start-time fair queueing (Goyal, Vin and Cheng, 1996): each piece of work starts, in virtual time, when the one before
it of the same tenant ends or, if that was long ago, now; the one that starts first is next. A tenant that queues a
thousand pieces waits for itself: another's first piece goes before all but one of them.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from typing import Generic, TypeVar

_Work = TypeVar("_Work")
# What is over is kept until there is this much of it.
_FEW = 64


@dataclass(slots=True)
class _Tenant:
    seconds: float = 0.0
    pieces: int = 0
    end: float = 0.0


@dataclass(slots=True, order=True)
class Place(Generic[_Work]):
    """A piece of work and its place in the queue."""

    start: float
    number: int
    tenant: str = field(compare=False)
    seconds: float = field(compare=False)
    work: _Work | None = field(compare=False)


class FairQueue(Generic[_Work]):
    """What waits, in the order in which it is to be done."""

    def __init__(self) -> None:
        self._places: list[Place[_Work]] = []
        self._tenants: dict[str, _Tenant] = {}
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
        start = max(self._now, known.end)
        known.end = start + seconds
        known.seconds += seconds
        self._active += not known.pieces
        known.pieces += 1
        self._number += 1
        self._waiting += 1
        place = Place(start, self._number, tenant, seconds, work)
        heapq.heappush(self._places, place)
        return place

    def pop(self) -> _Work:
        """The next piece of work. Raises IndexError where there is none."""
        while True:
            place = heapq.heappop(self._places)
            if place.work is not None:
                break
        # Virtual time goes on as each of those who wait is served in its turn, also where ever new ones come.
        self._now = max(self._now, place.start) + place.seconds / self._active
        work = place.work
        self._leave(place)
        return work

    def remove(self, place: Place[_Work]) -> bool:
        """Takes work out that nobody waits for any more; False where it has been popped."""
        if place.work is None:
            return False
        self._leave(place)
        return True

    def _leave(self, place: Place[_Work]) -> None:
        place.work = None
        self._waiting -= 1
        tenant = self._tenants[place.tenant]
        tenant.pieces -= 1
        self._active -= not tenant.pieces
        # Not what rounding has left of the sum.
        tenant.seconds = tenant.seconds - place.seconds if tenant.pieces else 0.0
        if not self._waiting:
            self._tenants.clear()
            self._places.clear()

    def _tidy(self) -> None:
        """Forgets what was taken out, and tenants whose last work is over in virtual time too."""
        most = 2 * self._waiting + _FEW
        if len(self._places) > most:
            self._places = [place for place in self._places if place.work is not None]
            heapq.heapify(self._places)
        if len(self._tenants) > most:
            self._tenants = {name: t for name, t in self._tenants.items() if t.pieces or t.end > self._now}
