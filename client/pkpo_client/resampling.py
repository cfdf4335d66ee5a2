"""Intervals and tests of means over prompts, by drawing clusters of prompts again."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Float64s = NDArray[np.float64]

_NORMAL = NormalDist()
_AT_ONCE = 1 << 20  # drawn numbers: some megabytes
_ROUNDING = 1e-12  # statistics that differ by less are ties


@dataclass(frozen=True)
class ClusterSums:
    """A mean over prompts for several k, as each cluster's share in it.

    Attributes:
        sums: of the prompts' values, shape (clusters, ks), float64.
        counts: of the prompts that have a value, shape (clusters, ks), float64.
    """

    sums: Float64s
    counts: Float64s

    @classmethod
    def of(cls, values: Float64s, clusters: NDArray[np.int64]) -> ClusterSums:
        """From values of shape (prompts, ks), NaN where there is none, and the number of each prompt's cluster."""
        number = int(clusters.max()) + 1 if clusters.size else 0
        counted = ~np.isnan(values)
        shape = (number, values.shape[1])
        sums, counts = np.zeros(shape), np.zeros(shape)
        np.add.at(sums, clusters, np.where(counted, values, 0.0))
        np.add.at(counts, clusters, counted)
        return cls(sums, counts)

    def number(self, column: int) -> int:
        """How many clusters count."""
        return int(np.count_nonzero(self.counts[:, column]))

    def mean(self, column: int) -> float:
        """Over prompts, rounded once, so that the order of the prompts is nothing to it."""
        total = math.fsum(self.counts[:, column])
        return math.fsum(self.sums[:, column]) / total if total else math.nan

    def standard_error(self, column: int) -> float:
        """sqrt(m/(m-1) sum_c (S_c - mean N_c)^2) / N over m clusters; with one prompt each, the usual s / sqrt(m)."""
        counts = self.counts[:, column]
        m = self.number(column)
        if m < 2:
            return math.nan
        deviations = self.sums[:, column] - self.mean(column) * counts
        return math.sqrt(math.fsum(deviations**2) * m / (m - 1)) / math.fsum(counts)


def bootstrap_intervals(sums: ClusterSums, level: float, *, draws: int, seed: int) -> list[tuple[float, float]]:
    """The interval of the mean over prompts for each k, by the clustered bootstrap: BCa, widened for few clusters.

    Clusters are drawn with replacement, as many as there are; all k share the draws. The interval is Efron's
    bias-corrected and accelerated one (1987, the acceleration from the jackknife over clusters), in which the normal
    quantile z is replaced by t sqrt(m/(m-1)), t the Student quantile of m - 1 degrees of freedom, as in Hesterberg's
    expanded percentile interval (2015); without it few clusters give too short ones. It stays within the values.

    Args:
        sums: of the prompts.
        level: of the interval, in (0, 1).
        draws: how often all clusters are drawn.
        seed: of the draws.

    Returns:
        Low and high for each k; NaN with fewer than 2 clusters. Each k has its own level: together they have less.
    """
    intervals = [(math.nan, math.nan)] * sums.sums.shape[1]
    counted = sums.counts > 0
    for pattern in np.unique(counted, axis=1).T:
        columns = np.flatnonzero((counted == pattern[:, None]).all(axis=0))
        if np.count_nonzero(pattern) < 2:
            continue
        chosen = ClusterSums(sums.sums[np.ix_(pattern, columns)], sums.counts[np.ix_(pattern, columns)])
        means = np.concatenate(list(_drawn_means(chosen, draws, np.random.default_rng(seed))))
        for place, column in enumerate(columns):
            intervals[column] = _accelerated(np.sort(means[:, place]), chosen, place, level)
    return intervals


def _drawn_means(sums: ClusterSums, draws: int, generator: np.random.Generator) -> Iterator[Float64s]:
    m = len(sums.sums)
    at_once = max(1, _AT_ONCE // m)
    for start in range(0, draws, at_once):
        rows = min(at_once, draws - start)
        drawn = generator.integers(m, size=(rows, m))
        drawn += np.arange(rows)[:, None] * m
        weights = np.bincount(drawn.reshape(-1), minlength=rows * m).reshape(rows, m).astype(np.float64)
        yield (weights @ sums.sums) / (weights @ sums.counts)


def _accelerated(means: Float64s, sums: ClusterSums, column: int, level: float) -> tuple[float, float]:
    estimate = sums.mean(column)
    if math.isclose(means[0], means[-1], rel_tol=_ROUNDING):
        return estimate, estimate
    m = len(sums.sums)
    tie = _ROUNDING * max(1.0, abs(estimate))
    below = np.searchsorted(means, estimate - tie) + np.searchsorted(means, estimate + tie)
    share = float(np.clip(below / (2 * means.size), 1 / means.size, 1 - 1 / means.size))
    bias = _NORMAL.inv_cdf(share)
    left = (sums.sums[:, column].sum() - sums.sums[:, column]) / (sums.counts[:, column].sum() - sums.counts[:, column])
    influence = left.mean() - left
    acceleration = float((influence**3).sum() / (6 * (influence**2).sum() ** 1.5))
    ends = []
    for side in (-1, 1):
        z = bias + side * student_quantile((1 + level) / 2, m - 1) * math.sqrt(m / (m - 1))
        shrunk = 1 - acceleration * z
        position = _NORMAL.cdf(bias + z / shrunk) if shrunk > 0 else float(z > 0)
        ends.append(float(np.quantile(means, position)))
    return ends[0], ends[1]


def student_quantile(probability: float, freedom: int) -> float:
    """Of Student's t, by its expansion in 1 / freedom (Abramowitz and Stegun 26.7.5): four digits from 5 up."""
    z = _NORMAL.inv_cdf(probability)
    series = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return math.fsum(term / freedom**power for power, term in enumerate(series))


def sign_flip_p_values(differences: Float64s, *, draws: int, seed: int) -> tuple[Float64s, Float64s]:
    """Whether paired differences are centred at 0, by flipping their signs: p-values for each k, and for all at once.

    The statistic is |sum_c D_c| / sqrt(sum_c D_c^2), two-sided; flipping leaves its denominator alone, so that ranks
    are those of Student's t. Where all 2^m flips are no more than `draws` they are listed, and the p-value is exact;
    otherwise it is (1 + flips as extreme) / (1 + draws), which is never too small. All k flip together; the second
    p-value compares with the largest statistic of any k (Westfall and Young, 1993), so that the chance of one false
    alarm among them is what it says.

    Args:
        differences: sums over each cluster, shape (clusters, ks).
        draws: how many random flips.
        seed: of the flips.

    Returns:
        Two arrays of shape (ks,): of each k alone, adjusted for all k.
    """
    moved = differences[np.any(differences != 0, axis=1)]
    ks = differences.shape[1]
    if len(moved) == 0:
        return np.ones(ks), np.ones(ks)
    scale = np.sqrt((moved**2).sum(axis=0))
    unit = np.divide(moved, scale, out=np.zeros_like(moved), where=scale > 0)
    observed = np.abs(unit.sum(axis=0)) - _ROUNDING * math.sqrt(len(unit))
    alone, together, total = np.zeros(ks), np.zeros(ks), 0
    exact = len(moved) <= math.log2(draws)
    for signs in _all_signs(len(moved)) if exact else _random_signs(len(moved), draws, seed):
        flipped = np.abs(signs @ unit)
        alone += (flipped >= observed).sum(axis=0)
        together += (flipped.max(axis=1, keepdims=True) >= observed).sum(axis=0)
        total += len(signs)
    one = 0 if exact else 1
    return (alone + one) / (total + one), (together + one) / (total + one)


def _all_signs(m: int) -> Iterator[Float64s]:
    at_once = max(1, _AT_ONCE // m)
    for start in range(0, 1 << m, at_once):
        numbers = np.arange(start, min(1 << m, start + at_once))[:, None]
        yield 1.0 - 2.0 * ((numbers >> np.arange(m)) & 1).astype(np.float64)


def _random_signs(m: int, draws: int, seed: int) -> Iterator[Float64s]:
    generator = np.random.default_rng(seed)
    at_once = max(1, _AT_ONCE // m)
    for start in range(0, draws, at_once):
        rows = min(at_once, draws - start)
        yield 1.0 - 2.0 * generator.integers(2, size=(rows, m), dtype=np.int8).astype(np.float64)
