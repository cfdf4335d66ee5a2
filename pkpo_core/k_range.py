"""Which k is legal for a variant and a group of n, and what becomes of one that is not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pkpo_core.arrays import Int64s, Statuses
from pkpo_core.errors import MOST_VIOLATIONS, InvalidArgument, Violation, refuse_any
from pkpo_core.groups import RewardGroups, is_whole
from pkpo_core.variants import VARIANTS, GroupStatus, KPolicy, Variant

MOST_BOOTSTRAP_SAMPLES = 1 << 24
LARGEST_K = (1 << 32) - 1  # the wire's

_AT_MOST_N_LESS_ONE = (Variant.SLOO, Variant.CENTERED)
_AT_LEAST_TWO_REWARDS = (Variant.SLOO_MINUS_ONE, Variant.LOO, Variant.TZSM, Variant.GRPO)
_KField = Callable[[int], str]  # the path of the k of a group

_PARTITIONED = (
    Variant.NAIVE_PARTITIONED,
    Variant.NAIVE_PARTITIONED_BASELINED,
    Variant.LOO_MINUS_ONE_PARTITIONED,
)


@dataclass(slots=True)
class LegalK:
    """The k each group is transformed with.

    Attributes:
        k: one for all groups, or int64, shape (groups,); 0 where no k is legal.
        statuses: uint8, shape (groups,): FINE, K_CLAMPED or TOO_SMALL.
    """

    k: int | Int64s
    statuses: Statuses

    def of(self, groups: slice) -> int | Int64s:
        """The k of some of the groups."""
        return self.k[groups] if isinstance(self.k, np.ndarray) else self.k


def legal_k(groups: RewardGroups, k: ArrayLike | None, variant: Variant, policy: KPolicy) -> LegalK:
    """The k each group is transformed with, by the variant's range and the policy.

    Raises:
        InvalidArgument: the count of k is neither 1 nor the number of groups; a k is 0 or, under STRICT, outside the
            variant's range; names `k[i]`, or the group's size where it has no legal k.
    """
    number, size = groups.number_of_groups, groups.layout.uniform_size
    ignored = VARIANTS[variant].ignores_k
    asked = k_values("k", () if k is None else k)
    if asked.size not in (1, number) and not (asked.size == 0 and ignored):
        raise InvalidArgument.of("k", f"has {asked.size} values; must have 1, or one for each of {number} groups")
    if size is not None and (ignored or asked.size == 1):
        only = _legal_as_it_is(variant, size, 1 if ignored else asked.item())
        if only:
            return LegalK(only, np.zeros(number, np.uint8))
    n = groups.sizes
    field = "k[0]".format if asked.size == 1 else "k[{}]".format
    if ignored:
        asked = wanted = np.ones(number, np.int64)
    else:
        asked = np.full(number, asked[0]) if asked.size == 1 else asked
        wanted = _wanted(variant, n, asked)
        refuse_any(_unclampable(groups, field, asked, wanted, variant))
    legal = _largest_legal(variant, n, wanted)
    if legal.min() > 0 and (legal == wanted).all():
        return LegalK(legal, np.zeros(number, np.uint8))
    if policy is KPolicy.STRICT:
        refuse_any(_out_of_range(groups, field, asked, legal, legal != wanted, variant))
    statuses = np.where(legal == wanted, GroupStatus.FINE, GroupStatus.K_CLAMPED)
    statuses[legal == 0] = GroupStatus.TOO_SMALL
    return LegalK(legal, statuses.astype(np.uint8))


@lru_cache(maxsize=4096)
def _legal_as_it_is(variant: Variant, n: int, asked: int) -> int:
    """The k that is asked for, where a group of n takes it; otherwise 0."""
    sizes = np.array([n])
    wanted = _wanted(variant, sizes, np.array([asked]))
    if variant is Variant.TZSM and wanted[0] < n:
        return 0
    legal = int(_largest_legal(variant, sizes, wanted)[0])
    return legal if legal == wanted[0] else 0


def _wanted(variant: Variant, n: Int64s, asked: Int64s) -> Int64s:
    return np.where(asked == 0, n, asked) if variant is Variant.TZSM else asked


def k_values(field: str, k: ArrayLike) -> Int64s:
    """The values of a k argument as an array, shape (values,).

    Raises:
        InvalidArgument: not integers, or outside 0 .. 2^32 - 1.
    """
    if is_whole(k) and 0 <= k <= LARGEST_K:
        return _only_k(int(k))
    values = np.atleast_1d(np.asarray(k))
    if values.size == 0:
        return np.empty(0, np.int64)
    if values.ndim != 1 or values.dtype.kind not in "iu":
        raise InvalidArgument.of(
            field, f"is of {values.dtype}, shape {values.shape}; must be an integer or a list of integers"
        )
    if not (values.min() >= 0 and values.max() <= LARGEST_K):
        refuse_any(
            Violation(f"{field}[{i}]", f"is {values[i]}; must be from 0 to {LARGEST_K}")
            for i in np.flatnonzero((values < 0) | (values > LARGEST_K))[:MOST_VIOLATIONS]
        )
    return values.astype(np.int64)


@lru_cache(maxsize=256)
def _only_k(k: int) -> Int64s:
    return np.array([k])


def _largest_legal(variant: Variant, n: Int64s, wanted: Int64s) -> Int64s:
    """The largest legal k up to the one wanted, 0 where there is none."""
    if variant in _PARTITIONED:
        # A k above n is lowered to n at least, so that there are few distinct pairs.
        base = int(n.max()) + 1
        pairs, group = np.unique(n * base + np.minimum(wanted, n), return_inverse=True)
        return np.array([_largest_block(variant, *divmod(pair, base)) for pair in pairs.tolist()])[group]
    largest = n - 1 if variant in _AT_MOST_N_LESS_ONE else n
    if variant is Variant.PASSK_BOOTSTRAP:
        largest = np.minimum(n, MOST_BOOTSTRAP_SAMPLES // n)
    legal = np.minimum(wanted, largest)
    return np.where(n < 2, 0, legal) if variant in _AT_LEAST_TWO_REWARDS else legal


@lru_cache(maxsize=4096)
def _largest_block(variant: Variant, n: int, wanted: int) -> int:
    smallest = 2 if variant is Variant.LOO_MINUS_ONE_PARTITIONED else 1
    largest = min(wanted, n // 2 if variant is Variant.NAIVE_PARTITIONED_BASELINED else n)
    low = [divisor for divisor in range(1, int(n**0.5) + 1) if n % divisor == 0]
    divisors = {*low, *(n // divisor for divisor in low)}
    return max((divisor for divisor in divisors if smallest <= divisor <= largest), default=0)


def _unclampable(
    groups: RewardGroups, field: _KField, asked: Int64s, wanted: Int64s, variant: Variant
) -> Iterator[Violation]:
    """What CLAMP cannot mend: k = 0, and for TZSM a k below n."""
    if wanted.min() > 0 and variant is not Variant.TZSM:
        return
    for i in np.flatnonzero(wanted == 0)[:MOST_VIOLATIONS].tolist():
        yield Violation(field(i), "is 0; must be at least 1")
    if variant is Variant.TZSM:
        for i in np.flatnonzero(wanted < groups.sizes)[:MOST_VIOLATIONS].tolist():
            yield Violation(field(i), f"is {asked[i]}; tzsm takes n = {groups.sizes[i]} of group {i}, or 0 for n")


def _out_of_range(
    groups: RewardGroups,
    field: _KField,
    asked: Int64s,
    legal: Int64s,
    off: NDArray[np.bool_],
    variant: Variant,
) -> Iterator[Violation]:
    allowed = f"{variant.value} takes {VARIANTS[variant].k_range}"
    for i in np.flatnonzero(off)[:MOST_VIOLATIONS].tolist():
        n = int(groups.sizes[i])
        if n < 2 and legal[i] == 0:
            yield Violation(groups.size_field(i), f"is {n}; {allowed}")
        else:
            yield Violation(field(i), f"is {asked[i]} for group {i} of n = {n}; {allowed}")
