"""Ratios that survive a noisy machine.

Ours and the floor are measured in turns, some calls of each in every round. A round gives one ratio, of the medians of
its calls, so that a machine that slows down for a second slows down both. What is told of many rounds is the median of
their ratios, with the quartiles as spread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle, islice

import numpy as np

Call = Callable[[], object]


@dataclass(frozen=True)
class Effort:
    """How long to measure.

    Attributes:
        quick: just long enough to see that everything works.
        minutes: how long a server is overloaded.
    """

    quick: bool
    minutes: float = 3.0

    def of(self, full: int, quick: int = 2) -> int:
        """`full`, or `quick` where that is asked for."""
        return quick if self.quick else full


@dataclass(frozen=True)
class Ratio:
    """Ours over the floor.

    Attributes:
        median: of the rounds.
        low, high: the quartiles of the rounds.
        ours, floor: medians of the calls in seconds, or what else was compared.
        remark: what else the measurement showed.
    """

    median: float
    low: float
    high: float
    ours: float
    floor: float
    remark: str = ""


def of_rounds(ours: Sequence[float], floor: Sequence[float], remark: str = "") -> Ratio:
    """The ratio of figures that were measured in turns."""
    ratios = np.array(ours) / np.array(floor)
    low, median, high = np.percentile(ratios, [25, 50, 75])
    return Ratio(float(median), float(low), float(high), float(np.median(ours)), float(np.median(floor)), remark)


def in_turns(ours: Sequence[Call], floor: Sequence[Call], rounds: int, calls: int) -> Ratio:
    """Measures the calls of both in turns.

    Args:
        ours: calls that differ in their data only, taken one after another.
        floor: likewise.
        rounds: how many ratios to take.
        calls: of each in a round.
    """
    for call in (*ours, *floor):
        call()
    next_ours, next_floor = cycle(ours), cycle(floor)
    medians: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for median, following in zip(medians, (next_ours, next_floor), strict=True):
            median.append(float(np.median([seconds(call) for call in islice(following, calls)])))
    return of_rounds(*medians)


def seconds(call: Call) -> float:
    """What one call takes."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def typical_seconds(calls: Sequence[Call], times: int) -> float:
    """The median of so many calls, taken one after another."""
    for call in calls:
        call()
    return float(np.median([seconds(call) for call in islice(cycle(calls), times)]))
