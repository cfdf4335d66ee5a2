"""pass@k and max@k of rollouts: curves over k with intervals, and two runs compared on the prompts they share."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pkpo_client.local_client import LocalClient
from pkpo_client.prompt_rewards import Name, PromptRewards
from pkpo_client.resampling import ClusterSums, bootstrap_intervals, sign_flip_p_values
from pkpo_client.sampling_variance import exact_interval, normal_interval, unbiased_variances

Float64s = NDArray[np.float64]
_REWARDS_AT_ONCE = 1 << 18
_ROUNDING = 1e-12  # of the largest value: estimates that differ by less are equal

#: The columns of `each_prompt` beside those of the prompt's name.
OF_EACH_PROMPT = ("n", "k", "estimate", "standard_error", "level", "low", "high")

#: What is printed of one k, by name; None where there is nothing to say.
Row = dict[str, Any]


@dataclass(frozen=True)
class Confidence:
    """How intervals and tests are made.

    Attributes:
        level: how often an interval shall hold the truth, in (0, 1).
        draws: of the bootstrap, and of the test's signs.
        seed: of the draws.
    """

    level: float
    draws: int
    seed: int


@dataclass(frozen=True, eq=False)
class PromptEstimates:
    """max@k of each prompt, in the order of their names, whatever that of the rollouts was.

    Attributes:
        names: of the prompts.
        clusters: that they are in; empty names where each is one of its own.
        sizes: how many rewards each has, int64, shape (prompts,).
        totals: the sum of each one's rewards, float64, shape (prompts,).
        binary: whether all rewards are 0 or 1, so that max@k is pass@k.
        k: of the estimates.
        values: float64, shape (prompts, ks); NaN where k > n.
        variances: of the values, for want of samples, float64, shape (prompts, ks): unbiased where 2 k <= n (and then
            perhaps below 0), the jackknife's, which is conservative, where k < n < 2 k; NaN where k >= n.
    """

    names: list[Name]
    clusters: list[Name]
    sizes: NDArray[np.int64]
    totals: Float64s
    binary: bool
    k: list[int]
    values: Float64s
    variances: Float64s

    @property
    def measure(self) -> str:
        """What the values are estimates of."""
        return "pass@k" if self.binary else "max@k"

    def cluster_numbers(self) -> NDArray[np.int64]:
        """The clusters as numbers, by first appearance; shape (prompts,)."""
        numbers: dict[Name, int] = {}
        return np.array(
            [numbers.setdefault(cluster or (own,), len(numbers)) for own, cluster in enumerate(self.clusters)],
            dtype=np.int64,
        )

    def at(self, prompts: Sequence[int] | NDArray[np.int64]) -> PromptEstimates:
        """Those of some prompts only, given by their places."""
        chosen = np.asarray(prompts, dtype=np.int64)
        return replace(
            self,
            names=[self.names[place] for place in chosen],
            clusters=[self.clusters[place] for place in chosen],
            sizes=self.sizes[chosen],
            totals=self.totals[chosen],
            values=self.values[chosen],
            variances=self.variances[chosen],
        )

    def splits(self, width: int) -> Iterator[tuple[Name, PromptEstimates]]:
        """The prompts whose names begin with the same so many values, together."""
        places: dict[Name, list[int]] = {}
        for place, name in enumerate(self.names):
            places.setdefault(name[:width], []).append(place)
        for split, chosen in places.items():
            yield split, self.at(chosen)


def prompt_estimates(prompts: Iterable[PromptRewards], k: Sequence[int] | None) -> PromptEstimates:
    """max@k of each prompt.

    Args:
        prompts: some at a time; only their estimates are kept.
        k: of the estimates; None for the powers of two up to the largest number of rewards.

    Raises:
        InvalidArgument: a k is less than 1.
        LocalComputingMissing: numba is not installed.
    """
    names: list[Name] = []
    clusters: list[Name] = []
    sizes: list[NDArray[np.int64]] = []
    totals: list[Float64s] = []
    parts: list[tuple[Float64s, Float64s]] = []
    binary = True
    ks = list(k) if k is not None else []
    with LocalClient() as client:
        for some in prompts:
            asked = ks if k is not None else _powers_of_two(int(some.sizes.max()))
            ks = max(ks, asked, key=len)
            estimates = client.estimate(
                some.rewards, asked, group_ids=np.repeat(np.arange(len(some.sizes)), some.sizes)
            )
            values = np.stack([each.values for each in estimates], axis=1)
            variances = np.stack([each.standard_errors**2 for each in estimates], axis=1)
            _fill_unbiased(variances, some, asked)
            parts.append((values, variances))
            names += some.names
            clusters += some.clusters
            sizes.append(some.sizes)
            totals.append(np.add.reduceat(some.rewards, np.cumsum(some.sizes) - some.sizes))
            binary = binary and bool(np.isin(some.rewards, (0.0, 1.0)).all())
    together = PromptEstimates(
        names,
        clusters,
        np.concatenate(sizes),
        np.concatenate(totals),
        binary,
        ks,
        np.concatenate([_widened(values, len(ks)) for values, _ in parts]),
        np.concatenate([_widened(variances, len(ks)) for _, variances in parts]),
    )
    return together.at(sorted(range(len(names)), key=lambda place: [(isinstance(v, str), v) for v in names[place]]))


def _powers_of_two(largest: int) -> list[int]:
    return [1 << power for power in range(largest.bit_length())]


def _fill_unbiased(variances: Float64s, prompts: PromptRewards, ks: Sequence[int]) -> None:
    starts = np.cumsum(prompts.sizes) - prompts.sizes
    for n in np.unique(prompts.sizes):
        of_size = np.flatnonzero(prompts.sizes == n)
        for some in np.array_split(of_size, math.ceil(of_size.size * n / _REWARDS_AT_ONCE)):
            rewards = prompts.rewards[starts[some, None] + np.arange(n)]
            for column, k in enumerate(ks):
                if 2 * k <= n:
                    variances[some, column] = unbiased_variances(rewards, k)


def _widened(values: Float64s, columns: int) -> Float64s:
    return np.pad(values, ((0, 0), (0, columns - values.shape[1])), constant_values=np.nan)


def curve(prompts: PromptEstimates, confidence: Confidence | None = None) -> list[Row]:
    """The mean over prompts of max@k, for each k.

    Each row has `k`, `estimate`, `standard_error` (of the mean over prompts, clusters of them being drawn together),
    `prompts` that count and `left_out` for want of k rewards. With a confidence it has `level`; `low` and `high`, for
    prompts that are drawn from many, by `bootstrap_intervals`; `clusters`; and for these very prompts, sampled anew,
    `sampling_error` = sqrt(sum of variances) / prompts with its normal interval, `sampling_low`, `sampling_high`.
    """
    sums = ClusterSums.of(prompts.values, prompts.cluster_numbers())
    rows = []
    for column, k in enumerate(prompts.k):
        counted = int(np.count_nonzero(~np.isnan(prompts.values[:, column])))
        rows.append(
            {
                "k": k,
                "estimate": _said(sums.mean(column)),
                "standard_error": _said(sums.standard_error(column)),
                "prompts": counted,
                "left_out": len(prompts.names) - counted,
            }
        )
    if confidence is None:
        return rows
    intervals = bootstrap_intervals(sums, confidence.level, draws=confidence.draws, seed=confidence.seed)
    for column, (row, (low, high)) in enumerate(zip(rows, intervals, strict=True)):
        row |= {"level": confidence.level, "low": _said(low), "high": _said(high), "clusters": sums.number(column)}
        row |= _sampling(prompts, column, sums.mean(column), confidence.level)
    return rows


def _sampling(prompts: PromptEstimates, column: int, estimate: float, level: float) -> Row:
    variances = prompts.variances[~np.isnan(prompts.values[:, column]), column]
    error = _root(math.fsum(variances)) / len(variances) if len(variances) else math.nan
    low, high = _within(prompts, *normal_interval(estimate, error, level))
    return {"sampling_error": _said(error), "sampling_low": _said(low), "sampling_high": _said(high)}


def _within(prompts: PromptEstimates, low: float, high: float) -> tuple[float, float]:
    """An interval without what cannot be: a pass@k below 0 or above 1."""
    return (float(np.clip(low, 0, 1)), float(np.clip(high, 0, 1))) if prompts.binary else (low, high)


def each_prompt(prompts: PromptEstimates, columns: Sequence[str], level: float) -> Iterator[Row]:
    """A row for each prompt and k: its name, `n`, `k`, `estimate`, `standard_error` and the interval.

    The standard error is the root of the variance of `PromptEstimates`, 0 where that is below. The interval of pass@k
    is exact (`exact_interval`), for rewards of 0 and 1; that of max@k is estimate -+ z standard errors.
    """
    for place, name in enumerate(prompts.names):
        n = int(prompts.sizes[place])
        for column, k in enumerate(prompts.k):
            estimate = float(prompts.values[place, column])
            error = _root(float(prompts.variances[place, column]))
            if prompts.binary:
                low, high = exact_interval(round(prompts.totals[place]), n, k, level)
            else:
                low, high = normal_interval(estimate, error, level)
            yield {
                **dict(zip(columns, name, strict=True)),
                "n": n,
                "k": k,
                "estimate": _said(estimate),
                "standard_error": _said(error),
                "level": level,
                "low": _said(low),
                "high": _said(high),
            }


@dataclass(frozen=True, eq=False)
class Pairs:
    """Two runs on the prompts that both have.

    Attributes:
        one: the estimates of the one run, of the prompts that both have.
        other: of the other, in the same order.
        only_one: the names of the prompts that only the one has.
        only_other: of those that only the other has.
    """

    one: PromptEstimates
    other: PromptEstimates
    only_one: list[Name]
    only_other: list[Name]

    @classmethod
    def of(cls, one: PromptEstimates, other: PromptEstimates) -> Pairs:
        """By the prompts' names, for the same k."""
        places = {name: place for place, name in enumerate(other.names)}
        common = [place for place, name in enumerate(one.names) if name in places]
        partners = [places[one.names[place]] for place in common]
        kept = {one.names[place] for place in common}
        return cls(
            one.at(common),
            other.at(partners),
            [name for name in one.names if name not in kept],
            [name for name in other.names if name not in kept],
        )

    def moved(self) -> Name | None:
        """A prompt that is not in the same cluster in both runs; None where all are."""
        for name, cluster, other in zip(self.one.names, self.one.clusters, self.other.clusters, strict=True):
            if cluster != other:
                return name
        return None

    def splits(self, width: int) -> Iterator[tuple[Name, Pairs]]:
        """The prompts whose names begin with the same so many values, together; of either run."""
        of_one, of_other = dict(self.one.splits(width)), dict(self.other.splits(width))
        for split in dict.fromkeys(name[:width] for name in self.one.names):
            yield (
                split,
                Pairs(
                    of_one[split],
                    of_other[split],
                    [name for name in self.only_one if name[:width] == split],
                    [name for name in self.only_other if name[:width] == split],
                ),
            )


def comparison(pairs: Pairs, confidence: Confidence) -> list[Row]:
    """The one run less the other, on the prompts of both that have k rewards in both, for each k.

    Each row has `k`; `estimate` and `against`, the means of the two over these prompts; `difference`; its
    `standard_error` and `level`, `low`, `high`, of the differences of prompts as `curve` has them of values; `p_value`
    and `p_adjusted` by `sign_flip_p_values`, of this k alone and for all k of the comparison at once; `pairs`,
    `clusters`; and the prompts of each run that are left out, `left_out` and `left_out_against`.
    """
    counted = ~np.isnan(pairs.one.values) & ~np.isnan(pairs.other.values)
    numbers = pairs.one.cluster_numbers()
    one, other, differences = (
        ClusterSums.of(np.where(counted, values, np.nan), numbers)
        for values in (pairs.one.values, pairs.other.values, _differences(pairs.one.values, pairs.other.values))
    )
    intervals = bootstrap_intervals(differences, confidence.level, draws=confidence.draws, seed=confidence.seed)
    p_values, adjusted = sign_flip_p_values(differences.sums, draws=confidence.draws, seed=confidence.seed)
    rows = []
    for column, k in enumerate(pairs.one.k):
        number = int(np.count_nonzero(counted[:, column]))
        low, high = intervals[column]
        rows.append(
            {
                "k": k,
                "estimate": _said(one.mean(column)),
                "against": _said(other.mean(column)),
                "difference": _said(differences.mean(column)),
                "standard_error": _said(differences.standard_error(column)),
                "level": confidence.level,
                "low": _said(low),
                "high": _said(high),
                "p_value": float(p_values[column]) if number else None,
                "p_adjusted": float(adjusted[column]) if number else None,
                "pairs": number,
                "clusters": differences.number(column),
                "left_out": len(pairs.only_one) + len(counted) - number,
                "left_out_against": len(pairs.only_other) + len(counted) - number,
            }
        )
    return rows


def _differences(one: Float64s, other: Float64s) -> Float64s:
    """One less the other; 0 where only rounding is between them, as between 3 right of 10 and 9 right of 30."""
    differences: Float64s = one - other
    largest = np.nan_to_num(np.maximum(np.abs(one), np.abs(other))).max(axis=0, initial=0.0)
    differences[np.abs(differences) <= _ROUNDING * largest] = 0.0
    return differences


def _root(variance: float) -> float:
    """The standard error; 0 where an unbiased estimate of a variance is below."""
    return variance if math.isnan(variance) else math.sqrt(max(0.0, variance))


def _said(value: float) -> float | None:
    return None if math.isnan(value) else value
