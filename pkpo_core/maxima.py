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
from pkpo_core.arrays import Float64s, Int64s
from pkpo_core.compilation import kernel, reads, writes
from pkpo_core.layout import Layout
from pkpo_core.order import sorting_order
from pkpo_core.subsets import Numbering, chosen_samples
from pkpo_core.variants import Scale, Variant

_f8, _i8 = types.float64, types.int64

_OF_BLOCK_MAXIMA = {
    Variant.NAIVE_PARTITIONED: (Variant.S, Scale.SUM),
    Variant.NAIVE_PARTITIONED_BASELINED: (Variant.LOO, Scale.SUM),
    Variant.PASSK_FULL: (Variant.PASSK_ANALYTIC, Scale.MEAN),
}
VARIANTS = frozenset((*_OF_BLOCK_MAXIMA, Variant.LOO_MINUS_ONE_PARTITIONED, Variant.PASSK_BOOTSTRAP))


def fill_advantages(
    layout: Layout,
    rewards: Float64s,
    k: Int64s,
    variant: Variant,
    scale: Scale,
    numbering: Numbering,
    checkpoint: Callable[[], None],
    out: Float64s,
) -> None:
    """Fills `out` with the advantages of one of `VARIANTS`; samples beyond a group's last whole block get 0.

    Args:
        layout: where each group begins and ends.
        rewards: shape (rewards,).
        k: shape (groups,), legal for the variant; 0 where a group has none, whose advantages are 0.
        variant, scale: which, and the scale.
        numbering: what the bootstrap's subsets depend on.
        checkpoint: called between slices of the bootstrap's work.
        out: shape (rewards,).
    """
    if variant is Variant.PASSK_BOOTSTRAP:
        _fill_from_random_subsets(layout, rewards, k, numbering, checkpoint, out)
        out *= np.repeat(_factor(layout.sizes, Scale.MEAN, scale), layout.sizes)
    elif variant is Variant.LOO_MINUS_ONE_PARTITIONED:
        _fill_within_blocks(layout, rewards, k, scale, out)
    else:
        _fill_from_blocks(layout, rewards, k, variant, scale, out)


def _fill_from_blocks(
    layout: Layout, rewards: Float64s, k: Int64s, variant: Variant, scale: Scale, out: Float64s
) -> None:
    of_maxima, native = _OF_BLOCK_MAXIMA[variant]
    block = np.where(k > 0, k, layout.sizes)
    blocks = layout.sizes // block
    maxima_layout = Layout(int(blocks.sum()), blocks)
    maxima = np.empty(maxima_layout.total)
    _take_block_maxima(rewards, layout.offsets, block, maxima_layout.offsets, maxima)
    of_blocks = np.empty(maxima.size)
    _fill_sorted(maxima_layout, maxima, np.minimum(k, 1), of_maxima, native, of_blocks)
    _give_to_blocks(of_blocks, maxima_layout.offsets, layout.offsets, block, _factor(layout.sizes, native, scale), out)


def _fill_within_blocks(layout: Layout, rewards: Float64s, k: Int64s, scale: Scale, out: Float64s) -> None:
    block = np.where(k > 0, k, layout.sizes)
    blocks = layout.sizes // block
    within = Layout(layout.total, np.repeat(block, blocks))
    _fill_sorted(within, rewards, np.repeat(k, blocks), Variant.TZSM, Scale.SUM, out)
    out *= np.repeat(block / layout.sizes * _factor(layout.sizes, Scale.SUM, scale), layout.sizes)


def _fill_from_random_subsets(
    layout: Layout, rewards: Float64s, k: Int64s, numbering: Numbering, checkpoint: Callable[[], None], out: Float64s
) -> None:
    out[:] = 0.0
    for g in np.flatnonzero(k > 0).tolist():
        checkpoint()
        samples = slice(int(layout.offsets[g]), int(layout.offsets[g + 1]))
        group_rewards, group_k = rewards[samples], int(k[g])
        chosen = chosen_samples(group_rewards.size, group_k, numbering.key(g), checkpoint)
        # Where 2k > n a subset is known by the samples it leaves out, and a sample gets minus the scores of the
        # subsets that leave it out: the same sum, since all scores sum to zero.
        left_out = 2 * group_k > group_rewards.size
        maxima = np.empty(chosen.shape[0])
        _take_subset_maxima(group_rewards, chosen.reshape(-1), left_out, maxima)
        scores = np.empty(maxima.size)
        one_group = Layout(maxima.size, maxima.size)
        _fill_sorted(one_group, maxima, np.ones(1, np.int64), Variant.PASSK_ANALYTIC, Scale.MEAN, scores)
        _give_to_subsets(scores, chosen.reshape(-1), left_out, out[samples])


def _fill_sorted(layout: Layout, rewards: Float64s, k: Int64s, variant: Variant, scale: Scale, out: Float64s) -> None:
    gap.fill_advantages(layout, rewards, sorting_order(layout, rewards), k, variant, scale, out)


def _factor(n: Int64s, native: Scale, wanted: Scale) -> Float64s:
    """What turns advantages of the native scale into the one wanted, shape of `n`."""
    if native is wanted:
        return np.ones(n.size)
    return n.astype(np.float64) if wanted is Scale.MEAN else 1.0 / n


@kernel(types.void(reads(_f8), reads(_i8), reads(_i8), reads(_i8), writes(_f8)))
def _take_block_maxima(
    rewards: Float64s, offsets: Int64s, block: Int64s, maxima_offsets: Int64s, maxima: Float64s
) -> None:
    for g in range(block.size):
        for b in range(maxima_offsets[g + 1] - maxima_offsets[g]):
            start = offsets[g] + b * block[g]
            largest = rewards[start]
            for i in range(start + 1, start + block[g]):
                largest = max(largest, rewards[i])
            maxima[maxima_offsets[g] + b] = largest


@kernel(types.void(reads(_f8), reads(_i8), reads(_i8), reads(_i8), reads(_f8), writes(_f8)))
def _give_to_blocks(
    of_blocks: Float64s, maxima_offsets: Int64s, offsets: Int64s, block: Int64s, factor: Float64s, out: Float64s
) -> None:
    for g in range(block.size):
        out[offsets[g] : offsets[g + 1]] = 0.0
        for b in range(maxima_offsets[g + 1] - maxima_offsets[g]):
            start = offsets[g] + b * block[g]
            out[start : start + block[g]] = of_blocks[maxima_offsets[g] + b] * factor[g]


@kernel(types.void(reads(_f8), reads(_i8), types.bool_, writes(_f8)))
def _take_subset_maxima(values: Float64s, chosen: Int64s, left_out: bool, maxima: Float64s) -> None:
    q = chosen.size // maxima.size
    left_out_of = np.full(values.size, -1)
    for b in range(maxima.size):
        largest = -np.inf
        if left_out:
            for p in range(b * q, b * q + q):
                left_out_of[chosen[p]] = b
            for i in range(values.size):
                if left_out_of[i] != b:
                    largest = max(largest, values[i])
        else:
            for p in range(b * q, b * q + q):
                largest = max(largest, values[chosen[p]])
        maxima[b] = largest


@kernel(types.void(reads(_f8), reads(_i8), types.bool_, writes(_f8)))
def _give_to_subsets(scores: Float64s, chosen: Int64s, left_out: bool, out: Float64s) -> None:
    q = chosen.size // scores.size
    sign = -1.0 if left_out else 1.0
    for b in range(scores.size):
        for p in range(b * q, b * q + q):
            out[chosen[p]] += sign * scores[b]
