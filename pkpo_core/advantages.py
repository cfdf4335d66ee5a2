"""Rewards of groups in, advantages out: the one public transform."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import types
from numpy.typing import ArrayLike, NDArray

from pkpo_core import gap, maxima
from pkpo_core.arrays import Float64s, Int64s
from pkpo_core.compilation import kernel, reads
from pkpo_core.errors import MOST_VIOLATIONS, InvalidArgument, Violation, refuse_any
from pkpo_core.estimates import SAMPLES_AT_ONCE, MaxAtK, estimated_k, fill_estimates, run_on
from pkpo_core.groups import RewardGroups, is_whole
from pkpo_core.k_range import legal_k
from pkpo_core.order import sorting_order
from pkpo_core.subsets import Numbering
from pkpo_core.variants import KPolicy, Scale, Variant

_LARGEST_WORD = (1 << 64) - 1
_ROUNDED_TO_0 = 2.0**-150  # half the smallest float32, and what is smaller


@dataclass(frozen=True, eq=False)
class Transformed:
    """The answer of `transform`.

    Attributes:
        advantages: of the rewards' shape and dtype.
        group_statuses: uint8, shape (groups,): values of GroupStatus.
        estimates: one MaxAtK per k of `estimate_k`.
        k: what the groups were transformed with: one for all, or int64, shape (groups,), 0 for one that has no legal k.
            1 where the variant ignores k.
    """

    advantages: NDArray[Any]
    group_statuses: NDArray[np.uint8]
    estimates: tuple[MaxAtK, ...]
    k: int | Int64s


def transform(
    groups: RewardGroups | ArrayLike,
    k: ArrayLike | None = None,
    *,
    variant: Variant = Variant.SLOO_MINUS_ONE,
    scale: Scale = Scale.SUM,
    k_policy: KPolicy = KPolicy.STRICT,
    estimate_k: ArrayLike = (),
    seed: int = 0,
    first_group: int = 0,
    checkpoint: Callable[[], None] | None = None,
) -> Transformed:
    """The advantages whose policy gradient optimises max@k (pass@k for 0/1 rewards).

    In terms of a group's sorted rewards x_1 <= ... <= x_n, with weights that depend on (variant, n, k, scale) only:

        A_1 = first(x),   A_{i+1} = A_i + W_i (x_{i+1} - x_i)

    For SLOO_MINUS_ONE (PKPO, arXiv 2505.15201, eq. 33) first(x) = 0 and W_i = C(i, k-1) / C(n, k). Computed in float64
    and rounded once to the rewards' dtype.

    Args:
        groups: RewardGroups, or an array of shape (groups, n).
        k: how many attempts the policy is optimised for; one integer, or one per group, shape (groups,). The legal
            range is the variant's (`VARIANTS[variant].k_range`). LOO and GRPO ignore it, TZSM reads 0 as n.
        variant: which function of the rewards the advantages are.
        scale: SUM where the caller's loss sums over a group, MEAN where it averages.
        k_policy: STRICT refuses a k outside the range; CLAMP lowers it to the largest legal one, and gives zeros to a
            group that has none.
        estimate_k: also estimate max@k of each group for these k, each at least 1.
        seed: 0 .. 2^64 - 1; with the group's number it seeds PASSK_BOOTSTRAP.
        first_group: 0 .. 2^64 - 1; the number of the first group. Numbers wrap around at 2^64.
        checkpoint: called between slices of the work; what it raises stops the work and passes through.

    Returns:
        Advantages in a new array of the rewards' shape and dtype, a status per group, and the estimates.

    Raises:
        InvalidArgument: an argument is outside its range, a reward is not 0 or 1 where BINARY needs it, or an advantage
            does not fit float32; names the field, its value and the bound.
    """
    shape = None if isinstance(groups, RewardGroups) else np.shape(groups)
    groups = RewardGroups.of(groups)
    _refuse_other_options(variant, scale, k_policy, seed, first_group)
    legal = legal_k(groups, k, variant, k_policy)
    estimates = tuple([MaxAtK.unfilled(k, groups.number_of_groups) for k in estimated_k("estimate_k", estimate_k)])
    rewards = np.ascontiguousarray(groups.rewards, dtype=np.float64)
    if variant is Variant.BINARY:
        _refuse_other_than_0_and_1(rewards)

    advantages = np.empty(rewards.size)
    negligible = 0.0 if groups.rewards.dtype == np.float64 else _ROUNDED_TO_0
    checkpoint = checkpoint or run_on
    for part in groups.layout.parts(SAMPLES_AT_ONCE):
        checkpoint()
        layout, part_k, part_rewards = part.layout, legal.of(part.groups), rewards[part.samples]
        answer = gap.Answer(advantages[part.samples], legal.statuses[part.groups], negligible)
        order = sorting_order(layout, part_rewards, layout.groups) if estimates else None
        if variant in maxima.VARIANTS:
            numbers = Numbering(seed, first_group + part.groups.start)
            maxima.fill_advantages(layout, part_rewards, part_k, variant, scale, numbers, checkpoint, answer)
        else:
            gap.fill_advantages(layout, part_rewards, order, part_k, variant, scale, answer)
        if order is not None:
            fill_estimates(layout, part_rewards, order, estimates, part.groups)

    rounded = _rounded(advantages, groups.rewards.dtype)
    return Transformed(rounded if shape is None else rounded.reshape(shape), legal.statuses, estimates, legal.k)


def _refuse_other_options(variant: object, scale: object, k_policy: object, seed: object, first_group: object) -> None:
    found: list[Violation] = []
    for field, value, kind in (("variant", variant, Variant), ("scale", scale, Scale), ("k_policy", k_policy, KPolicy)):
        if not isinstance(value, kind):
            must = f"must be a {kind.__name__}: {', '.join(each.name for each in kind)}"
            found.append(Violation(field, f"is {value!r}; {must}"))
    for field, value in (("seed", seed), ("first_group", first_group)):
        if not is_whole(value) or not 0 <= value <= _LARGEST_WORD:
            found.append(Violation(field, f"is {value!r}; must be an integer from 0 to 2^64 - 1"))
    if found:
        raise InvalidArgument(found)


def _refuse_other_than_0_and_1(rewards: Float64s) -> None:
    if _number_of_0_and_1(rewards) < rewards.size:
        refuse_any(
            Violation(f"groups.rewards[{i}]", f"is {rewards[i]}; binary takes rewards of exactly 0 or 1")
            for i in np.flatnonzero((rewards != 0.0) & (rewards != 1.0))[:MOST_VIOLATIONS]
        )


@kernel(types.int64(reads(types.float64)))
def _number_of_0_and_1(rewards: Float64s) -> int:
    number = 0
    for i in range(rewards.size):
        number += (rewards[i] == 0.0) | (rewards[i] == 1.0)
    return number


def _rounded(advantages: Float64s, dtype: np.dtype[Any]) -> NDArray[Any]:
    if dtype == np.float64:
        return advantages
    with np.errstate(over="ignore"):
        rounded = advantages.astype(dtype)
    fits = np.isfinite(rounded)
    if not fits.all():
        raise InvalidArgument(
            Violation(
                f"groups.rewards[{i}]",
                f"has the advantage {advantages[i]:.9g}; must fit {dtype}, up to {np.finfo(dtype).max:.9g}",
            )
            for i in np.flatnonzero(~fits)[:MOST_VIOLATIONS]
        )
    return rounded
