"""Means over seeds, differences seed by seed, and how surprising they would be by chance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev


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

    def p_value(self) -> float:
        """Of Student's two-sided test that the mean is 0, with n - 1 degrees of freedom; NaN with one seed."""
        if self.n < 2:
            return math.nan
        if self.error == 0:
            return 1.0 if self.value == 0 else 0.0
        return two_sided_p(self.value / self.error, self.n - 1)


def two_sided_p(t: float, freedom: int) -> float:
    """P(|T| >= |t|) for Student's T with a whole number of degrees of freedom.

    1 - A, A the finite sum in the angle atan(t / sqrt(freedom)) of Abramowitz and Stegun 26.7.3 and 26.7.4.
    """
    angle = math.atan(abs(t) / math.sqrt(freedom))
    sine, square = math.sin(angle), math.cos(angle) ** 2
    odd = freedom % 2
    term = math.cos(angle) if odd else 1.0
    total = term if freedom > 1 else 0.0
    for power in range(2 + odd, freedom - 1, 2):
        term *= square * (power - 1) / power
        total += term
    inside = (angle + sine * total) * 2 / math.pi if odd else sine * total
    return max(0.0, 1.0 - inside)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjustment: the chance of one false alarm among them all is what they then say. NaN stays NaN."""
    order = sorted((p, place) for place, p in enumerate(p_values) if not math.isnan(p))
    adjusted, largest = [math.nan] * len(p_values), 0.0
    for rank, (p, place) in enumerate(order):
        largest = max(largest, min(1.0, p * (len(order) - rank)))
        adjusted[place] = largest
    return adjusted
