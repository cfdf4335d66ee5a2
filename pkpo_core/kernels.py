"""The kernels: sorted groups and their weights in, advantages and estimates out.

Written in the gaps between neighbouring rewards, nothing cancels: a gap is exact or rounded once, ties add exactly
nothing, and an offset common to all rewards is gone at the first subtraction. Sums run over the sorted rewards one by
one, so that the order in which samples arrive cannot change a bit of the answer.

Arguments common to all: `rewards` (rewards,), `order` (rewards,) from `sorting_order`, `offsets` (groups + 1,) of the
groups' beginnings and ends; `groups` the numbers of those to work on; `row` (groups,) says which row of a weight table
belongs to each group, and row r's weights of the gaps stand from `row_starts[r]` on.
`out` (rewards,) receives the advantages and `statuses` (groups,) are raised to NO_SIGNAL where all rewards are equal or
no advantage is above `negligible`, the largest magnitude that the answer's dtype rounds to 0. Advantages ascend with
the rewards, so that the first and the last tell.

Loops over groups and the loops over samples within are not split into functions: to hand arrays on costs as much as the
work on a small group.
"""

from __future__ import annotations

import math

import numpy as np
from numba import types

from pkpo_core.arrays import Flags, Float64s, Positions, Statuses
from pkpo_core.compilation import inlined, kernel, reads, writes
from pkpo_core.order import KEYS_IN_TABLE, MOST_SIDE_BY_SIDE, end_of_block, sort_block
from pkpo_core.variants import GroupStatus

_ONE, _TWO = np.uint64(1), np.uint64(2)
_NO_SIGNAL = np.uint8(GroupStatus.NO_SIGNAL)

_f8, _u1, _u8, _flag = types.float64, types.uint8, types.uint64, types.bool_
_sorted = (reads(_f8), reads(_u8), reads(_u8), reads(_u8))
_table = (reads(_u8), reads(_u8))
_form = (reads(_f8), reads(_flag), reads(_f8), reads(_f8))
_standardised = (reads(_f8), reads(_f8), reads(_f8), reads(_f8), reads(_u8), _f8)
_answer = (_f8, writes(_f8), writes(_u1))


@inlined
def _climb(
    rewards: Float64s,
    indices: Positions,
    index_starts: Positions,
    index_stride: int,
    offsets: Positions,
    groups: Positions,
    begin: int,
    end: int,
    row: Positions,
    row_starts: Positions,
    anchor: Float64s,
    from_zero: Flags,
    first: Float64s,
    step: Float64s,
    negligible: float,
    out: Float64s,
    statuses: Statuses,
    skipped: Flags,
) -> None:
    """A_1 = first . gaps + anchor x_n, A_{j+1} = A_j + step_j gap_j, for groups `begin` to `end` of `groups`."""
    for i in range(begin, end):
        group = groups[i]
        if skipped[group]:
            continue
        start, at, r = offsets[group], index_starts[i], row[group]
        ranks = range(_ONE, offsets[group + _ONE] - start)
        weights = row_starts[r]
        smallest = rewards[start + indices[at]]
        lowest = 0.0
        if not from_zero[r]:
            below = smallest
            for j in ranks:
                above = rewards[start + indices[at + j * index_stride]]
                lowest += first[weights + j - _ONE] * (above - below)
                below = above
            lowest += anchor[r] * below
        out[start + indices[at]] = lowest
        advantage, below = lowest, smallest
        for j in ranks:
            index = start + indices[at + j * index_stride]
            above = rewards[index]
            advantage += step[weights + j - _ONE] * (above - below)
            out[index] = advantage
            below = above
        if below == smallest or (lowest >= -negligible and advantage <= negligible):
            statuses[group] = max(statuses[group], _NO_SIGNAL)


@kernel(types.void(reads(_f8), reads(_u8), *_sorted[1:], *_table, *_form, *_answer))
def gap_advantages(
    rewards: Float64s,
    order: Positions,
    order_starts: Positions,
    offsets: Positions,
    groups: Positions,
    row: Positions,
    row_starts: Positions,
    anchor: Float64s,
    from_zero: Flags,
    first: Float64s,
    step: Float64s,
    negligible: float,
    out: Float64s,
    statuses: Statuses,
) -> None:
    """Fills `out` with the advantages in gap form, from an order that begins for each of `groups` at `order_starts`."""
    table = (row, row_starts)
    form = (anchor, from_zero, first, step)
    none = np.zeros(offsets.size, np.bool_)
    every = (np.uint64(0), np.uint64(groups.size))
    _climb(rewards, order, order_starts, _ONE, offsets, groups, *every, *table, *form, negligible, out, statuses, none)


@inlined
def _fill_two_valued(
    rewards: Float64s,
    offsets: Positions,
    groups: Positions,
    row: Positions,
    row_starts: Positions,
    anchor: Float64s,
    from_zero: Flags,
    first: Float64s,
    step: Float64s,
    negligible: float,
    out: Float64s,
    statuses: Statuses,
    others: Positions,
) -> np.uint64:
    """The gap form of groups of at most two values; the numbers of the others go to `others`, their count is returned.

    Only the gap above the m smaller rewards is not 0: A_low = first_m gap + anchor x_n, A_high = A_low + step_m gap. So
    counting does for sorting, and the answer is that of the climb to the bit.
    """
    number: np.uint64 = np.uint64(0)
    for group in groups:
        start, stop, r = offsets[group], offsets[group + _ONE], row[group]
        # The first three rewards tell most groups of more values. Nothing here branches on what a coin decides.
        second, third = min(start + _ONE, stop - _ONE), min(start + _TWO, stop - _ONE)
        one, two, three = rewards[start], rewards[second], rewards[third]
        if (one != two) & (two != three) & (three != one):
            others[number] = group
            number += _ONE
            continue
        other = start
        for p in range(start, stop):
            other = max(other, p if rewards[p] != one else start)
        low, high = min(one, rewards[other]), max(one, rewards[other])
        lows = np.uint64(0)
        either = np.uint64(0)
        for p in range(start, stop):
            lows += np.uint64(rewards[p] == low)
            either += np.uint64(rewards[p] == low) | np.uint64(rewards[p] == high)
        if either < stop - start:
            others[number] = group
            number += _ONE
            continue
        gap = high - low
        weight = row_starts[r] + min(lows, stop - start - _ONE)
        of_low = 0.0
        if not from_zero[r]:
            if stop - start > _ONE:
                of_low += first[weight - _ONE] * gap
            of_low += anchor[r] * high
        of_high = of_low
        if stop - start > _ONE:
            of_high += step[weight - _ONE] * gap
        for p in range(start, stop):
            out[p] = of_low if rewards[p] == low else of_high
        if gap == 0.0 or (of_low >= -negligible and of_high <= negligible):
            statuses[group] = max(statuses[group], _NO_SIGNAL)
    return number


@kernel(types.boolean(reads(_f8), reads(_u8), reads(_u8), _u8, *_table, *_form, *_answer, writes(_flag)))
def small_gap_advantages(
    rewards: Float64s,
    offsets: Positions,
    groups: Positions,
    largest: int,
    row: Positions,
    row_starts: Positions,
    anchor: Float64s,
    from_zero: Flags,
    first: Float64s,
    step: Float64s,
    negligible: float,
    out: Float64s,
    statuses: Statuses,
    left: Flags,
) -> bool:
    """Does what `gap_advantages` does, for groups that it sorts itself, of ascending sizes.

    Marks those left undone, larger ones and those that keys do not sort, and says whether there are any.
    """
    unsorted = np.empty(groups.size, np.uint64)
    table = (row, row_starts)
    form = (anchor, from_zero, first, step)
    number = _fill_two_valued(rewards, offsets, groups, *table, *form, negligible, out, statuses, unsorted)
    if number == 0:
        return False
    keys = np.empty(KEYS_IN_TABLE, np.int64)
    indices = keys.view(np.uint64)
    alike = np.empty(MOST_SIDE_BY_SIDE, np.int64)
    starts = np.empty(number, np.uint64)
    sizes = np.empty(number, np.uint64)
    lanes = np.empty(number, np.uint64)
    for i in range(number):
        starts[i] = offsets[unsorted[i]]
        sizes[i] = offsets[unsorted[i] + _ONE] - offsets[unsorted[i]]

    any_left = False
    begin = np.uint64(0)
    while begin < number and sizes[begin] <= largest:
        end = end_of_block(sizes, begin, largest)
        any_left |= sort_block(rewards, unsorted, starts, sizes, begin, end, keys, alike, left)
        for i in range(begin, end):
            lanes[i] = i - begin
        block = (lanes, end - begin, offsets, unsorted, begin, end)
        _climb(rewards, indices, *block, *table, *form, negligible, out, statuses, left)
        begin = end
    for i in range(begin, number):
        left[unsorted[i]] = any_left = True
    return any_left


@kernel(types.void(*_sorted, *_table, *_standardised, *_answer))
def standardised_advantages(
    rewards: Float64s,
    order: Positions,
    offsets: Positions,
    groups: Positions,
    row: Positions,
    row_starts: Positions,
    first: Float64s,
    step: Float64s,
    at_most: Float64s,
    above: Float64s,
    lowest: Positions,
    epsilon: float,
    negligible: float,
    out: Float64s,
    statuses: Statuses,
) -> None:
    """Fills `out` with the gap form divided by (the standard deviation that `at_most` and `above` describe + epsilon).

    Var = sum_j above_j gap_j (at_most_j gap_j + 2 sum_{i<j} at_most_i gap_i): no term is negative, nothing cancels.
    Gaps are measured in the spread of the rewards that have weight, those from `lowest` on, so that no square over- or
    underflows. Exactly 0 where the deviation is.
    """
    for group in groups:
        start, stop, r = offsets[group], offsets[group + _ONE], row[group]
        least, weights = lowest[r], row_starts[r]
        ranks = range(least + _ONE, stop - start)
        smallest = rewards[start + order[start + least]]
        spread = rewards[start + order[stop - _ONE]] - smallest
        variance = 0.0
        lowest_advantage = 0.0
        if spread > 0.0:
            below = smallest
            covered = 0.0
            for j in ranks:
                reward = rewards[start + order[start + j]]
                gap = (reward - below) / spread
                variance += above[weights + j - _ONE] * gap * (at_most[weights + j - _ONE] * gap + 2.0 * covered)
                covered += at_most[weights + j - _ONE] * gap
                lowest_advantage += first[weights + j - _ONE] * gap
                below = reward
        if variance == 0.0:
            for p in range(start, stop):
                out[p] = 0.0
            statuses[group] = max(statuses[group], _NO_SIGNAL)
            continue
        deviation = math.sqrt(variance) + epsilon / spread
        for j in range(least + _ONE):
            out[start + order[start + j]] = lowest_advantage / deviation
        advantage, below = lowest_advantage, smallest
        for j in ranks:
            index = start + order[start + j]
            advantage += step[weights + j - _ONE] * ((rewards[index] - below) / spread)
            out[index] = advantage / deviation
            below = rewards[index]
        if lowest_advantage / deviation >= -negligible and advantage / deviation <= negligible:
            statuses[group] = max(statuses[group], _NO_SIGNAL)


@kernel(types.void(*_sorted, _u8, *_table, reads(_f8), reads(_f8), reads(_f8), writes(_f8), writes(_f8)))
def maximum_estimates(
    rewards: Float64s,
    order: Positions,
    offsets: Positions,
    groups: Positions,
    k: int,
    row: Positions,
    row_starts: Positions,
    above: Float64s,
    first: Float64s,
    step: Float64s,
    values_out: Float64s,
    errors_out: Float64s,
) -> None:
    """Fills max@k of each group, x_1 + above . gaps, and its jackknife standard error.

    The error is sqrt((n-1)/n sum_i centered_i^2), with `first` and `step` the weights of the centered gap form, whose
    values are the same for the k smallest rewards; measured in the spread of the others, so that no square over- or
    underflows. Where k = n it is NaN; groups have at least k samples.
    """
    for group in groups:
        start, n = offsets[group], offsets[group + _ONE] - offsets[group]
        weights = row_starts[row[group]]
        smallest = below = rewards[start + order[start]]
        gained = 0.0
        for j in range(_ONE, n):
            reward = rewards[start + order[start + j]]
            gained += above[weights + j - _ONE] * (reward - below)
            below = reward
        values_out[group] = smallest + gained
        errors_out[group] = math.nan
        if k == n:
            continue
        spread = below - rewards[start + order[start + k - _ONE]]
        errors_out[group] = 0.0
        if spread > 0.0:
            centered = 0.0
            below = rewards[start + order[start + k - _ONE]]
            for j in range(k, n):
                reward = rewards[start + order[start + j]]
                centered += first[weights + j - _ONE] * ((reward - below) / spread)
                below = reward
            squares = k * (centered * centered)
            below = rewards[start + order[start + k - _ONE]]
            for j in range(k, n):
                reward = rewards[start + order[start + j]]
                centered += step[weights + j - _ONE] * ((reward - below) / spread)
                squares += centered * centered
                below = reward
            errors_out[group] = spread * math.sqrt((n - _ONE) / n * squares)


@kernel(types.void(reads(_f8), reads(_u8), *_answer))
def raise_statuses(rewards: Float64s, offsets: Positions, negligible: float, out: Float64s, statuses: Statuses) -> None:
    """Raises to NO_SIGNAL the status of each group whose rewards are all equal, or whose advantages are all 0."""
    for group in range(np.uint64(statuses.size)):
        start, stop = offsets[group], offsets[group + _ONE]
        different = start + _ONE
        while different < stop and rewards[different] == rewards[start]:
            different += _ONE
        nonzero = start
        while nonzero < stop and abs(out[nonzero]) <= negligible:
            nonzero += _ONE
        if different == stop or nonzero == stop:
            statuses[group] = max(statuses[group], _NO_SIGNAL)
