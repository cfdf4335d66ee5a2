"""The oracle against itself: listing the subsets and counting them are two ways to one answer."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

import reference
from core.samples import KINDS

ROUNDING_OF_ROOTS = Fraction(1, 2**250)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("variant", reference.CLOSED_FORMS)
def test_counting_subsets_agrees_with_listing_them(variant: str, kind: str) -> None:
    rng = np.random.default_rng(1)
    for n in range(2, 8):
        rewards = KINDS[kind](rng, n).tolist()
        for k in reference.legal_ks(variant, n):
            listed = reference.DEFINITIONS[variant]([Fraction(reward) for reward in rewards], k)
            counted = reference.counted(variant, rewards, k).fractions()
            if variant in ("passk_analytic", "grpo"):
                assert all(abs(a - b) <= abs(a) * ROUNDING_OF_ROOTS for a, b in zip(listed, counted, strict=True))
            else:
                assert listed == counted


@pytest.mark.parametrize("n", range(1, 8))
def test_max_at_k_counts_the_subsets_it_would_list(n: int) -> None:
    rewards = np.random.default_rng(n).normal(size=n).tolist()
    for k in range(1, n + 1):
        assert reference.max_at_k(rewards, k) == float(reference.rho([Fraction(reward) for reward in rewards], k))


def test_the_group_worked_by_hand() -> None:
    assert reference.advantages("s", [1, 1, 0, 0], 2) == [1 / 2, 1 / 2, 1 / 3, 1 / 3]
    assert reference.advantages("sloo", [1, 1, 1, 1], 2) == [-1 / 6] * 4


@pytest.mark.parametrize(("right", "k"), [(1, 1), (1, 3), (3, 2), (4, 4)])
def test_the_published_formulas_of_passk_analytic_for_0_1_rewards(right: int, k: int) -> None:
    n = 9
    wrong = n - right
    rate = 1 - reference.c(wrong, k) / reference.c(n, k)
    deviation = (rate * (1 - rate)) ** 0.5
    negative = (1 - rate - reference.c(wrong - 1, k - 1) / reference.c(n - 1, k - 1)) / deviation
    advantages = reference.advantages("passk_analytic", [1] * right + [0] * wrong, k, scale="mean")
    assert advantages == pytest.approx([(1 - rate) / deviation] * right + [negative] * wrong)
