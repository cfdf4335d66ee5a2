"""Intervals by the clustered bootstrap hold the truth as often as they say; p-values are what listing gives."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import pkpo_core
from pkpo_client.resampling import ClusterSums, bootstrap_intervals, sign_flip_p_values, student_quantile
from pkpo_client.sampling_variance import unbiased_variances

Float64s = NDArray[np.float64]

KS = [1, 4, 8]
N = 16
REPETITIONS = 600


def binomial_bounds(share: float) -> tuple[int, int]:
    """How often an event of this chance happens in REPETITIONS, but for one time in 10,000 on either side."""
    law = [math.comb(REPETITIONS, c) * share**c * (1 - share) ** (REPETITIONS - c) for c in range(REPETITIONS + 1)]
    below = np.cumsum(law)
    return int(np.searchsorted(below, 1e-4)), int(np.searchsorted(below, 1 - 1e-4))


def estimates(rewards: Float64s) -> Float64s:
    return np.stack([each.values for each in pkpo_core.estimate(rewards, KS)], axis=1)


@pytest.mark.parametrize(("prompts", "siblings"), [(100, 1), (30, 1), (60, 3)])
def test_intervals_over_prompts_hold_the_truth(prompts: int, siblings: int) -> None:
    """Pass rates Beta(1, 2), in clusters of siblings that share one: pass@k of the population is known."""
    generator = np.random.default_rng(prompts + siblings)
    a, b = 1, 2
    truth = [1 - math.prod((b + j) / (a + b + j) for j in range(k)) for k in KS]
    clusters = np.arange(prompts) // siblings
    held = np.zeros(len(KS))
    for _ in range(REPETITIONS):
        rates = generator.beta(a, b, prompts // siblings)[clusters]
        values = estimates((generator.random((prompts, N)) < rates[:, None]).astype(np.float64))
        sums = ClusterSums.of(values, clusters)
        intervals = bootstrap_intervals(sums, 0.95, draws=500, seed=int(generator.integers(1 << 30)))
        held += [low <= true <= high for (low, high), true in zip(intervals, truth, strict=True)]
    lowest = binomial_bounds(0.93)[0]  # 20 clusters, and 500 draws, cost up to two hundredths
    assert (held >= lowest).all(), held / REPETITIONS
    assert (held <= binomial_bounds(0.95)[1]).all(), held / REPETITIONS


def test_intervals_of_these_very_prompts_hold_their_mean() -> None:
    generator = np.random.default_rng(1)
    rates = generator.beta(1, 2, 40)
    truth = np.array([np.mean(1 - (1 - rates) ** k) for k in KS])
    held = np.zeros(len(KS))
    for _ in range(REPETITIONS):
        rewards = (generator.random((40, N)) < rates[:, None]).astype(np.float64)
        variances = np.array([math.fsum(unbiased_variances(rewards, k)) for k in KS])
        held += np.abs(estimates(rewards).mean(axis=0) - truth) <= 1.959964 * np.sqrt(variances.clip(0)) / 40
    assert (held >= binomial_bounds(0.94)[0]).all(), held / REPETITIONS
    assert (held <= binomial_bounds(0.96)[1]).all(), held / REPETITIONS


def test_the_test_raises_false_alarms_as_often_as_it_says() -> None:
    """Two runs of the same policy, 25 prompts: each k alone, and any of the k at all."""
    generator = np.random.default_rng(2)
    alone, any_k = np.zeros(len(KS)), 0
    for _ in range(REPETITIONS):
        rates = generator.beta(1, 2, 25)
        one, other = (estimates((generator.random((25, N)) < rates[:, None]).astype(np.float64)) for _ in range(2))
        p_values, adjusted = sign_flip_p_values(one - other, draws=400, seed=int(generator.integers(1 << 30)))
        alone += p_values <= 0.05
        any_k += bool((adjusted <= 0.05).any())
    assert (alone <= binomial_bounds(0.05)[1]).all(), alone / REPETITIONS
    assert (alone >= binomial_bounds(0.05)[0]).all(), alone / REPETITIONS
    assert binomial_bounds(0.05)[0] <= any_k <= binomial_bounds(0.05)[1], any_k / REPETITIONS


@pytest.mark.parametrize(("n", "alarms"), [(1, 0.6), (4, 0.15), (64, 0.04)])
def test_it_asks_for_as_many_rollouts_of_both_runs(n: int, alarms: float) -> None:
    """As docs/evaluation.md says: against 64 rollouts, 25 prompts, pass rate 2 %, k = 1."""
    generator = np.random.default_rng(3)
    false = 0
    for _ in range(REPETITIONS):
        one, other = (generator.binomial(size, 0.02, size=(25, 1)) / size for size in (n, 64))
        (p_value,), _ = sign_flip_p_values(one - other, draws=400, seed=int(generator.integers(1 << 30)))
        false += p_value <= 0.05
    assert false / REPETITIONS == pytest.approx(alarms, abs=0.05)


def test_two_clusters_hold_the_truth_half_the_time() -> None:
    generator = np.random.default_rng(4)
    held = 0
    for seed in range(REPETITIONS):
        sums = ClusterSums.of(generator.normal(size=(2, 1)), np.arange(2))
        ((low, high),) = bootstrap_intervals(sums, 0.95, draws=100, seed=seed)
        held += low <= 0 <= high
    low, high = binomial_bounds(0.5)
    assert low <= held <= high


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(*[st.integers(-8, 8).map(lambda i: i / 8)] * 2), min_size=1, max_size=6).map(np.array))
def test_few_pairs_are_listed(differences: Float64s) -> None:
    exact = [[Fraction(float(value)) for value in row] for row in differences]
    flips = [
        [sum(sign * row[k] for sign, row in zip(signs, exact, strict=True)) ** 2 for k in range(2)]
        for signs in product((1, -1), repeat=len(exact))
    ]
    squares = [sum(row[k] ** 2 for row in exact) for k in range(2)]
    scaled = [[flip[k] / squares[k] if squares[k] else Fraction(0) for k in range(2)] for flip in flips]
    alone = [np.mean([flip[k] >= scaled[0][k] for flip in scaled]) for k in range(2)]
    together = [np.mean([max(flip) >= scaled[0][k] for flip in scaled]) for k in range(2)]
    p_values, adjusted = sign_flip_p_values(differences, draws=128, seed=0)
    np.testing.assert_allclose(p_values, alone)
    np.testing.assert_allclose(adjusted, together)
    assert (adjusted >= p_values).all()


def test_a_mean_over_clusters_is_the_mean_over_prompts_with_the_error_of_clusters() -> None:
    values = np.array([[1.0], [0.0], [0.5], [np.nan], [0.25]])
    single = ClusterSums.of(values, np.arange(5))
    assert single.mean(0) == 0.4375
    assert single.number(0) == 4
    assert single.standard_error(0) == pytest.approx(np.nanstd(values, ddof=1) / 2)
    doubled = ClusterSums.of(np.repeat(values, 2, axis=0), np.repeat(np.arange(5), 2))
    assert doubled.mean(0) == 0.4375
    assert doubled.standard_error(0) == pytest.approx(single.standard_error(0))


def test_intervals_know_what_counts_for_each_k_and_stay_within_the_values() -> None:
    values = np.array([[1.0, np.nan], [1.0, 1.0], [0.0, np.nan], [1.0, np.nan]])
    (low, high), too_few = bootstrap_intervals(ClusterSums.of(values, np.arange(4)), 0.95, draws=1000, seed=0)
    assert 0 <= low < 0.75 < high <= 1
    assert np.isnan(too_few).all()
    alike = bootstrap_intervals(ClusterSums.of(np.full((3, 1), 0.1), np.arange(3)), 0.95, draws=100, seed=0)
    assert alike == [(pytest.approx(0.1), pytest.approx(0.1))]


def test_a_seed_gives_the_same_and_another_another() -> None:
    sums = ClusterSums.of(np.random.default_rng(0).random((50, 1)), np.arange(50))
    first, again, other = (bootstrap_intervals(sums, 0.9, draws=200, seed=seed) for seed in (7, 7, 8))
    assert first == again != other


@pytest.mark.parametrize(
    ("freedom", "quantile"), [(5, 2.570582), (10, 2.228139), (30, 2.042272), (1000, 1.962339)]
)  # as every table has them
def test_student_quantiles(freedom: int, quantile: float) -> None:
    assert student_quantile(0.975, freedom) == pytest.approx(quantile, abs=2e-3 if freedom == 5 else 1e-4)
