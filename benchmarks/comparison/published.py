"""What people paste: PKPO's listing and Pass@k Training's closed form, in words of our own, beside pkpo_core.

Both do what the published ones do wherever that shows: `listing` takes eq. 33's baseline from that of eq. 30, divides
it by k - 1, and answers in the rewards' type; `closed_form` has binomials in double precision, adds 1e-6 to the
deviation, and leaves rewards other than 0 and 1 as they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.comparison.answers import Ask, report
from benchmarks.comparison.cases import K, Rewards, batch
from benchmarks.measurement import Effort, Ratio, in_turns
from benchmarks.peers import Floats, paper_diagonal, paper_entry, paper_s
from pkpo_core import RewardGroups, Scale, Variant, transform


def listing(rewards: NDArray[Any], k: int) -> NDArray[Any]:
    """PKPO's listing of eq. 33, of one group."""
    order = np.argsort(rewards)
    ordered = rewards[order]
    answers = []
    for part in (paper_s(ordered, k), paper_baseline(ordered, k - 1)):
        answer = np.zeros_like(rewards)
        answer[order] = part
        answers.append(answer)
    s, baseline = answers
    advantages: NDArray[Any] = s - baseline * k / (k - 1) / rewards.size
    return advantages


def paper_baseline(rewards: Floats, k: int) -> Floats:
    """Eq. 30 for sorted rewards: for each sample, the sum of eq. 19 over the others, were they the group."""
    n = rewards.size
    places = np.arange(1, n)
    weights = paper_diagonal(n - 1, k) * places
    later = [paper_entry(n - 1, k, i, i + 1) - paper_entry(n - 1, k, i + 1, i + 1) for i in range(n - 2)]
    weights[1:] += np.array(later) * places[:-1]
    without_smallest = np.sum(weights * rewards[1:])
    return np.cumsum(np.concatenate([[without_smallest], weights * (rewards[:-1] - rewards[1:])]))


def closed_form(rewards: NDArray[Any], k: int) -> NDArray[Any]:
    """Pass@k Training's advantages, of one group."""
    n, right = rewards.size, int((rewards == 1).sum())
    # 0 / 0 and inf / inf are NaN, as there.
    share = np.divide(binomial(n - right, k), binomial(n, k))
    passed = 1 - share
    deviation = np.sqrt(passed * (1 - passed)) + 1e-6
    given_wrong = np.divide(binomial(n - right - 1, k - 1), binomial(n - 1, k - 1))
    answer = np.where(rewards == 1, (1 - passed) / deviation, rewards)
    return np.where(rewards == 0, (1 - passed - given_wrong) / deviation, answer)


def binomial(n: int, k: int) -> float:
    """In double precision: infinite beyond it, 0 where there is none."""
    exact = math.comb(n, k) if 0 <= k <= n else 0
    return float(exact) if exact.bit_length() <= 1023 else math.inf


def ours(variant: Variant, scale: Scale, rewards: Rewards, k: int) -> Sequence[NDArray[Any]]:
    """pkpo_core's, of groups of any sizes."""
    flat = np.concatenate(rewards)
    sizes = np.array([group.size for group in rewards])
    floating = flat if flat.dtype in (np.float32, np.float64) else flat.astype(np.float64)
    advantages = transform(RewardGroups(floating, group_sizes=sizes), k, variant=variant, scale=scale).advantages
    return np.split(advantages, np.cumsum(sizes)[:-1])


ESTIMATORS: dict[str, Ask] = {
    "PKPO's listing": lambda rewards, k: [listing(group, k) for group in rewards],
    "Pass@k Training": lambda rewards, k: [closed_form(group, k) for group in rewards],
    "pkpo: sloo_minus_one": partial(ours, Variant.SLOO_MINUS_ONE, Scale.SUM),
    "pkpo: passk_analytic": partial(ours, Variant.PASSK_ANALYTIC, Scale.MEAN),
}


def times(effort: Effort) -> dict[str, Ratio]:
    """Each group by group, over ours of all groups."""
    between, binary = batch(), batch("0/1")
    sloo_minus_one = partial(transform, between, K)
    analytic = partial(transform, binary, K, variant=Variant.PASSK_ANALYTIC, scale=Scale.MEAN)
    rounds = effort.of(10)
    return {
        "PKPO's listing": in_turns([lambda: [listing(group, K) for group in between]], [sloo_minus_one], rounds, 2),
        "Pass@k Training": in_turns([lambda: [closed_form(group, K) for group in binary]], [analytic], rounds, 2),
    }


if __name__ == "__main__":
    report(ESTIMATORS, times, "numpy", "numba")
