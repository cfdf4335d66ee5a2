"""The order that sorts each group.

Tied rewards get identical advantages whatever their order, so that any sort will do: two-valued groups are partitioned,
small ones ranked by counting, which needs no branches, and large ones sorted by NumPy.
"""

from __future__ import annotations

import numpy as np
from numba import types
from numpy.typing import NDArray

from pkpo_core.arrays import Float64s, Int64s
from pkpo_core.compilation import inlined, kernel, reads, writes
from pkpo_core.layout import Layout

LARGEST_RANKED = 32


def sorting_order(layout: Layout, rewards: Float64s) -> Int64s:
    """For each group the indices that sort it, counted from the group's start, groups end to end.

    Args:
        layout: where each group begins and ends; no group is empty.
        rewards: shape (rewards,).
    """
    order = np.empty(rewards.size, np.int64)
    offsets = layout.offsets
    left = np.empty(layout.number_of_groups, np.bool_)
    _order_small(rewards, offsets, order, left)
    unsorted = np.flatnonzero(left)
    if unsorted.size == 0:
        return order
    if layout.uniform_size is not None:
        shape = (layout.number_of_groups, layout.uniform_size)
        order.reshape(shape)[unsorted] = np.argsort(rewards.reshape(shape)[unsorted], axis=1)
    else:
        for start, stop in zip(offsets[unsorted].tolist(), offsets[unsorted + 1].tolist(), strict=True):
            order[start:stop] = np.argsort(rewards[start:stop])
    return order


@inlined
def _partition(values: Float64s, order: Int64s) -> bool:
    """Sorts a group of at most two values; false, and nothing done, where it has more."""
    low = high = values[0]
    for value in values:
        low = min(low, value)
        high = max(high, value)
    lows = 0
    highs = 0
    for value in values:
        lows += value == low
        highs += value == high
    if low != high and lows + highs != values.size:
        return False
    next_low = 0
    next_high = lows if low != high else 0
    for i in range(values.size):
        if values[i] == low:
            order[next_low] = i
            next_low += 1
        else:
            order[next_high] = i
            next_high += 1
    return True


@inlined
def _rank(values: Float64s, order: Int64s) -> None:
    for i in range(values.size):
        value = values[i]
        rank = 0
        for j in range(i):
            rank += values[j] <= value
        for j in range(i + 1, values.size):
            rank += values[j] < value
        order[rank] = i


@kernel(types.void(reads(types.float64), reads(types.int64), writes(types.int64), writes(types.bool_)))
def _order_small(rewards: Float64s, offsets: Int64s, order: Int64s, left: NDArray[np.bool_]) -> None:
    for g in range(left.size):
        start, stop = offsets[g], offsets[g + 1]
        values, group_order = rewards[start:stop], order[start:stop]
        left[g] = False
        if not _partition(values, group_order):
            if values.size <= LARGEST_RANKED:
                _rank(values, group_order)
            else:
                left[g] = True
