"""max@k (pass@k for 0/1 rewards) and its standard error."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import reference
from core.samples import EXACT, KINDS, SIZES, bits, groups_of, properties
from pkpo_core import KPolicy, RewardGroups, Variant, estimate, transform


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [1, *SIZES])
def test_every_k_against_the_oracle(n: int, kind: str) -> None:
    rewards = KINDS[kind](np.random.default_rng([n, 7]), n)
    for answer in estimate(rewards[None, :], range(1, n + 1)):
        exact = reference.max_at_k(rewards.tolist(), answer.k)
        assert abs(answer.values[0] - exact) <= EXACT * np.abs(rewards).max()
        # The error's own size is what it is judged by: nothing in it may cancel.
        exact_error = reference.standard_error(rewards.tolist(), answer.k)
        np.testing.assert_allclose(answer.standard_errors[0], exact_error, rtol=EXACT, atol=0)


@properties
@given(data=st.data())
def test_rewards_meant_to_cause_trouble(data: Any) -> None:
    rewards = data.draw(groups_of(Variant.S))
    k = data.draw(st.integers(1, len(rewards)))
    (answer,) = estimate(np.array([rewards]), k)
    assert abs(answer.values[0] - reference.max_at_k(rewards, k)) <= EXACT * np.abs(rewards).max()
    exact_error = reference.standard_error(rewards, k)
    np.testing.assert_allclose(answer.standard_errors[0], exact_error, rtol=EXACT, atol=0)


def test_a_standard_error_far_below_the_spread_of_the_rewards() -> None:
    """Every 3 of these have one of the last two as their largest reward, so that the first two must not matter."""
    rewards = [-1e83, -1e23, 0.0, 1e-145]
    (answer,) = estimate(np.array([rewards]), 3)
    np.testing.assert_allclose(answer.standard_errors[0], reference.standard_error(rewards, 3), rtol=EXACT, atol=0)


def test_nan_where_there_is_no_estimator_and_nowhere_else() -> None:
    groups = RewardGroups(np.arange(10.0), np.array([1, 4, 5]))
    for answer in estimate(groups, [1, 4, 5, 6]):
        np.testing.assert_array_equal(np.isnan(answer.values), answer.k > groups.sizes)
        np.testing.assert_array_equal(np.isnan(answer.standard_errors), answer.k >= groups.sizes)


def test_the_standard_error_is_the_jackknife() -> None:
    rewards = np.random.default_rng(3).normal(size=9)
    left_out = np.array([np.delete(rewards, i) for i in range(9)])
    for k in range(1, 9):
        (whole,) = estimate(rewards[None, :], k)
        (partial,) = estimate(left_out, k)
        jackknife = math.sqrt(8 / 9 * np.sum((whole.values[0] - partial.values) ** 2))
        assert whole.standard_errors[0] == pytest.approx(jackknife, rel=1e-12)


def test_the_standard_error_of_a_mean_at_k_1() -> None:
    rewards = np.random.default_rng(4).normal(size=(3, 12))
    (answer,) = estimate(rewards, 1)
    np.testing.assert_allclose(answer.values, rewards.mean(axis=1), rtol=1e-12)
    np.testing.assert_allclose(answer.standard_errors, rewards.std(axis=1, ddof=1) / math.sqrt(12), rtol=1e-12)


@pytest.mark.parametrize("n", [1, 2, 10, 200])
def test_pass_at_k_as_code_benchmarks_compute_it(n: int) -> None:
    right = np.arange(n + 1)
    rewards = (np.arange(n) < right[:, None]).astype(float)
    for answer in estimate(rewards, range(1, n + 1, max(1, n // 20))):
        exact = [1 - math.comb(n - c, answer.k) / math.comb(n, answer.k) for c in right]
        np.testing.assert_allclose(answer.values, exact, rtol=0, atol=1e-14)


def test_many_k_at_once_or_one_by_one_or_beside_a_transform() -> None:
    groups = RewardGroups(np.random.default_rng(5).normal(size=40), np.array([1, 2, 16, 21]))
    ks = [4, 1, 4, 17, 2]
    at_once = estimate(groups, ks)
    beside = transform(groups, variant=Variant.LOO, k_policy=KPolicy.CLAMP, estimate_k=ks).estimates
    assert [answer.k for answer in at_once] == [answer.k for answer in beside] == ks
    for k, one, other in zip(ks, at_once, beside, strict=True):
        (alone,) = estimate(groups, k)
        assert bits(alone.values) == bits(one.values) == bits(other.values)
        assert bits(alone.standard_errors) == bits(one.standard_errors) == bits(other.standard_errors)


def test_the_standard_error_tends_to_corollary_3() -> None:
    """For 0/1 rewards right with probability v, n times the variance tends to k^2 v (1-v)^(2k-1)."""
    n, v = 20_000, 0.25
    rewards = (np.arange(n) < v * n).astype(float)
    for answer in estimate(rewards[None, :], [1, 2, 4, 8]):
        expected = math.sqrt(answer.k**2 * v * (1 - v) ** (2 * answer.k - 1) / n)
        assert answer.standard_errors[0] == pytest.approx(expected, rel=0.01)


def test_the_standard_error_covers_the_spread_of_the_estimate() -> None:
    rewards = np.random.default_rng(6).normal(size=(4000, 32))
    for answer in estimate(rewards, [1, 2, 4]):
        spread = answer.values.std(ddof=1)
        typical = math.sqrt(np.mean(answer.standard_errors**2))
        # The jackknife errs on the wide side. The spread itself is known to about 1 %.
        assert 0.97 * spread <= typical <= 1.15 * spread


def test_float32_rewards_are_estimated_as_the_doubles_they_are() -> None:
    rewards = np.random.default_rng(8).normal(size=(5, 7)).astype(np.float32)
    for narrow, wide in zip(estimate(rewards, [1, 3]), estimate(rewards.astype(np.float64), [1, 3]), strict=True):
        assert bits(narrow.values) == bits(wide.values)
        assert bits(narrow.standard_errors) == bits(wide.standard_errors)
