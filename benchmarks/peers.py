"""Other ways to the same advantages, to be measured against.

`paper_*` follows the structure of the listing of PKPO (arXiv 2505.15201) in words of our own: one group at a time, the
weights of eq. 19 and 33 built anew from products of ratios. `CachedWeights` is what a careful NumPy programmer writes:
all groups at once, weights kept. Both agree with pkpo_core where they are accurate, which is checked before any
measurement.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def paper_entry(n: int, k: int, i: int, j: int) -> float:
    """m_ij / C(n, k) of eq. 20 for the i-th and the j-th smallest, counted from 0, as a product of ratios."""
    if j < k - 1 or j < i:
        return 0.0
    leading = k / (n - k + 1)
    if i == j:
        return float(leading * np.prod(np.arange(i - k + 2, i + 1) / np.arange(n - k + 2, n + 1)))
    if k < 2:
        return 0.0
    return float(leading * (k - 1) / n * np.prod(np.arange(j - k + 2, j) / np.arange(n - k + 2, n)))


def paper_diagonal(n: int, k: int) -> Floats:
    """The weights of rho, eq. 12, for sorted rewards."""
    return np.array([paper_entry(n, k, i, i) for i in range(n)])


def paper_s(rewards: Floats, k: int) -> Floats:
    """Eq. 19 for sorted rewards, summed from the largest: s_i - s_{i+1} = m_ii g_i + (m_i,i+1 - m_i+1,i+1) g_{i+1}."""
    n = rewards.size
    terms = paper_diagonal(n, k) * rewards
    for_next = [paper_entry(n, k, i, i + 1) - paper_entry(n, k, i + 1, i + 1) for i in range(n - 1)]
    terms[:-1] += np.array(for_next) * rewards[1:]
    return np.cumsum(terms[::-1])[::-1]


def paper_rho_without_each(rewards: Floats, k: int) -> Floats:
    """rho of sorted rewards without the i-th, for each i: the next differs by the weight that changes its reward."""
    weights = paper_diagonal(rewards.size - 1, k)
    without_smallest = np.sum(weights * rewards[1:])
    return np.cumsum(np.concatenate([[without_smallest], weights * (rewards[:-1] - rewards[1:])]))


def paper_sloo_minus_one(rewards: Floats, k: int) -> Floats:
    """Eq. 33 for one group."""
    order = np.argsort(rewards)
    ordered = rewards[order]
    advantages = np.empty(rewards.size)
    advantages[order] = paper_s(ordered, k) - k / rewards.size * paper_rho_without_each(ordered, k - 1)
    return advantages


class CachedWeights:
    """SLOO_MINUS_ONE of many groups of n, vectorised, with the weights made once.

    Args:
        n: group size.
        k: at least 2.
    """

    def __init__(self, n: int, k: int) -> None:
        self._step = np.array([math.comb(i, k - 1) for i in range(1, n)], np.float64) / math.comb(n, k)

    def __call__(self, rewards: Floats) -> Floats:
        order = np.argsort(rewards, axis=1)
        gaps = np.diff(np.take_along_axis(rewards, order, axis=1), axis=1)
        climbed = np.zeros_like(rewards)
        np.cumsum(gaps * self._step, axis=1, out=climbed[:, 1:])
        advantages = np.empty_like(rewards)
        np.put_along_axis(advantages, order, climbed, axis=1)
        return advantages
