"""Means over seeds, differences seed by seed, and how surprising they would be by chance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from scipy.stats import t as student


@dataclass(frozen=True)
class Mean:
    """A mean over seeds.

    Attributes:
        value: of it.
        error: its standard error, s / sqrt(n); NaN with one seed.
        n: how many.
    """

    value: float
    error: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Mean:
        """From one value for each seed.

        Raises:
            ValueError: there is none.
        """
        if not values:
            raise ValueError("values: are none; must be one for each seed")
        error = stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
        return cls(fmean(values), error, len(values))

    def p_value(self, supposed: float = 0.0) -> float:
        """Of Student's two-sided test of a supposed mean, with n - 1 degrees of freedom; NaN with one seed."""
        if self.n < 2:
            return math.nan
        if self.error == 0:
            return 1.0 if self.value == supposed else 0.0
        return float(2 * student.sf(abs((self.value - supposed) / self.error), self.n - 1))

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Student's confidence interval; NaN with one seed."""
        return self._within(self.error, confidence)

    def range_of_one_more(self, confidence: float = 0.95) -> tuple[float, float]:
        """Student's prediction interval, in which the value of another seed would be; NaN with one seed."""
        return self._within(self.error * math.sqrt(self.n + 1), confidence)

    def _within(self, error: float, confidence: float) -> tuple[float, float]:
        """What is no further from the mean than Student's t allows for such an error."""
        if self.n < 2:
            return math.nan, math.nan
        reach = error * float(student.ppf((1 + confidence) / 2, self.n - 1))
        return self.value - reach, self.value + reach


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjustment: the chance of one false alarm among them all is what they then say. NaN stays NaN."""
    order = sorted((p, place) for place, p in enumerate(p_values) if not math.isnan(p))
    adjusted, largest = [math.nan] * len(p_values), 0.0
    for rank, (p, place) in enumerate(order):
        largest = max(largest, min(1.0, p * (len(order) - rank)))
        adjusted[place] = largest
    return adjusted
