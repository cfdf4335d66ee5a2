"""Policy gradients of the toy problem, sampled: what a variant's advantages make of them, and what is measured."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pkpo_client import LocalClient

Float64s = NDArray[np.float64]

# Those that ignore k optimise max@1; tzsm takes n.
WITHOUT_K = ("loo", "grpo")
UNBIASED = (
    "sloo_minus_one",
    "s",
    "sloo",
    "centered",
    "loo",
    "tzsm",
    "naive_partitioned",
    "naive_partitioned_baselined",
    "loo_minus_one_partitioned",
)
NORMALISED = ("passk_analytic", "passk_bootstrap", "passk_full", "grpo")


@dataclass(frozen=True)
class Effort:
    """How many groups to sample: all that the figures need, or a fiftieth to see that everything works."""

    quick: bool = False

    def groups(self, usual: int) -> int:
        return max(usual // 50, 20) if self.quick else usual


@dataclass(frozen=True)
class Moments:
    """The mean and the variance of a gradient, with their standard errors."""

    mean: float
    mean_error: float
    variance: float
    variance_error: float

    @classmethod
    def of(cls, values: Float64s) -> Moments:
        """Those of a sample."""
        mean = float(values.mean())
        squares = (values - mean) ** 2
        number = len(values)
        variance = float(squares.sum()) / (number - 1)
        error = math.sqrt(max(float((squares**2).mean()) - variance**2, 0.0) / number)
        return cls(mean, math.sqrt(variance / number), variance, error)


def gradients(pkpo: LocalClient, variant: str, k: int, rewards: Float64s, scores: Float64s) -> Float64s:
    """sum_i A_i d/dtheta log p(x_i) of each group, in scale "sum".

    Args:
        rewards: (groups, n).
        scores: d/dtheta log p(x), (groups, n).
    """
    advantages = pkpo.transform(rewards, None if variant in WITHOUT_K else k, variant=variant, seed=1)
    of_groups: Float64s = np.einsum("gi,gi->g", advantages, scores)
    return of_groups
