"""PKPO's problem in one dimension, with every truth by quadrature.

The policy draws x from a normal distribution with mean theta, the parameter, and standard deviation 0.1. The reward
is x^2 on [0, 1] and 0 elsewhere: the best answers lie next to a cliff, and how near to go depends on k.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Float64s = NDArray[np.float64]

SIGMA = 0.1
CLIFF = 1.0

# Of u in [0, 1], with reward r = u^2: the integrands are smooth, and 400 nodes leave errors near 1e-14.
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(400)
_U: Float64s = (_NODES + 1) / 2
_DR: Float64s = _WEIGHTS * _U

_error_function = np.vectorize(math.erfc, otypes=[np.float64])


def sample(theta: float, n: int, groups: int, seed: Sequence[int]) -> tuple[Float64s, Float64s]:
    """Rewards and d/dtheta log p(x) of samples of the policy, both (groups, n)."""
    z = np.random.default_rng([*seed, n]).standard_normal((groups, n))
    return reward(theta + SIGMA * z), z / SIGMA


def reward(x: Float64s) -> Float64s:
    """x^2 on [0, 1], 0 elsewhere."""
    return np.where((x >= 0) & (x <= CLIFF), x * x, 0.0)


def max_at_k(theta: ArrayLike, k: int) -> Float64s:
    """E max of k rewards = integral over r in [0, 1] of 1 - F(r)^k, of the shape of theta."""
    below, _ = _distribution(theta)
    return (1 - below**k) @ _DR


def derivative(theta: ArrayLike, k: int) -> Float64s:
    """d/dtheta of `max_at_k`."""
    below, slope = _distribution(theta)
    return (-k * below ** (k - 1) * slope) @ _DR


def optimum(k: int) -> float:
    """The theta with the largest max@k."""
    low, high = 0.5, 1.2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if derivative(middle, k) > 0 else (low, middle)
    return low


def first_order_variance(theta: float, k: int) -> float:
    """The variance of E[max of k rewards | one of them]: k^2 of it over n is what the estimate's variance tends to."""
    u = np.linspace(0, 1, 20_001)
    below = _below(theta, u) ** (k - 1)
    # E max(r, others) = 1 - integral from r to 1 of F^(k-1)
    steps = (below[1:] * u[1:] + below[:-1] * u[:-1]) * np.diff(u)
    value = 1 - (steps.sum() - np.concatenate([[0.0], np.cumsum(steps)]))
    density = _density((u - theta) / SIGMA) / SIGMA
    share = 1 - _trapezoid(density, u)  # of the samples that get 0

    def mean(of: Float64s) -> float:
        return float(share * of[0] + _trapezoid(density * of, u))

    return mean(value**2) - mean(value) ** 2


def _distribution(theta: ArrayLike) -> tuple[Float64s, Float64s]:
    """F(r) = P(reward <= r) at the nodes, and its derivative by theta; both of theta's shape and one more axis."""
    centre = np.asarray(theta, dtype=np.float64)[..., None]
    slope = (_density((CLIFF - centre) / SIGMA) - _density((_U - centre) / SIGMA)) / SIGMA
    return _below(centre, _U), slope


def _below(theta: float | Float64s, u: Float64s) -> Float64s:
    result: Float64s = _normal((u - theta) / SIGMA) + 1 - _normal((CLIFF - theta) / SIGMA)
    return result


def _normal(z: Float64s | float) -> Float64s:
    result: Float64s = _error_function(-np.asarray(z) / math.sqrt(2)) / 2
    return result


def _density(z: Float64s) -> Float64s:
    result: Float64s = np.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    return result


def _trapezoid(y: Float64s, x: Float64s) -> float:
    return float(((y[1:] + y[:-1]) * np.diff(x)).sum() / 2)
