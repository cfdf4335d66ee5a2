"""The gradient that unbiased variants follow is that of max@k.

The paper's problem in one dimension: a policy N(theta, 0.1) and the reward x^2 on [0, 1], 0 elsewhere. At theta = 0.9
one sample of six falls off the edge, so that pass@1 steps back where max@k steps forward.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from core.samples import JIT
from pkpo_core import Variant, transform

THETA, SIGMA = 0.9, 0.1
N = 32
GROUPS = 120_000 if JIT else 1_500
KS = (1, 2, 4, 8, 16)

UNBIASED = [
    *((variant, k) for variant in (Variant.SLOO_MINUS_ONE, Variant.S, Variant.SLOO, Variant.CENTERED) for k in KS),
    *((variant, k) for variant in (Variant.NAIVE_PARTITIONED, Variant.NAIVE_PARTITIONED_BASELINED) for k in KS),
    *((Variant.LOO_MINUS_ONE_PARTITIONED, k) for k in KS if k >= 2),
    (Variant.LOO, 1),
    *((Variant.TZSM, k) for k in KS if k >= 2),
]


def true_gradient(k: int) -> float:
    """d/dtheta of E max_k = integral over r in [0, 1] of 1 - F(r)^k, where F(r) = P(reward <= r), and r = u^2."""
    nodes, weights = np.polynomial.legendre.leggauss(400)
    u, weights = (nodes + 1) / 2, weights / 2
    at_u, at_1 = (u - THETA) / SIGMA, (1 - THETA) / SIGMA
    distribution = 1 - normal_distribution(np.array([at_1])) + normal_distribution(at_u)
    slope = (normal_density(at_1) - normal_density(at_u)) / SIGMA
    return float(np.sum(weights * 2 * u * -k * distribution ** (k - 1) * slope))


def normal_distribution(z: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.array([math.erfc(-a / math.sqrt(2)) / 2 for a in z])


def normal_density(z: NDArray[np.float64] | float) -> NDArray[np.float64]:
    return np.asarray(np.exp(-np.square(z) / 2) / math.sqrt(2 * math.pi))


def sampled(n: int, seed: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Rewards (groups, n) and the gradients of their log-probabilities."""
    x = THETA + SIGMA * np.random.default_rng(seed).normal(size=(GROUPS, n))
    return np.where((x >= 0) & (x <= 1), x * x, 0.0), (x - THETA) / SIGMA**2


REWARDS, SCORES = sampled(N, 1)


def gradient(advantages: NDArray[np.float64], scores: NDArray[np.float64] = SCORES) -> tuple[float, float]:
    """The mean over groups of sum_i A_i d log p_i, and its standard error.

    The scores' true mean is 0, so that one constant taken from all advantages takes away noise and nothing else.
    """
    per_group = ((advantages - advantages.mean()) * scores).sum(axis=1)
    return float(per_group.mean()), float(per_group.std(ddof=1) / math.sqrt(len(per_group)))


def test_the_quadrature_agrees_with_a_difference_quotient() -> None:
    """An independent road for k = 1: E g is an integral over x itself."""
    x = np.linspace(0, 1, 200_001)
    step = 1e-4

    def expected_reward(theta: float) -> float:
        y = x * x * normal_density((x - theta) / SIGMA) / SIGMA
        return float(((y[1:] + y[:-1]) * np.diff(x)).sum() / 2)

    quotient = (expected_reward(THETA + step) - expected_reward(THETA - step)) / (2 * step)
    assert true_gradient(1) == pytest.approx(quotient, rel=1e-6)


def test_pass_at_1_steps_back_where_max_at_k_steps_forward() -> None:
    assert [round(true_gradient(k), 2) for k in KS] == [-0.95, 0.04, 0.47, 0.41, 0.29]


@pytest.mark.parametrize(("variant", "k"), UNBIASED, ids=lambda value: getattr(value, "value", value))
def test_the_mean_gradient_is_that_of_max_at_k(variant: Variant, k: int) -> None:
    rewards, scores = sampled(k, k) if variant is Variant.TZSM else (REWARDS, SCORES)
    estimate, error = gradient(transform(rewards, k, variant=variant).advantages, scores)
    assert abs(estimate - true_gradient(k)) < 4 * error
    # The gradients lie 0.06 to 1.4 apart: 4 of the largest standard error tell any two of them from each other.
    assert error < (0.01 if JIT else 0.1)


discerning = pytest.mark.skipif(not JIT, reason="needs the compiler: telling biases apart takes 100,000 groups")


@discerning
@pytest.mark.parametrize("k", [k for k in KS if k >= 2])
def test_the_same_measurement_rejects_pass_at_1(k: int) -> None:
    estimate, error = gradient(transform(REWARDS, variant=Variant.LOO).advantages)
    assert abs(estimate - true_gradient(k)) > 8 * error


@discerning
@pytest.mark.parametrize("k", [k for k in KS if k >= 2])
def test_centring_the_default_variant_is_biased(k: int) -> None:
    """And by no common factor: it turns round at k = 2, is too short at k = 4 and too long at k = 8."""
    advantages = transform(REWARDS, k).advantages
    estimate, error = gradient(advantages - advantages.mean(axis=1, keepdims=True))
    truth = true_gradient(k)
    assert abs(estimate - truth) > 8 * error
    assert {2: estimate < 0 < truth, 4: 0 < estimate < truth, 8: 0 < truth < estimate, 16: 0 < truth < estimate}[k]
