"""PASSK_BOOTSTRAP: which subsets are drawn, and what becomes of them."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import reference
from core.samples import EXACT, KINDS, SIZES, bits, of_one_group, properties, rewards_of
from pkpo_core import Scale, Variant, transform

BOOTSTRAP = Variant.PASSK_BOOTSTRAP
seeds = st.integers(0, 2**64 - 1)


def some_ks(n: int) -> list[int]:
    """All of them in small groups, a dense selection in large ones."""
    return list(range(1, n + 1)) if n <= 17 else sorted({1, 2, 3, 4, 7, n // 3, n // 2, n // 2 + 1, n - 2, n - 1, n})


@pytest.mark.parametrize("n", [1, *SIZES])
def test_advantages_of_the_documented_subsets(n: int) -> None:
    rng = np.random.default_rng(n)
    for kind, sample in KINDS.items():
        for k in some_ks(n) if n <= 33 or kind in ("normal", "offset") else [2, n // 2]:
            rewards, seed, group = sample(rng, n), int(rng.integers(2**63)) * 2 + 1, int(rng.integers(1000))
            subsets = reference.bootstrap_subsets(n, k, seed, group)
            for scale in Scale:
                advantages = of_one_group(rewards, k, BOOTSTRAP, scale=scale, seed=seed, first_group=group)
                error = reference.error(
                    BOOTSTRAP.value, rewards.tolist(), k, advantages, scale=scale.value, subsets=subsets
                )
                assert error < EXACT, (kind, k, scale)


@properties
@given(data=st.data())
def test_rewards_meant_to_cause_trouble(data: Any) -> None:
    rewards = data.draw(st.lists(rewards_of(BOOTSTRAP), min_size=1, max_size=24))
    k, seed = data.draw(st.integers(1, len(rewards))), data.draw(seeds)
    subsets = reference.bootstrap_subsets(len(rewards), k, seed)
    advantages = of_one_group(rewards, k, BOOTSTRAP, seed=seed)
    assert reference.error(BOOTSTRAP.value, rewards, k, advantages, subsets=subsets) < EXACT


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 9, 33])
def test_subsets_are_distinct_and_as_many_as_there_are_samples_or_subsets(n: int) -> None:
    for k in range(1, n + 1):
        subsets = reference.bootstrap_subsets(n, k, seed=3, group=8)
        assert len({tuple(subset) for subset in subsets}) == len(subsets) == min(n, math.comb(n, k))
        assert all(len(set(subset)) == k and set(subset) <= set(range(n)) for subset in subsets)


def test_every_subset_is_drawn_as_often_as_any_other() -> None:
    """400 groups draw 5 of the 10 pairs of 5 each; a fair share is 200, with a deviation of 10."""
    drawn = Counter(tuple(subset) for group in range(400) for subset in reference.bootstrap_subsets(5, 2, 1, group))
    assert len(drawn) == 10
    assert all(abs(count - 200) < 40 for count in drawn.values())


def test_seeds_and_group_numbers_make_the_difference_and_nothing_else_does() -> None:
    rewards = np.tile(np.random.default_rng(4).normal(size=16), (3, 1))
    first = transform(rewards, 4, variant=BOOTSTRAP, seed=7).advantages
    assert bits(first) == bits(transform(rewards, 4, variant=BOOTSTRAP, seed=7).advantages)
    assert len({bits(row) for row in first}) == 3
    later = transform(rewards[1:], 4, variant=BOOTSTRAP, seed=7, first_group=1).advantages
    assert bits(later) == bits(first[1:])
    assert bits(first) != bits(transform(rewards, 4, variant=BOOTSTRAP, seed=8).advantages)


@pytest.mark.parametrize("first_group", [2**64 - 1, 2**63, 2**32])
def test_group_numbers_wrap_around_in_64_bits(first_group: int) -> None:
    rewards = np.random.default_rng(5).normal(size=(2, 8))
    advantages = transform(rewards, 3, variant=BOOTSTRAP, seed=2**64 - 1, first_group=first_group).advantages
    for i, group in enumerate(rewards.tolist()):
        subsets = reference.bootstrap_subsets(8, 3, 2**64 - 1, first_group + i)
        assert reference.error(BOOTSTRAP.value, group, 3, advantages[i], subsets=subsets) < EXACT


def test_it_tends_to_k_times_the_analytic_advantages() -> None:
    rewards = np.random.default_rng(6).normal(size=16)
    drawn = transform(np.tile(rewards, (4000, 1)), 4, variant=BOOTSTRAP, seed=1).advantages.mean(axis=0)
    analytic = of_one_group(rewards, 4, Variant.PASSK_ANALYTIC)
    np.testing.assert_allclose(drawn, 4 * analytic, atol=0.1 * np.abs(4 * analytic).max())
