"""The kernels: sorted groups and their weights in, advantages and estimates out.

Written in the gaps between neighbouring rewards, nothing cancels: a gap is exact or rounded once, ties add exactly
nothing, and an offset common to all rewards is gone at the first subtraction. Sums run over the sorted rewards one by
one, so that the order in which samples arrive cannot change a bit of the answer.

Arguments common to all: `rewards` (rewards,), `order` (rewards,) from `sorting_order`, `offsets` (groups + 1,); `row`
(groups,) says which row of a weight table belongs to each group (-1: none, and the answer is 0), and row r's weights of
the gaps stand from `starts[r]` on.
"""

from __future__ import annotations

import math

import numpy as np
from numba import types
from numpy.typing import NDArray

from pkpo_core.arrays import Float64s, Int64s
from pkpo_core.compilation import inlined, kernel, reads, writes

_f8, _i8 = types.float64, types.int64
_groups = (reads(_f8), reads(_i8), reads(_i8))
_table = (reads(_i8), reads(_i8))


@inlined
def _measure_gaps(values: Float64s, order: Int64s, gaps: Float64s) -> None:
    for j in range(values.size - 1):
        gaps[j] = values[order[j + 1]] - values[order[j]]


@inlined
def _measure_gaps_in(unit: float, lowest: int, values: Float64s, order: Int64s, gaps: Float64s) -> None:
    # Gaps below `lowest` have no weight, and could overflow in a small unit.
    for j in range(values.size - 1):
        gaps[j] = (values[order[j + 1]] - values[order[j]]) / unit if j >= lowest else 0.0


@inlined
def _climb(gaps: Float64s, anchored: float, first: Float64s, step: Float64s, order: Int64s, out: Float64s) -> None:
    lowest = 0.0
    for j in range(first.size):
        lowest += first[j] * gaps[j]
    advantage = anchored + lowest
    out[order[0]] = advantage
    for j in range(step.size):
        advantage += step[j] * gaps[j]
        out[order[j + 1]] = advantage


@inlined
def _variance(gaps: Float64s, at_most: Float64s, above: Float64s) -> float:
    # Var = sum_j above_j gap_j (at_most_j gap_j + 2 sum_{i<j} at_most_i gap_i): no term is negative, nothing cancels.
    variance = 0.0
    below = 0.0
    for j in range(above.size):
        variance += above[j] * gaps[j] * (at_most[j] * gaps[j] + 2.0 * below)
        below += at_most[j] * gaps[j]
    return variance


@inlined
def _largest_group(offsets: Int64s) -> int:
    largest = 0
    for g in range(offsets.size - 1):
        largest = max(largest, offsets[g + 1] - offsets[g])
    return largest


@kernel(types.void(*_groups, *_table, reads(_f8), reads(_f8), reads(_f8), writes(_f8)))
def gap_advantages(
    rewards: Float64s,
    order: Int64s,
    offsets: Int64s,
    row: Int64s,
    starts: Int64s,
    anchor: Float64s,
    first: Float64s,
    step: Float64s,
    out: Float64s,
) -> None:
    """Fills `out` with the advantages in gap form: A_1 = anchor x_n + first . gaps, A_{j+1} = A_j + step_j gap_j."""
    gaps = np.empty(_largest_group(offsets))
    for g in range(offsets.size - 1):
        start, stop = offsets[g], offsets[g + 1]
        values, group_order, group_out = rewards[start:stop], order[start:stop], out[start:stop]
        if row[g] < 0:
            group_out[:] = 0.0
            continue
        _measure_gaps(values, group_order, gaps)
        begin = starts[row[g]]
        end = begin + values.size - 1
        anchored = anchor[row[g]] * values[group_order[values.size - 1]]
        _climb(gaps, anchored, first[begin:end], step[begin:end], group_order, group_out)


@kernel(
    types.void(*_groups, *_table, reads(_f8), reads(_f8), reads(_f8), reads(_f8), reads(_i8), _f8, writes(_f8)),
)
def standardised_advantages(
    rewards: Float64s,
    order: Int64s,
    offsets: Int64s,
    row: Int64s,
    starts: Int64s,
    first: Float64s,
    step: Float64s,
    at_most: Float64s,
    above: Float64s,
    lowest: Int64s,
    epsilon: float,
    out: Float64s,
) -> None:
    """Fills `out` with the gap form divided by (the standard deviation that `at_most` and `above` describe + epsilon).

    Measured in the spread of the rewards that have weight, so that no square over- or underflows. Exactly 0 where the
    deviation is.
    """
    gaps = np.empty(_largest_group(offsets))
    for g in range(offsets.size - 1):
        start, stop = offsets[g], offsets[g + 1]
        values, group_order, group_out = rewards[start:stop], order[start:stop], out[start:stop]
        group_out[:] = 0.0
        r = row[g]
        if r < 0:
            continue
        spread = values[group_order[values.size - 1]] - values[group_order[lowest[r]]]
        if spread == 0.0:
            continue
        _measure_gaps_in(spread, lowest[r], values, group_order, gaps)
        begin = starts[r]
        end = begin + values.size - 1
        variance = _variance(gaps, at_most[begin:end], above[begin:end])
        if variance > 0.0:
            _climb(gaps, 0.0, first[begin:end], step[begin:end], group_order, group_out)
            group_out /= math.sqrt(variance) + epsilon / spread


@kernel(types.void(*_groups, _i8, *_table, reads(_f8), reads(_f8), reads(_f8), writes(_f8), writes(_f8)))
def maximum_estimates(
    rewards: Float64s,
    order: Int64s,
    offsets: Int64s,
    k: int,
    row: Int64s,
    starts: Int64s,
    above: Float64s,
    first: Float64s,
    step: Float64s,
    values_out: Float64s,
    errors_out: Float64s,
) -> None:
    """Fills max@k of each group, x_1 + above . gaps, and its jackknife standard error.

    The error is sqrt((n-1)/n sum_i centered_i^2), with `first` and `step` the weights of the centered gap form,
    measured in the spread of the rewards so that no square over- or underflows. Where k > n both are NaN, where k = n
    the error is.
    """
    size = _largest_group(offsets)
    gaps = np.empty(size)
    centered = np.empty(size)
    for g in range(offsets.size - 1):
        start, stop = offsets[g], offsets[g + 1]
        values, group_order = rewards[start:stop], order[start:stop]
        n = values.size
        values_out[g] = math.nan
        errors_out[g] = math.nan
        if k > n:
            continue
        begin = starts[row[g]]
        end = begin + n - 1
        _measure_gaps(values, group_order, gaps)
        above_smallest = 0.0
        for j in range(n - 1):
            above_smallest += above[begin + j] * gaps[j]
        values_out[g] = values[group_order[0]] + above_smallest
        if k == n:
            continue
        spread = values[group_order[n - 1]] - values[group_order[k - 1]]
        errors_out[g] = 0.0
        if spread > 0.0:
            _measure_gaps_in(spread, k - 1, values, group_order, gaps)
            _climb(gaps, 0.0, first[begin:end], step[begin:end], group_order, centered)
            squares = 0.0
            for i in range(n):
                squares += centered[group_order[i]] * centered[group_order[i]]
            errors_out[g] = spread * math.sqrt((n - 1) / n * squares)


@kernel(
    types.void(reads(_f8), reads(_f8), reads(_i8), writes(types.bool_)),
    types.void(reads(_f8), reads(types.float32), reads(_i8), writes(types.bool_)),
)
def mark_no_signal(
    rewards: Float64s, advantages: NDArray[np.floating], offsets: Int64s, no_signal: NDArray[np.bool_]
) -> None:
    """Fills whether a group's rewards are all equal, or its advantages all 0."""
    for g in range(offsets.size - 1):
        start, stop = offsets[g], offsets[g + 1]
        equal = 0
        zero = 0
        for i in range(start, stop):
            equal += rewards[i] == rewards[start]
            zero += advantages[i] == 0.0
        no_signal[g] = equal == stop - start or zero == stop - start
