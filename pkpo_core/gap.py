"""The sorted variants: weights of their own in the one gap form, two of them divided by a standard deviation."""

from __future__ import annotations

import numpy as np

from pkpo_core.arrays import Float64s, Int64s
from pkpo_core.kernels import gap_advantages, standardised_advantages
from pkpo_core.layout import Layout
from pkpo_core.variants import Scale, Variant
from pkpo_core.weights import distinct_rows, gap_form, maximum_law

GRPO_EPSILON = 1e-6  # verl's

STANDARDISED = (Variant.PASSK_ANALYTIC, Variant.GRPO)


def fill_advantages(
    layout: Layout, rewards: Float64s, order: Int64s, k: Int64s, variant: Variant, scale: Scale, out: Float64s
) -> None:
    """Fills `out` with the advantages of a sorted variant.

    Args:
        layout: where each group begins and ends.
        rewards: shape (rewards,).
        order: shape (rewards,), from `sorting_order`.
        k: shape (groups,), legal for the variant; 0 where a group has none, whose advantages are 0.
        variant: a sorted variant.
        scale: SUM or MEAN.
        out: shape (rewards,).
    """
    rows = distinct_rows(layout.sizes, k)
    forms = [gap_form(variant, n, k, scale) for n, k in rows.pairs]
    first = rows.joined([form.first for form in forms])
    step = rows.joined([form.step for form in forms])
    groups = (rewards, order, layout.offsets, rows.row, rows.starts)
    if variant not in STANDARDISED:
        anchor = np.array([form.anchor for form in forms], np.float64)
        gap_advantages(*groups, anchor, first, step, out)
        return
    grpo = variant is Variant.GRPO
    laws = [maximum_law(n, 1 if grpo else k) for n, k in rows.pairs]
    # GRPO divides by the sample deviation: n / (n - 1) times the variance of one sample drawn from the group.
    at_most = rows.joined(
        [law.at_most * (n / (n - 1)) if grpo else law.at_most for law, (n, _) in zip(laws, rows.pairs, strict=True)]
    )
    above = rows.joined([law.above for law in laws])
    lowest = np.array([law.lowest for law in laws], np.int64)
    standardised_advantages(*groups, first, step, at_most, above, lowest, GRPO_EPSILON if grpo else 0.0, out)
