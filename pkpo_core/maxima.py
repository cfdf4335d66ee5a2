"""The variants made of maxima of subsets: each group is reduced to the maxima of its blocks or of random subsets, a
sorted variant transforms the maxima, and each sample gets what its subsets got.

With m = floor(n/k) blocks of k, in scale SUM:

    NAIVE_PARTITIONED             S of the maxima at k = 1, which is maximum / m
    NAIVE_PARTITIONED_BASELINED   LOO of the maxima
    PASSK_FULL                    PASSK_ANALYTIC of the maxima at k = 1, which is their z-score; divided by n
    LOO_MINUS_ONE_PARTITIONED     TZSM of each block, times k/n
    PASSK_BOOTSTRAP               the z-scores of random subsets' maxima, summed over a sample's subsets; divided by n
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numba import types

from pkpo_core import gap
from pkpo_core.arrays import Flags, Float64s, Int64s, Positions
from pkpo_core.compilation import kernel, reads, writes
from pkpo_core.kernels import raise_statuses
from pkpo_core.layout import Layout, runs
from pkpo_core.order import sorting_order
from pkpo_core.subsets import Numbering, drawn_subsets
from pkpo_core.variants import Scale, Variant

_ONE = np.uint64(1)
_DRAWS_AT_ONCE = 1 << 18
_f8, _u8 = types.float64, types.uint64
_named = (reads(_u8), reads(_u8), reads(_u8), reads(_u8), reads(types.bool_))  # a slice of subsets

_OF_BLOCK_MAXIMA = {
    Variant.NAIVE_PARTITIONED: (Variant.S, Scale.SUM),
    Variant.NAIVE_PARTITIONED_BASELINED: (Variant.LOO, Scale.SUM),
    Variant.PASSK_FULL: (Variant.PASSK_ANALYTIC, Scale.MEAN),
}
VARIANTS = frozenset((*_OF_BLOCK_MAXIMA, Variant.LOO_MINUS_ONE_PARTITIONED, Variant.PASSK_BOOTSTRAP))


def fill_advantages(
    layout: Layout,
    rewards: Float64s,
    k: int | Int64s,
    variant: Variant,
    scale: Scale,
    numbering: Numbering,
    checkpoint: Callable[[], None],
    answer: gap.Answer,
) -> None:
    """Fills in the advantages of one of `VARIANTS`; samples beyond a group's last whole block get 0.

    Args:
        layout: where each group begins and ends.
        rewards: shape (rewards,).
        k: one for all groups or shape (groups,), legal for the variant; 0 where a group has none, whose advantages
            are 0.
        variant, scale: which, and the scale.
        numbering: what the bootstrap's subsets depend on.
        checkpoint: called between slices of the bootstrap's work.
        answer: to be filled in.
    """
    out = answer.advantages
    if variant is Variant.PASSK_BOOTSTRAP:
        _fill_from_random_subsets(layout, rewards, np.broadcast_to(k, layout.sizes.shape), numbering, checkpoint, out)
        _multiply(layout, out, _factor(layout, Scale.MEAN, scale))
    elif variant is Variant.LOO_MINUS_ONE_PARTITIONED:
        _fill_within_blocks(layout, rewards, k, scale, out)
    else:
        _fill_from_blocks(layout, rewards, k, variant, scale, out)
    raise_statuses(rewards, layout.offsets, answer.negligible, out, answer.statuses)


def _fill_from_blocks(
    layout: Layout, rewards: Float64s, k: int | Int64s, variant: Variant, scale: Scale, out: Float64s
) -> None:
    of_maxima, native = _OF_BLOCK_MAXIMA[variant]
    block, maxima_layout = _blocks(layout, k)
    maxima = np.empty(maxima_layout.total)
    _take_block_maxima(rewards, layout.offsets, block, maxima_layout.offsets, maxima)
    of_blocks = np.empty(maxima.size)
    _fill_sorted(
        maxima_layout, maxima, np.minimum(k, 1) if isinstance(k, np.ndarray) else 1, of_maxima, native, of_blocks
    )
    _give_to_blocks(of_blocks, maxima_layout.offsets, layout.offsets, block, out)
    _multiply(layout, out, _factor(layout, native, scale))


def _fill_within_blocks(layout: Layout, rewards: Float64s, k: int | Int64s, scale: Scale, out: Float64s) -> None:
    block, of_blocks = _blocks(layout, k)
    if isinstance(k, np.ndarray) or layout.uniform_size is None:
        blocks = of_blocks.sizes
        within = Layout(layout.total, np.repeat(block, blocks).view(np.int64))
        _fill_sorted(within, rewards, np.repeat(np.broadcast_to(k, blocks.shape), blocks), Variant.TZSM, Scale.SUM, out)
    else:
        _fill_sorted(Layout(layout.total, k), rewards, k, Variant.TZSM, Scale.SUM, out)
    _multiply(layout, out, block / layout.sizes)
    _multiply(layout, out, _factor(layout, Scale.SUM, scale))


def _blocks(layout: Layout, k: int | Int64s) -> tuple[Positions, Layout]:
    """The size of the blocks of each group, shape (groups,), and the layout of one sample for each block."""
    n = layout.uniform_size
    if n is not None and not isinstance(k, np.ndarray):
        return np.full(layout.number_of_groups, k, np.uint64), Layout(layout.number_of_groups * (n // k), n // k)
    block = np.where(np.asarray(k) > 0, k, layout.sizes)
    blocks = layout.sizes // block
    return block.view(np.uint64), Layout(int(blocks.sum()), blocks)


def _fill_from_random_subsets(
    layout: Layout, rewards: Float64s, k: Int64s, numbering: Numbering, checkpoint: Callable[[], None], out: Float64s
) -> None:
    out[:] = 0.0
    groups = np.flatnonzero(k)
    draws = layout.sizes * np.minimum(k, layout.sizes - k)
    for run in runs(draws[groups], _DRAWS_AT_ONCE):
        _give_scores(layout, rewards, groups[run], k, numbering, checkpoint, out)


def _give_scores(
    layout: Layout,
    rewards: Float64s,
    groups: Int64s,
    k: Int64s,
    numbering: Numbering,
    checkpoint: Callable[[], None],
    out: Float64s,
) -> None:
    """Adds to each sample of some groups the z-scores of its subsets' maxima."""
    n, k = layout.sizes[groups], k[groups]
    subsets = drawn_subsets(n, k, numbering.keys(groups), checkpoint)
    # Where 2k > n a subset is known by the samples it leaves out, and a sample gets minus the scores of the subsets
    # that leave it out: the same sum, since all scores sum to zero.
    left_out = 2 * k > n
    order = np.empty(0, np.uint64)
    if left_out.any():
        order = sorting_order(layout, rewards, groups[left_out].view(np.uint64))
    starts = layout.offsets[groups]
    count, size = subsets.count, subsets.size
    equal = layout.uniform_size is not None and bool((count == count[0]).all())
    of_subsets = Layout(int(count.sum()), int(count[0]) if equal else count.view(np.int64))
    maxima, scores = np.empty(of_subsets.total), np.empty(of_subsets.total)
    named = (of_subsets.offsets, size, subsets.starts, subsets.samples, left_out)
    _take_subset_maxima(rewards, order, starts, n.view(np.uint64), *named, maxima)
    _fill_sorted(of_subsets, maxima, 1, Variant.PASSK_ANALYTIC, Scale.MEAN, scores)
    _give_to_subsets(scores, starts, *named, out)


def _fill_sorted(
    layout: Layout, rewards: Float64s, k: int | Int64s, variant: Variant, scale: Scale, out: Float64s
) -> None:
    statuses = np.empty(layout.number_of_groups, np.uint8)
    gap.fill_advantages(layout, rewards, None, k, variant, scale, gap.Answer(out, statuses))


def _factor(layout: Layout, native: Scale, wanted: Scale) -> Float64s | None:
    """What turns each group's advantages of the native scale into the one wanted; None where they are the same."""
    if native is wanted:
        return None
    return layout.sizes.astype(np.float64) if wanted is Scale.MEAN else 1.0 / layout.sizes


def _multiply(layout: Layout, out: Float64s, factor: Float64s | None) -> None:
    """Multiplies each group by its factor."""
    n = layout.uniform_size
    if factor is None:
        return
    if n is None:
        out *= np.repeat(factor, layout.sizes)
    else:
        rows = out.reshape(-1, n)
        rows *= factor[:, np.newaxis]


@kernel(types.void(reads(_f8), reads(_u8), reads(_u8), reads(_u8), writes(_f8)))
def _take_block_maxima(
    rewards: Float64s, offsets: Positions, block: Positions, maxima_offsets: Positions, maxima: Float64s
) -> None:
    for g in range(np.uint64(block.size)):
        start = offsets[g]
        for b in range(maxima_offsets[g], maxima_offsets[g + _ONE]):
            largest = rewards[start]
            for p in range(start + _ONE, start + block[g]):
                largest = max(largest, rewards[p])
            maxima[b] = largest
            start += block[g]


@kernel(types.void(reads(_f8), reads(_u8), reads(_u8), reads(_u8), writes(_f8)))
def _give_to_blocks(
    of_blocks: Float64s, maxima_offsets: Positions, offsets: Positions, block: Positions, out: Float64s
) -> None:
    for g in range(np.uint64(block.size)):
        start = offsets[g]
        for b in range(maxima_offsets[g], maxima_offsets[g + _ONE]):
            for p in range(start, start + block[g]):
                out[p] = of_blocks[b]
            start += block[g]
        for p in range(start, offsets[g + _ONE]):
            out[p] = 0.0


@kernel(types.void(reads(_f8), reads(_u8), reads(_u8), reads(_u8), *_named, writes(_f8)))
def _take_subset_maxima(
    rewards: Float64s,
    order: Positions,
    starts: Positions,
    sizes: Positions,
    offsets: Positions,
    size: Positions,
    subset_starts: Positions,
    samples: Positions,
    left_out: Flags,
    maxima: Float64s,
) -> None:
    largest_size = np.uint64(0)
    for g in range(np.uint64(sizes.size)):
        largest_size = max(largest_size, sizes[g])
    left_out_of = np.full(largest_size, np.uint64(maxima.size))
    for g in range(np.uint64(sizes.size)):
        start, first = starts[g], subset_starts[g]
        for b in range(offsets[g], offsets[g + _ONE]):
            if left_out[g]:
                for p in range(first, first + size[g]):
                    left_out_of[samples[p]] = b
                rank = start + sizes[g] - _ONE
                while left_out_of[order[rank]] == b:
                    rank -= _ONE
                maxima[b] = rewards[start + order[rank]]
            else:
                largest = rewards[start + samples[first]]
                for p in range(first + _ONE, first + size[g]):
                    largest = max(largest, rewards[start + samples[p]])
                maxima[b] = largest
            first += size[g]


@kernel(types.void(reads(_f8), reads(_u8), *_named, writes(_f8)))
def _give_to_subsets(
    scores: Float64s,
    starts: Positions,
    offsets: Positions,
    size: Positions,
    subset_starts: Positions,
    samples: Positions,
    left_out: Flags,
    out: Float64s,
) -> None:
    for g in range(np.uint64(starts.size)):
        start, first = starts[g], subset_starts[g]
        for b in range(offsets[g], offsets[g + _ONE]):
            score = -scores[b] if left_out[g] else scores[b]
            for p in range(first, first + size[g]):
                out[start + samples[p]] += score
            first += size[g]
