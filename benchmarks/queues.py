"""Calls that wait for workers, simulated.

Each worker has a queue of its own, and a call goes to one of them by chance: a client's connection to a pod leads to
one of its workers, and the calls of many clients that take turns over all pods arrive as if drawn at random.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Times = NDArray[np.float64]

#: What a server asks of those that it refuses, and how often a client asks again.
PUSHBACK_SECONDS = (0.05, 0.15)
ATTEMPTS = 5


@dataclass(frozen=True)
class Queues:
    """The workers of a fleet.

    Attributes:
        number: of workers.
        at_once: calls that one of them serves at the same time.
        most_open: calls waiting or served at one of them; it refuses others.
        attempts: how often a call is made before it has failed.
    """

    number: int
    at_once: int = 1
    most_open: float = math.inf
    attempts: int = ATTEMPTS


@dataclass(frozen=True)
class Outcome:
    """What became of the calls.

    Attributes:
        waited: seconds from a call's first attempt until it was served; NaN where it has failed.
        refused: attempts that were refused.
    """

    waited: Times
    refused: int

    @property
    def failed(self) -> float:
        """The share of the calls that have failed."""
        return float(np.isnan(self.waited).mean())


def simulate(arrivals: Times, services: Times, queues: Queues, rng: np.random.Generator) -> Outcome:
    """First come, first served.

    Args:
        arrivals: (calls,) seconds, in any order.
        services: (calls,) seconds that each takes once it is served.
        queues: where they wait.
        rng: of the choice among the workers, and of the time until a refused call comes again.
    """
    waited = np.full(len(arrivals), np.nan)
    refused = 0
    free_at: list[list[float]] = [[0.0] * queues.at_once for _ in range(queues.number)]
    ends: list[list[float]] = [[] for _ in range(queues.number)]
    coming = [(arrived, call, 1) for call, arrived in enumerate(arrivals.tolist())]
    heapq.heapify(coming)
    while coming:
        now, call, attempt = heapq.heappop(coming)
        worker = int(rng.integers(queues.number))
        still_open = ends[worker]
        while still_open and still_open[0] <= now:
            heapq.heappop(still_open)
        if len(still_open) >= queues.most_open:
            refused += 1
            if attempt < queues.attempts:
                heapq.heappush(coming, (now + rng.uniform(*PUSHBACK_SECONDS), call, attempt + 1))
            continue
        begins = max(now, free_at[worker][0])
        end = begins + float(services[call])
        heapq.heapreplace(free_at[worker], end)
        heapq.heappush(still_open, end)
        waited[call] = begins - arrivals[call]
    return Outcome(waited, refused)


def poisson(rate: float, calls: int, rng: np.random.Generator) -> Times:
    """When so many calls arrive, `rate` of them a second: those of many runs, each of which has its own clock."""
    return np.cumsum(rng.exponential(1 / rate, calls))
