"""The curve of a run: what is drawn stands for all, and what is summed is max@k."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import reference
from pkpo_core import RewardGroups
from pkpo_server.curves import CURVE_K, LARGEST_REWARD, MOST_REWARDS, Curves, Sample, drawn, points

REWARDS = st.integers(-3, 3).map(float)


@settings(deadline=None)
@given(st.lists(st.lists(REWARDS, min_size=1, max_size=9), min_size=1, max_size=6), st.integers(1, 5))
def test_points_are_the_sums_of_exact_estimates(groups: list[list[float]], weight: int) -> None:
    batch = RewardGroups(np.concatenate(groups), np.array([len(group) for group in groups]))
    found = points([Sample(batch, weight)])
    largest = max(map(len, groups))
    assert [point.k for point in found] == [k for k in CURVE_K if k <= largest]
    for point in found:
        exact = [reference.rho([Fraction(x) for x in group], point.k) for group in groups if len(group) >= point.k]
        assert point.groups == weight * len(exact)
        assert point.positive == pytest.approx(weight * float(sum((x for x in exact if x > 0), Fraction(0))))
        assert point.negative == pytest.approx(weight * float(-sum((x for x in exact if x < 0), Fraction(0))))


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
def test_from_wherever_one_begins_each_group_is_drawn_by_one(ragged: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    number, step = 500, 7
    groups = numbered([3 + i % 2 * 2 for i in range(number)] if ragged else 4, number)
    met = []
    for start in range(step):
        monkeypatch.setattr("random.randrange", lambda _, start=start: start)
        sample = drawn(Sample(groups, 3), step)
        assert sample is not None
        assert sample.weight == 3 * step
        assert (sample.groups.sizes == groups.sizes[numbers(sample.groups)]).all()
        met += numbers(sample.groups)
    assert sorted(met) == list(range(number))


def test_groups_that_alone_take_too_long_are_not_drawn() -> None:
    huge, mixed = numbered(MOST_REWARDS + 1, 2), numbered([MOST_REWARDS + 1, 2, 2], 3)
    for _ in range(20):
        assert drawn(Sample(huge, 1), 2) is None
        sample = drawn(Sample(mixed, 1), 2)
        assert sample is not None
        assert 0 not in numbers(sample.groups)


def curve(batches: list[RewardGroups], ticks: int = 1) -> dict[int, tuple[float, float]]:
    """For each k the groups and the sum that a run's counters would have, summed in so many ticks."""
    curves, sums = Curves(), {k: np.zeros(2) for k in CURVE_K}
    for i, batch in enumerate(batches):
        curves.keep("run", batch)
        if (i + 1) % ticks == 0 or i + 1 == len(batches):
            for point in curves.summed()[1]:
                sums[point.k] += point.groups, point.positive - point.negative
            assert not curves
    return {k: (float(groups), float(total)) for k, (groups, total) in sums.items()}


def solved(groups: int, n: int, share: float) -> RewardGroups:
    """Groups of which the first are all solved, and the rest not at all."""
    return RewardGroups(np.repeat((np.arange(groups) < share * groups).astype(float), n), n)


@pytest.mark.parametrize(
    "batches",
    [
        # Those solved arrive first, in one window.
        [solved(256, 16, 1.0)] * 4 + [solved(256, 16, 0.0)] * 4,
        # Much is drawn of one, and of the other all is taken.
        [solved(2048, 16, 1.0), solved(128, 16, 0.0)] * 4,
        # Every other group is solved, and every other one is drawn.
        [RewardGroups(np.tile(np.repeat([0.0, 1.0], 16), 256), 16)] * 8,
    ],
    ids=["the solved first", "large and small batches", "every other"],
)
@pytest.mark.parametrize("ticks", [1, 8])
def test_the_means_are_those_of_all_groups(batches: list[RewardGroups], ticks: int) -> None:
    """On average over what is drawn: within five standard errors of 300 repetitions, and a curve of chance alone."""
    all_groups = sum(batch.number_of_groups for batch in batches)
    all_solved = sum(batch.rewards.sum() / batch.layout.uniform_size for batch in batches if batch.layout.uniform_size)
    found = np.array([curve(batches, ticks)[1] for _ in range(300)])
    for column, wanted in zip(found.T, (all_groups, all_solved), strict=True):
        error = column.std() / np.sqrt(column.size)
        assert abs(column.mean() - wanted) <= 5 * error + 1e-9 * wanted


def test_a_run_that_sends_much_is_kept_no_more_of_than_there_is_room() -> None:
    curves = Curves()
    for _ in range(300):
        curves.keep("greedy", numbered(4, 512))
        assert all(kept.rewards <= MOST_REWARDS for kept in curves._kept.values())
    curves.keep("modest", numbered(4, 3))
    run, found = curves.summed()
    assert run == "greedy"
    assert found[0].groups == pytest.approx(300 * 512, rel=0.5)
    run, found = curves.summed()
    assert (run, found[0].groups) == ("modest", 3)
    assert not curves


def test_a_reward_that_would_drown_the_others_is_left_out_with_its_group() -> None:
    batch = RewardGroups(np.array([0.0, 1.0, 0.0, 2 * LARGEST_REWARD, -2 * LARGEST_REWARD, 1.0]), 2)
    for point in points([Sample(batch, 1)]):
        assert (point.groups, point.negative) == (1, 0)
        assert point.positive <= 1


@pytest.mark.parametrize("dtypes", [("f4", "f8"), ("f8", "f8")])
@pytest.mark.parametrize("sizes", [(4, 4), (2, 4)])
def test_batches_of_a_run_are_summed_together(dtypes: tuple[Any, Any], sizes: tuple[int, int]) -> None:
    curves = Curves()
    for dtype, size in zip(dtypes, sizes, strict=True):
        curves.keep("run", RewardGroups(np.array([0, 1, 0, 1, 1, 1, 0, 0], dtype), size))
    first = curves.summed()[1][0]
    assert (first.k, first.groups, first.positive) == (1, sum(8 // size for size in sizes), sum(4 / n for n in sizes))
