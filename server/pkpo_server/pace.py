"""How long work takes on this machine, as it has turned out so far."""

from __future__ import annotations

from dataclasses import dataclass

# Of a visit to one reward, until it is known.
_FIRST_GUESS = 10e-9
# Each measurement counts for so much.
_WEIGHT = 1 / 8
# What is shorter says more of handing work over than of doing it.
_LEAST_SECONDS = 0.2e-3
# Within a variant, what a visit takes differs by so much with the sizes and the rewards.
_BETTER = 4
# After so many refusals something is let in that should have been refused, and measured: 0.9 ** 7 is about a half.
_DOUBT = 0.9


@dataclass(slots=True)
class _Visit:
    usual: float
    least: float
    processor: float


class Pace:
    """Seconds for each visit of a reward, by variant. Belongs to one event loop."""

    def __init__(self) -> None:
        self._visits: dict[str, _Visit] = {}

    def seconds(self, variant: str, visits: int) -> float:
        """How long so many visits usually take: a moving average."""
        known = self._visits.get(variant)
        return visits * (_FIRST_GUESS if known is None else known.usual)

    def processor_seconds(self, variant: str, visits: int) -> float:
        """The same in time of a processor, which does not grow with what else there is to do: a moving average."""
        known = self._visits.get(variant)
        return visits * (_FIRST_GUESS if known is None else known.processor)

    def least_seconds(self, variant: str, visits: int) -> float:
        """How long they take at the very least: at some times the best pace there has been; 0 where there was none."""
        known = self._visits.get(variant)
        return visits * (0.0 if known is None else known.least / _BETTER)

    def doubt(self, variant: str) -> None:
        """Something was refused because it would take too long, so that it cannot turn out to be quicker."""
        self._visits[variant].least *= _DOUBT

    def measured(self, variant: str, visits: int, seconds: float, processor: float, *, finished: bool) -> None:
        """So many visits have taken so long, or would have taken longer."""
        if seconds < _LEAST_SECONDS or not visits:
            return
        now, of_processor = seconds / visits, processor / visits
        known = self._visits.get(variant)
        if known is None:
            self._visits[variant] = _Visit(now, now, of_processor)
        elif finished:
            known.usual += _WEIGHT * (now - known.usual)
            known.processor += _WEIGHT * (of_processor - known.processor)
            known.least = min(known.least, now)
        else:
            known.least = max(known.least, now)
