"""The variance of one prompt's estimate, against enumeration, and the exact interval against the binomial law."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import reference
from pkpo_client.sampling_variance import exact_interval, normal_interval, unbiased_variances


def enumerated_variance(rewards: list[float], k: int) -> Fraction:
    """U^2 less the mean of the products over all pairs of k-subsets without a common sample."""
    g = [Fraction(reward) for reward in rewards]
    places = range(len(g))
    products = [
        max(g[i] for i in one) * max(g[i] for i in other)
        for one in combinations(places, k)
        for other in combinations(sorted(set(places) - set(one)), k)
    ]
    return reference.rho(g, k) ** 2 - reference.mean(products)


@settings(deadline=None)
@given(st.lists(st.integers(-64, 64).map(lambda i: i / 8), min_size=2, max_size=8), st.data())
def test_is_what_pairs_of_disjoint_subsets_say(rewards: list[float], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(rewards) // 2))
    (variance,) = unbiased_variances(np.array([rewards]), k)
    scale = max(1.0, max(map(abs, rewards))) ** 2
    assert variance == pytest.approx(float(enumerated_variance(rewards, k)), abs=1e-13 * scale)


@pytest.mark.parametrize(("n", "k"), [(2, 1), (7, 3), (16, 8), (64, 5)])
def test_is_unbiased(n: int, k: int) -> None:
    """Its mean over every outcome of n attempts is the variance of the estimate over every outcome, pass rate 3/10."""
    p = Fraction(3, 10)
    law = [math.comb(n, c) * p**c * (1 - p) ** (n - c) for c in range(n + 1)]
    estimates = [1 - Fraction(math.comb(n - c, k), math.comb(n, k)) for c in range(n + 1)]
    pass_at_k = 1 - (1 - p) ** k
    variance = sum(share * (estimate - pass_at_k) ** 2 for share, estimate in zip(law, estimates, strict=True))
    outcomes = np.array([[1.0] * c + [0.0] * (n - c) for c in range(n + 1)])
    measured = unbiased_variances(outcomes, k)
    assert float(np.dot(np.array(law, dtype=float), measured)) == pytest.approx(float(variance), rel=1e-11)


def test_binary_rewards_have_the_closed_form() -> None:
    n, k = 20, 4
    rewards = np.array([[1.0] * c + [0.0] * (n - c) for c in range(n + 1)])
    expected = [
        float(
            Fraction(math.comb(n - c, k), math.comb(n, k)) ** 2 - Fraction(math.comb(n - c, 2 * k), math.comb(n, 2 * k))
        )
        for c in range(n + 1)
    ]
    np.testing.assert_allclose(unbiased_variances(rewards, k), expected, rtol=0, atol=1e-15)


def test_does_not_cancel_far_from_zero() -> None:
    rewards = np.random.default_rng(0).integers(0, 1024, size=(5, 12)) / 1024
    near, far = (unbiased_variances(rewards + offset, 3) for offset in (0.0, 2.0**20))
    np.testing.assert_allclose(far, near, rtol=1e-7)


def test_rewards_that_are_alike_have_none_and_too_few_no_estimate() -> None:
    assert unbiased_variances(np.full((1, 6), 0.1), 3) == [0.0]
    assert unbiased_variances(np.array([[0.0, 0.1, 0.1, 0.1, 0.1, 0.1]]), 2) == [0.0]
    assert np.isnan(unbiased_variances(np.ones((3, 5)), 3)).all()


@pytest.mark.parametrize(("n", "k"), [(1, 1), (5, 2), (16, 4), (30, 100)])
@pytest.mark.parametrize("level", [0.5, 0.95])
def test_the_exact_interval_holds_the_truth_as_often_as_it_says(n: int, k: int, level: float) -> None:
    intervals = [exact_interval(c, n, k, level) for c in range(n + 1)]
    for p in np.linspace(0.003, 0.997, 150):
        truth = 1 - (1 - p) ** k
        law = [math.comb(n, c) * p**c * (1 - p) ** (n - c) for c in range(n + 1)]
        held = sum(share for share, (low, high) in zip(law, intervals, strict=True) if low <= truth <= high)
        assert held >= level - 1e-12


def test_the_exact_interval_ends_where_known() -> None:
    # With no success in n, the rule of three's exact form: 1 - (alpha/2)^(1/n).
    assert exact_interval(0, 10, 1, 0.95) == (0.0, pytest.approx(1 - 0.025**0.1))
    assert exact_interval(10, 10, 1, 0.95) == (pytest.approx(0.025**0.1), 1.0)
    assert exact_interval(3, 10, 1, 0.95) == (pytest.approx(0.0667395, abs=1e-7), pytest.approx(0.6524529, abs=1e-7))


def test_the_normal_interval() -> None:
    assert normal_interval(1.0, 2.0, 0.95) == (pytest.approx(1 - 3.919928), pytest.approx(1 + 3.919928))
