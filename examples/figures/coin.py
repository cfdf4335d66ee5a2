"""A prompt that is answered right at a rate v, with every truth by enumeration.

The policy is one logit; the reward is 1 for a right answer, 0 for a wrong one. What a group of n teaches depends on
the number of right answers alone, which is binomial: n + 1 groups say everything, and nothing is sampled.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pkpo_client import GroupStatus, LocalClient

Float64s = NDArray[np.float64]


@dataclass(frozen=True)
class Groups:
    """What each number of right answers, 0 .. n, gives.

    Attributes:
        right: the advantage of a right answer, (n + 1,); 0 where there is none.
        wrong: of a wrong one.
        with_signal: whether the group teaches anything.
    """

    right: Float64s
    wrong: Float64s
    with_signal: NDArray[np.bool_]


def groups(pkpo: LocalClient, variant: str, k: int | None, n: int) -> Groups:
    """The groups of n, transformed by a variant that does not ask for the order of the samples."""
    result = pkpo.transform_detailed(rewards(n), k, variant=variant)
    right = np.append(0.0, result.advantages[1:, 0])
    wrong = np.append(result.advantages[:-1, -1], 0.0)
    return Groups(right, wrong, result.group_statuses != GroupStatus.NO_SIGNAL)


def rewards(n: int) -> Float64s:
    """The groups of n with 0 .. n right answers, (n + 1, n)."""
    return np.tri(n + 1, n, -1)


def moments(of: Groups, rate: float) -> tuple[float, float]:
    """The mean and the variance of a group's gradient by the logit, sum_i A_i (reward_i - v)."""
    n = len(of.right) - 1
    count = np.arange(n + 1)
    gradient = count * of.right * (1 - rate) - (n - count) * of.wrong * rate
    share = probabilities(n, rate)
    mean = float(share @ gradient)
    return mean, float(share @ (gradient - mean) ** 2)


def probabilities(n: int, rate: float) -> Float64s:
    """Of 0 .. n right answers."""
    return np.array([math.comb(n, c) * rate**c * (1 - rate) ** (n - c) for c in range(n + 1)])
