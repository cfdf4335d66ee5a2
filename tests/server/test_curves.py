"""The curve of a run: what is kept of its groups is an even part, and what is summed is max@k."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import reference
from pkpo_core import RewardGroups
from pkpo_server.curves import CURVE_K, MOST_REWARDS, Curves, points, spread

REWARDS = st.integers(-3, 3).map(float)


@settings(deadline=None)
@given(st.lists(st.lists(REWARDS, min_size=1, max_size=9), min_size=1, max_size=6))
def test_points_are_the_sums_of_exact_estimates(groups: list[list[float]]) -> None:
    found = points(RewardGroups(np.concatenate(groups), np.array([len(group) for group in groups])))
    largest = max(map(len, groups))
    assert [point.k for point in found] == [k for k in CURVE_K if k <= largest]
    for point in found:
        exact = [reference.rho([Fraction(x) for x in group], point.k) for group in groups if len(group) >= point.k]
        assert point.groups == len(exact)
        assert point.positive == pytest.approx(float(sum((x for x in exact if x > 0), Fraction(0))))
        assert point.negative == pytest.approx(float(-sum((x for x in exact if x < 0), Fraction(0))))


def numbered(sizes: list[int] | int, number: int) -> RewardGroups:
    """Groups whose rewards all are the group's number."""
    each = np.full(number, sizes) if isinstance(sizes, int) else np.array(sizes)
    rewards = np.repeat(np.arange(number, dtype=float), each)
    return RewardGroups(rewards, sizes if isinstance(sizes, int) else each)


def numbers(part: RewardGroups) -> list[int]:
    """The groups that a part of numbered ones holds; fails where one is not whole."""
    firsts = part.rewards[part.offsets[:-1].astype(np.int64)]
    assert np.array_equal(part.rewards, np.repeat(firsts, part.sizes))
    return [int(first) for first in firsts]


@pytest.mark.parametrize("ragged", [False, True])
def test_every_group_of_a_large_batch_is_kept_equally_often(ragged: bool) -> None:
    number = 5000
    groups = numbered([3 + i % 2 * 2 for i in range(number)] if ragged else 4, number)
    step = -(-groups.rewards.size // MOST_REWARDS)
    assert step > 2
    parts = [spread(groups, turn) for turn in range(7, 7 + step)]
    assert all(part is not None and part.rewards.size <= 2 * MOST_REWARDS for part in parts)
    assert sorted(each for part in parts if part is not None for each in numbers(part)) == list(range(number))
    assert all((part.sizes == groups.sizes[numbers(part)]).all() for part in parts if part is not None)


def test_a_small_batch_is_kept_whole_and_of_a_huge_group_nothing() -> None:
    small = numbered(4, 3)
    assert spread(small, 5) is small
    huge = numbered(MOST_REWARDS + 1, 2)
    mixed = numbered([MOST_REWARDS + 1, 2, 2], 3)
    for turn in range(4):
        assert spread(huge, turn) is None
        part = spread(mixed, turn)
        assert part is None or 0 not in numbers(part)


def test_a_run_that_sends_much_is_kept_no_more_of_than_there_is_room() -> None:
    curves = Curves()
    for _ in range(100):
        curves.keep("greedy", numbered(4, 512))
    curves.keep("modest", numbered(4, 3))
    summed = dict(curves.summed(10))
    assert MOST_REWARDS <= 4 * summed["greedy"][0].groups <= MOST_REWARDS + 4 * 512
    assert summed["modest"][0].groups == 3
    assert not curves
    assert list(curves.summed(10)) == []


def test_those_that_wait_longest_are_summed_first() -> None:
    curves = Curves()
    for run in "abc":
        curves.keep(run, numbered(2, 1))
    assert [run for run, _ in curves.summed(2)] == ["a", "b"]
    assert curves
    assert [run for run, _ in curves.summed(2)] == ["c"]


@pytest.mark.parametrize("dtypes", [("f4", "f8"), ("f8", "f8")])
@pytest.mark.parametrize("sizes", [(4, 4), (2, 4)])
def test_batches_of_a_run_are_summed_together(dtypes: tuple[Any, Any], sizes: tuple[int, int]) -> None:
    curves = Curves()
    for dtype, size in zip(dtypes, sizes, strict=True):
        curves.keep("run", RewardGroups(np.array([0, 1, 0, 1, 1, 1, 0, 0], dtype), size))
    ((_, found),) = curves.summed(1)
    first = found[0]
    assert (first.k, first.groups, first.positive) == (1, sum(8 // size for size in sizes), sum(4 / n for n in sizes))
