"""The sorted variants: weights of their own in the one gap form, two of them divided by a standard deviation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pkpo_core.arrays import Float64s, Int64s, Positions, Statuses
from pkpo_core.kernels import gap_advantages, small_gap_advantages, standardised_advantages
from pkpo_core.layout import Layout, runs
from pkpo_core.order import by_size, largest_side_by_side, order_by_numpy, sorting_order
from pkpo_core.variants import Scale, Variant
from pkpo_core.weights import distinct_rows, gap_form, maximum_law

GRPO_EPSILON = 1e-6  # verl's
_SORTED_AT_ONCE = 1 << 15  # so that an order is still in the cache when it is used

STANDARDISED = (Variant.PASSK_ANALYTIC, Variant.GRPO)


@dataclass(slots=True)
class Answer:
    """What the advantages of a batch or a part of one are written to.

    Attributes:
        advantages: shape (rewards,).
        statuses: shape (groups,); raised to NO_SIGNAL where a group has none.
        negligible: the largest magnitude of an advantage that is rounded to 0 in the end.
    """

    advantages: Float64s
    statuses: Statuses
    negligible: float = 0.0


def fill_advantages(
    layout: Layout,
    rewards: Float64s,
    order: Positions | None,
    k: int | Int64s,
    variant: Variant,
    scale: Scale,
    answer: Answer,
) -> None:
    """Fills in the advantages of a sorted variant.

    Args:
        layout: where each group begins and ends.
        rewards: shape (rewards,).
        order: of all groups, from `sorting_order`; where None, what must be sorted is sorted here.
        k: one for all groups or shape (groups,), legal for the variant; 0 where a group has none, whose advantages
            are 0.
        variant: a sorted variant.
        scale: SUM or MEAN.
        answer: to be filled in.
    """
    rows = distinct_rows(layout, k)
    groups = rows.groups
    if groups.size < layout.number_of_groups:
        answer.advantages[:] = 0.0
        if groups.size == 0:
            return
    form = gap_form(variant, rows, scale)
    table = (rows.row, rows.starts)
    filled = (answer.negligible, answer.advantages, answer.statuses)
    if variant not in STANDARDISED:
        weights = (form.anchor, form.from_zero, form.first, form.step)
        if order is None:
            left = np.zeros(layout.number_of_groups, np.bool_)
            groups = by_size(layout, groups)
            largest = largest_side_by_side(layout)
            if not small_gap_advantages(rewards, layout.offsets, groups, largest, *table, *weights, *filled, left):
                return
            unsorted = np.flatnonzero(left).view(np.uint64)
            sizes = layout.sizes[unsorted]
            for run in runs(sizes, _SORTED_AT_ONCE):
                order = order_by_numpy(layout, rewards, unsorted[run])
                starts = (sizes[run].cumsum() - sizes[run]).view(np.uint64)
                gap_advantages(rewards, order, starts, layout.offsets, unsorted[run], *table, *weights, *filled)
            return
        starts = layout.offsets[groups]
        gap_advantages(rewards, order, starts, layout.offsets, groups, *table, *weights, *filled)
        return
    if order is None:
        order = sorting_order(layout, rewards, groups)
    grpo = variant is Variant.GRPO
    if grpo:
        rows.k = np.ones_like(rows.k)
    law = maximum_law(rows)
    # GRPO divides by the sample deviation: n / (n - 1) times the variance of one sample drawn from the group.
    at_most = law.at_most * np.repeat(rows.n / (rows.n - 1), rows.n - 1) if grpo else law.at_most
    epsilon = GRPO_EPSILON if grpo else 0.0
    standardised_advantages(
        rewards,
        order,
        layout.offsets,
        groups,
        *table,
        form.first,
        form.step,
        at_most,
        law.above,
        law.lowest,
        epsilon,
        *filled,
    )
