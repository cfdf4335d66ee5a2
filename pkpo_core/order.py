"""The order that sorts each group.

Tied rewards get identical advantages whatever their order, so that any sort will do. Large groups are sorted by NumPy;
small ones side by side, many at once: row i of a table holds sample i of each of a block's groups, and a sorting
network, whose comparisons do not depend on what is compared, exchanges whole rows, which the compiler makes vector
instructions of.

In the table a sample is one number, its key: the reward as an integer that sorts alike, with the sample's index in the
lowest bits. Rewards that differ in those bits only can come out in the wrong order, near their places, and are inserted
where they belong. Where that takes too long, for most of a group is alike, the block is sorted again with keys of
another kind: how far the reward is above the group's smallest, with the index below it, so that no bit is lost. Groups
whose rewards are too far apart for that, and yet mostly alike, are left to NumPy.

An order holds indices counted from the start of the group: first that of its smallest reward, last of its largest.
"""

from __future__ import annotations

import numpy as np
from numba import types

from pkpo_core.arrays import Flags, Float64s, Int64s, Positions
from pkpo_core.compilation import inlined, kernel, reads, writes
from pkpo_core.layout import Layout

MOST_SIDE_BY_SIDE = np.uint64(64)
KEYS_IN_TABLE = np.uint64(4096)  # what the first-level cache holds
_LARGEST_OF_ONE_SIZE = 64  # beyond, one call of NumPy that sorts all groups is faster
_LARGEST_OF_MANY_SIZES = 256  # beyond, a call of NumPy for each group is hardly slower
_MAGNITUDE = (1 << 63) - 1
_ABOVE_ALL_REWARDS = _MAGNITUDE
_MOVES_A_SAMPLE = np.uint64(6)
_ONE, _FOUR = np.uint64(1), np.uint64(4)
_f8, _u8 = types.float64, types.uint64


def sorting_order(layout: Layout, rewards: Float64s, groups: Positions) -> Positions:
    """The order of some of the groups, each in its place in an array of shape (rewards,); other places are undefined.

    Args:
        layout: where each group begins and ends; no group is empty.
        rewards: shape (rewards,).
        groups: the numbers of those to sort, ascending.
    """
    largest = largest_side_by_side(layout)
    if groups.size == layout.number_of_groups and layout.uniform_size is not None and layout.uniform_size > largest:
        return order_by_numpy(layout, rewards, groups)
    order = np.empty(rewards.size, np.uint64)
    left = np.zeros(layout.number_of_groups, np.bool_)
    if _sort_side_by_side(rewards, layout.offsets, by_size(layout, groups), largest, order, left):
        unsorted = np.flatnonzero(left).view(np.uint64)
        order[np.repeat(left, layout.sizes)] = order_by_numpy(layout, rewards, unsorted)
    return order


def order_by_numpy(layout: Layout, rewards: Float64s, groups: Positions) -> Positions:
    """The order of some of the groups, end to end, by NumPy alone.

    Args:
        layout: where each group begins and ends.
        rewards: shape (rewards,).
        groups: the numbers of those to sort, ascending.
    """
    n = layout.uniform_size
    if n is not None:
        first, last = int(groups[0]), int(groups[-1])
        rows = rewards.reshape(-1, n)
        rows = rows[first : last + 1] if last - first == groups.size - 1 else rows[groups]
        return np.argsort(rows, axis=1).view(np.uint64).reshape(-1)
    starts, stops = layout.offsets[:-1][groups].tolist(), layout.offsets[1:][groups].tolist()
    orders = [np.argsort(rewards[start:stop]) for start, stop in zip(starts, stops, strict=True)]
    return np.concatenate(orders).view(np.uint64)


def largest_side_by_side(layout: Layout) -> int:
    """The size up to which groups of a batch are sorted side by side."""
    return _LARGEST_OF_MANY_SIZES if layout.uniform_size is None else _LARGEST_OF_ONE_SIZE


def by_size(layout: Layout, groups: Positions) -> Positions:
    """The groups by ascending size."""
    if layout.uniform_size is not None:
        return groups
    sizes = layout.sizes[groups]
    if sizes.max() < 1 << 16:
        sizes = sizes.astype(np.uint16)  # which NumPy sorts by radix
    return groups[np.argsort(sizes, kind="stable")]


@inlined
def end_of_block(sizes: Positions, begin: int, largest: int) -> int:
    """Where a block of groups of about one size ends, of ascending sizes and not beyond `largest`."""
    roof = min(sizes[begin] + sizes[begin] // _FOUR, largest)
    most = min(begin + min(MOST_SIDE_BY_SIDE, KEYS_IN_TABLE // roof), np.uint64(sizes.size))
    end: int = begin + _ONE
    while end < most and sizes[end] <= roof:
        end += _ONE
    return end


@inlined
def _fill_table(bits: Int64s, first: int, n: int, width: int, table: Int64s) -> None:
    for i in range(n):
        for lane in range(width):
            table[i * width + lane] = bits[first + lane * n + i]


@inlined
def _fill_padded_table(
    bits: Int64s, starts: Positions, sizes: Positions, begin: int, width: int, n: int, table: Int64s
) -> None:
    for lane in range(width):
        start, size = starts[begin + lane], sizes[begin + lane]
        for i in range(size):
            table[i * width + lane] = bits[start + i]
        for i in range(size, n):
            table[i * width + lane] = _ABOVE_ALL_REWARDS


@inlined
def _make_keys(table: Int64s, n: int, width: int, index_bits: int) -> None:
    for i in range(n):
        index = np.int64(i)
        for p in range(i * width, i * width + width):
            table[p] = (table[p] ^ (table[p] >> 63 & _MAGNITUDE)) & ~index_bits | index


@inlined
def _make_exact_keys(table: Int64s, sizes: Positions, begin: int, width: int, index_bits: int) -> None:
    for lane in range(width):
        stop = sizes[begin + lane] * width + lane
        lowest, highest = _ABOVE_ALL_REWARDS, -_ABOVE_ALL_REWARDS
        for p in range(lane, stop, width):
            sortable = table[p] ^ (table[p] >> 63 & _MAGNITUDE)
            lowest, highest = min(lowest, sortable), max(highest, sortable)
        # In halves, for of opposite signs they may be further apart than an integer says.
        fits = (highest >> 1) - (lowest >> 1) < _MAGNITUDE // (index_bits + 1) >> 1
        for p in range(lane, stop, width):
            index = np.int64((p - lane) // width)
            sortable = table[p] ^ (table[p] >> 63 & _MAGNITUDE)
            table[p] = ((sortable - lowest) * (index_bits + 1) if fits else sortable & ~index_bits) | index


@inlined
def _exchange(table: Int64s, low: int, high: int, run: int) -> None:
    for i in range(run):
        one, other = table[low + i], table[high + i]
        table[low + i] = min(one, other)
        table[high + i] = max(one, other)


@inlined
def _sort_rows(table: Int64s, n: int, width: int) -> None:
    # Batcher's merge exchange (Knuth, The Art of Computer Programming, algorithm 5.2.2M); neighbouring rows that are
    # exchanged with rows at the same distance are taken in one run.
    top = _ONE
    while top + top < n:
        top += top
    p = top
    while p > 0:
        q, r, distance = top, np.uint64(0), p
        while True:
            for i in range(r, n - distance, p + p):
                _exchange(table, i * width, (i + distance) * width, min(p, n - distance - i) * width)
            if q == p:
                break
            distance, q, r = q - p, q >> _ONE, p
        p >>= _ONE


@inlined
def _count_alike(table: Int64s, n: int, width: int, index_bits: int, alike: Int64s) -> None:
    for lane in range(width):
        alike[lane] = 0
    for i in range(n - _ONE):
        for lane in range(width):
            difference = table[i * width + lane] ^ table[(i + _ONE) * width + lane]
            alike[lane] += difference & ~index_bits == 0


@inlined
def _put_right(
    rewards: Float64s,
    groups: Positions,
    starts: Positions,
    sizes: Positions,
    begin: int,
    width: int,
    indices: Positions,
    alike: Int64s,
    left: Flags,
) -> bool:
    """Inserts what came out in the wrong place, which is near the right one; marks groups where it is too much."""
    any_left = False
    for lane in range(width):
        moves = np.uint64(0)
        most = _MOVES_A_SAMPLE * sizes[begin + lane]
        if alike[lane] > 0:
            start = starts[begin + lane]
            for j in range(_ONE, sizes[begin + lane]):
                index = indices[j * width + lane]
                reward = rewards[start + index]
                i = j
                while i > 0 and moves < most and rewards[start + indices[(i - _ONE) * width + lane]] > reward:
                    indices[i * width + lane] = indices[(i - _ONE) * width + lane]
                    i -= _ONE
                    moves += _ONE
                indices[i * width + lane] = index
        left[groups[begin + lane]] = moves >= most
        any_left |= moves >= most
    return any_left


@inlined
def sort_block(
    rewards: Float64s,
    groups: Positions,
    starts: Positions,
    sizes: Positions,
    begin: int,
    end: int,
    table: Int64s,
    alike: Int64s,
    left: Flags,
) -> bool:
    """Sorts the groups of a block: lane l of row j of the table becomes the index of the j-th smallest of group l.

    Marks the groups that keys do not sort, and says whether there are any. `alike` is room to count in.
    """
    bits, indices = rewards.view(np.int64), table.view(np.uint64)
    width, n = end - begin, sizes[end - _ONE]
    index_bits = np.int64(1)
    while index_bits < np.int64(n):
        index_bits += index_bits
    index_bits -= 1
    exactly = False
    while True:
        if sizes[begin] == n and starts[end - _ONE] - starts[begin] == (width - _ONE) * n:
            _fill_table(bits, starts[begin], n, width, table)
        else:
            _fill_padded_table(bits, starts, sizes, begin, width, n, table)
        if exactly:
            _make_exact_keys(table, sizes, begin, width, index_bits)
        else:
            _make_keys(table, n, width, index_bits)
        _sort_rows(table, n, width)
        _count_alike(table, n, width, index_bits, alike)
        for p in range(n * width):
            table[p] &= index_bits
        any_left: bool = _put_right(rewards, groups, starts, sizes, begin, width, indices, alike, left)
        if exactly or not any_left:
            return any_left
        exactly = True


@kernel(types.boolean(reads(_f8), reads(_u8), reads(_u8), _u8, writes(_u8), writes(types.bool_)))
def _sort_side_by_side(
    rewards: Float64s, offsets: Positions, groups: Positions, largest: int, order: Positions, left: Flags
) -> bool:
    """Sorts the given groups, whose sizes ascend, marks those it leaves (larger ones, and those that keys do not
    sort), and says whether there are any."""
    table = np.empty(KEYS_IN_TABLE, np.int64)
    indices = table.view(np.uint64)
    alike = np.empty(MOST_SIDE_BY_SIDE, np.int64)
    number = np.uint64(groups.size)
    starts = np.empty(number, np.uint64)
    sizes = np.empty(number, np.uint64)
    for i in range(number):
        starts[i] = offsets[groups[i]]
        sizes[i] = offsets[groups[i] + _ONE] - offsets[groups[i]]
    any_left = False
    begin = np.uint64(0)
    while begin < number and sizes[begin] <= largest:
        end = end_of_block(sizes, begin, largest)
        any_left |= sort_block(rewards, groups, starts, sizes, begin, end, table, alike, left)
        width = end - begin
        for lane in range(width):
            for j in range(sizes[begin + lane]):
                order[starts[begin + lane] + j] = indices[j * width + lane]
        begin = end
    for i in range(begin, number):
        left[groups[i]] = any_left = True
    return any_left
