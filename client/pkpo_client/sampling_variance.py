"""How far the estimate of one prompt's max@k is from the truth, for want of samples: the variance of a U-statistic."""

from __future__ import annotations

import math
from functools import cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Float64s = NDArray[np.float64]

_HALVINGS = 60  # of [0, 1], to the last bit of a double


def unbiased_variances(rewards: Float64s, k: int) -> Float64s:
    """The unbiased estimate of the variance of each prompt's max@k estimate.

    The estimate U is the mean of the largest reward over all k-subsets. The mean of the products of the largest rewards
    of two k-subsets without a common sample is unbiased for the square of what U estimates, so that U^2 less that mean
    is unbiased for the variance of U. With the sorted rewards y_1 <= ... <= y_n measured from U, what is left is

        -2 sum_{i<j} C(i-1, k-1) C(j-1-k, k-1) / (C(n, k) C(n-k, k)) y_i y_j

    in which y_i is the largest of the one subset and y_j that of the other. It may be below 0, as an unbiased
    estimate of a small variance must be. For rewards of 0 and 1, f of them 0: (C(f,k)/C(n,k))^2 - C(f,2k)/C(n,2k).

    Args:
        rewards: shape (prompts, n), float64.
        k: 1 <= k <= n / 2; no unbiased estimate exists above.

    Returns:
        Shape (prompts,), float64; NaN where 2 k > n.
    """
    prompts, n = rewards.shape
    if 2 * k > n:
        return np.full(prompts, np.nan)
    first = _largest_law(n, k)
    second = np.concatenate([np.zeros(k), _largest_law(n - k, k)])
    y = np.sort(rewards, axis=1)
    y -= np.sum(y * first, axis=1, keepdims=True)
    below = np.cumsum(y * first, axis=1)
    variances: Float64s = -2.0 * np.sum(second[1:] * y[:, 1:] * below[:, :-1], axis=1)
    # Every subset has the same largest reward, whatever rounding says.
    variances[rewards.max(axis=1) == np.partition(rewards, k - 1, axis=1)[:, k - 1]] = 0.0
    return variances


@cache
def _largest_law(n: int, k: int) -> Float64s:
    """The probability that the i-th smallest of n is the largest of a random k-subset: C(i-1, k-1) / C(n, k)."""
    i = np.arange(n, k, -1.0)
    downwards = np.cumprod(np.concatenate([[k / n], (i - k) / (i - 1)]))
    return np.concatenate([np.zeros(k - 1), downwards[::-1]])


def exact_interval(successes: int, n: int, k: int, level: float) -> tuple[float, float]:
    """The interval of pass@k of a prompt with so many successes in n samples: Clopper and Pearson's.

    pass@k = 1 - (1-p)^k grows with the pass rate p, so the exact interval of p gives that of pass@k, for any k.

    Args:
        successes: 0 <= successes <= n.
        n: at least 1.
        k: at least 1.
        level: how often at least the interval holds the truth, in (0, 1).
    """
    low, high = _clopper_pearson(successes, n, level)
    return 1 - (1 - low) ** k, 1 - (1 - high) ** k


@cache
def _clopper_pearson(successes: int, n: int, level: float) -> tuple[float, float]:
    tail = (1 - level) / 2
    low = _pass_rate(n, successes, tail) if successes else 0.0
    high = _pass_rate(n, successes + 1, 1 - tail) if successes < n else 1.0
    return low, high


def _pass_rate(n: int, at_least: int, probability: float) -> float:
    """The pass rate at which so many successes or more have the given probability."""
    successes = np.arange(at_least, n + 1)
    logarithms = np.array([math.lgamma(n + 1) - math.lgamma(c + 1) - math.lgamma(n - c + 1) for c in successes])
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        p = (low + high) / 2
        terms = logarithms + successes * math.log(p) + (n - successes) * math.log1p(-p)
        if np.exp(terms).sum() < probability:
            low = p
        else:
            high = p
    return (low + high) / 2


def normal_interval(estimate: float, error: float, level: float) -> tuple[float, float]:
    """estimate -+ z error, z the normal quantile of the level."""
    reach = NormalDist().inv_cdf((1 + level) / 2) * error
    return estimate - reach, estimate + reach
