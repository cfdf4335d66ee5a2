"""Unbiased estimates of max@k, with standard errors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from pkpo_core.arrays import Float64s, Int64s, Positions
from pkpo_core.errors import InvalidArgument, Violation, refuse_any
from pkpo_core.groups import RewardGroups
from pkpo_core.k_range import k_values
from pkpo_core.kernels import maximum_estimates
from pkpo_core.layout import Layout
from pkpo_core.order import sorting_order
from pkpo_core.variants import Scale, Variant
from pkpo_core.weights import distinct_rows, gap_form, maximum_law

SAMPLES_AT_ONCE = 1 << 18  # between two checkpoints: some milliseconds


@dataclass(frozen=True, eq=False)
class MaxAtK:
    """An estimate of max@k (pass@k for 0/1 rewards) of each group.

    Attributes:
        k: the number of attempts.
        values: float64, shape (groups,); NaN where k > n.
        standard_errors: float64, shape (groups,); NaN where k >= n.
    """

    k: int
    values: Float64s
    standard_errors: Float64s

    @classmethod
    def unfilled(cls, k: int, groups: int) -> MaxAtK:
        """Room for the estimates of so many groups."""
        return cls(k, np.empty(groups), np.empty(groups))


def run_on() -> None:
    """The checkpoint of a caller who lets the work run to its end."""


def estimate(
    groups: RewardGroups | ArrayLike, k: ArrayLike, *, checkpoint: Callable[[], None] | None = None
) -> tuple[MaxAtK, ...]:
    """max@k of each group, the expected largest reward of k attempts (pass@k for 0/1 rewards), for any list of k.

    The mean over all k-subsets of the subset's largest reward, PKPO (arXiv 2505.15201) eq. 3 and 12:

        rho = sum_i C(i-1, k-1) / C(n, k) x_i     over the sorted rewards x_1 <= ... <= x_n

    with the jackknife's standard error, sqrt((n-1)/n sum_i c_i^2), c the CENTERED advantages of the group in scale SUM:
    s / sqrt(n) at k = 1, conservative above. One sort serves all k.

    Args:
        groups: RewardGroups, or an array of shape (groups, n).
        k: one integer or several, each at least 1.
        checkpoint: called between slices of the work; what it raises stops the work and passes through.

    Returns:
        One MaxAtK per k, in its order. Values are NaN where k > n, since no unbiased estimate exists (Corollary 2);
        standard errors are NaN where k >= n.

    Raises:
        InvalidArgument: a k is 0, or no k is given; names `k[i]`.
    """
    wanted = estimated_k("k", k)
    if not wanted:
        raise InvalidArgument.of("k", "is empty; must have at least 1 value")
    groups = RewardGroups.of(groups)
    rewards = np.ascontiguousarray(groups.rewards, dtype=np.float64)
    estimates = tuple(MaxAtK.unfilled(k, groups.number_of_groups) for k in wanted)
    checkpoint = checkpoint or run_on
    for part in groups.layout.parts(SAMPLES_AT_ONCE):
        checkpoint()
        part_rewards = rewards[part.samples]
        order = sorting_order(part.layout, part_rewards, part.layout.groups)
        fill_estimates(part.layout, part_rewards, order, estimates, part.groups)
    return estimates


def estimated_k(field: str, k: ArrayLike) -> list[int]:
    """The k of a list to estimate.

    Raises:
        InvalidArgument: not integers of at least 1; names `field[i]`.
    """
    if isinstance(k, tuple) and not k:
        return []
    values: list[int] = k_values(field, k).tolist()
    refuse_any(Violation(f"{field}[{i}]", "is 0; must be at least 1") for i, value in enumerate(values) if value == 0)
    return values


def fill_estimates(
    layout: Layout, rewards: Float64s, order: Positions, estimates: tuple[MaxAtK, ...], groups: slice
) -> None:
    """Fills the given groups of each estimate from their sorted rewards."""
    for estimate in estimates:
        k = estimate.k
        values, errors = estimate.values[groups], estimate.standard_errors[groups]
        rows = distinct_rows(layout, _k_within(layout, k))
        if rows.groups.size < layout.number_of_groups:
            values[:] = errors[:] = np.nan
            if rows.groups.size == 0:
                continue
        # At k = n, where there is no CENTERED, the kernel does not use it.
        below_n = replace(rows, k=np.minimum(k, rows.n - 1))
        centered = gap_form(Variant.CENTERED, below_n, Scale.SUM)
        maximum_estimates(
            rewards,
            order,
            layout.offsets,
            rows.groups,
            np.uint64(k),
            rows.row,
            rows.starts,
            maximum_law(rows).above,
            centered.first,
            centered.step,
            values,
            errors,
        )


def _k_within(layout: Layout, k: int) -> int | Int64s:
    """k where groups have as many samples, 0 where they have not."""
    n = layout.uniform_size
    if n is not None:
        return k if n >= k else 0
    return np.where(layout.sizes >= k, k, 0)
