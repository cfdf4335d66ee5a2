"""The weights that make the one gap-form kernel each variant, cached by variant, group size, k and scale.

Every weight of the family is a multiple of one distribution: that of the rank of the largest of k samples drawn without
replacement from n. Its cumulative form, C(j, k) / C(n, k), falls from 1 at j = n by the factor (j - k) / j, so that no
binomial is ever computed, nothing overflows, and what underflows is rightly 0.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numba import types

from pkpo_core.arrays import Flags, Float64s, Int64s, Positions
from pkpo_core.compilation import kernel, writes
from pkpo_core.layout import Layout
from pkpo_core.variants import Scale, Variant

CACHE_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class GapForm:
    """What a group's advantages are, in terms of its sorted rewards x_1 <= ... <= x_n and their gaps.

        gap_j = x_{j+1} - x_j
        A_1 = anchor x_n + sum_j first_j gap_j
        A_{j+1} = A_j + step_j gap_j

    Attributes:
        anchor: weight of the largest reward, shape (1,).
        from_zero: whether A_1 is 0 whatever the rewards, shape (1,).
        first: shape (n - 1,).
        step: shape (n - 1,).
    """

    anchor: Float64s
    from_zero: Flags
    first: Float64s
    step: Float64s

    @classmethod
    def of(cls, anchor: float, first: Float64s, step: Float64s) -> GapForm:
        """The form with these weights."""
        return cls(np.array([anchor]), np.array([anchor == 0.0 and not first.any()]), first, step)

    @property
    def nbytes(self) -> int:
        return self.first.nbytes + self.step.nbytes


@dataclass(frozen=True, slots=True)
class MaximumLaw:
    """The law of the largest of k samples drawn from a group's n without replacement, at its gaps.

    Attributes:
        at_most: P(max <= x_j), j = 1..n-1.
        above: P(max > x_j), j = 1..n-1, summed from the top, so precise where it is small.
        lowest: the index of the smallest reward that can be the maximum, k - 1.
    """

    at_most: Float64s
    above: Float64s
    lowest: int

    @property
    def nbytes(self) -> int:
        return self.at_most.nbytes + self.above.nbytes


@kernel(types.void(types.int64, types.int64, writes(types.float64)))
def _descend(n: int, k: int, cumulative: Float64s) -> None:
    cumulative[n] = 1.0
    for j in range(n, 0, -1):
        cumulative[j - 1] = cumulative[j] * (j - k) / j if j > k else 0.0


def cumulative_law(n: int, k: int) -> Float64s:
    """C(j, k) / C(n, k) for j = 0..n: the probability that the largest of k of n samples is among the j smallest."""
    cumulative = np.empty(n + 1)
    _descend(n, k, cumulative)
    return cumulative


Cached = TypeVar("Cached", GapForm, MaximumLaw)
_Key = tuple[object, int, int, Scale | None]


class _WeightCache:
    """The least recently used weights are dropped beyond a number of bytes."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._bytes = 0
        self._entries: OrderedDict[_Key, GapForm | MaximumLaw] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: _Key, weights: Callable[[], Cached]) -> Cached:
        with self._lock:
            entry = self._entries.get(key)
            if entry is not None:
                self._entries.move_to_end(key)
                return entry  # type: ignore[return-value]
        entry = weights()
        with self._lock:
            if key not in self._entries:
                self._entries[key] = entry
                self._bytes += entry.nbytes
                while self._bytes > self._most_bytes and len(self._entries) > 1:
                    self._bytes -= self._entries.popitem(last=False)[1].nbytes
        return entry


_cache = _WeightCache(CACHE_BYTES)


def gap_form(variant: Variant, n: int, k: int, scale: Scale) -> GapForm:
    """The weights of one of the sorted variants.

    Args:
        variant: any but the bootstrap and the block-wise variants, which are made of these.
        n: group size, at least 1.
        k: legal for the variant.
        scale: SUM or MEAN.
    """
    return _cache.get((variant, n, k, scale), lambda: _gap_form(variant, n, k, scale))


def maximum_law(n: int, k: int) -> MaximumLaw:
    """The law of the largest of k of n samples, 1 <= k <= n."""
    return _cache.get((MaximumLaw, n, k, None), lambda: _maximum_law(n, k))


def _gap_form(variant: Variant, n: int, k: int, scale: Scale) -> GapForm:
    per_sum = 1.0 if scale is Scale.SUM else float(n)
    per_mean = per_sum / n
    nothing = np.zeros(n - 1)
    if variant is Variant.TZSM:
        return _gap_form(Variant.SLOO_MINUS_ONE, n, n, scale)
    if variant is Variant.SLOO_MINUS_ONE and k > 1:
        return GapForm.of(0.0, nothing, per_mean * k * cumulative_law(n - 1, k - 1)[1:])
    if variant in (Variant.SLOO_MINUS_ONE, Variant.LOO):
        return _centred(np.full(n - 1, per_sum / (n - 1)))
    if variant is Variant.GRPO:
        return _centred(np.full(n - 1, per_mean))
    of_smaller = cumulative_law(n - 1, k - 1)[: n - 1]  # C(j-1, k-1) / C(n-1, k-1)
    if variant is Variant.CENTERED:
        return _centred(per_mean * n / (n - k) * k * of_smaller)
    if variant is Variant.PASSK_ANALYTIC:
        return _centred(per_mean * of_smaller)
    step = per_mean * k * of_smaller
    if variant in (Variant.S, Variant.BINARY):
        return GapForm.of(per_mean * k, -step, step)
    if variant is Variant.SLOO:
        baseline = per_sum * k / (n - 1) * cumulative_law(n - 1, k)[: n - 1]
        return GapForm.of(-per_mean * k / (n - 1), baseline - step, step * (1 + n * k / ((n - 1) * (n - k))))
    raise AssertionError(f"{variant} is no sorted variant")


def _centred(step: Float64s) -> GapForm:
    """The form with these steps whose advantages sum to zero."""
    n = step.size + 1
    above = np.arange(n - 1, 0, -1)
    return GapForm.of(0.0, -step * above / n, step)


def _maximum_law(n: int, k: int) -> MaximumLaw:
    law = k / n * cumulative_law(n - 1, k - 1)  # P(max = x_{j+1}), j = 0..n-1
    above = np.cumsum(law[:0:-1])[::-1]
    return MaximumLaw(cumulative_law(n, k)[1:n], np.ascontiguousarray(above), k - 1)


@dataclass(slots=True)
class Rows:
    """Which row of a weight table belongs to each group of a batch.

    Attributes:
        groups: the numbers of the groups that have a row, which are those that have a k.
        pairs: the (n, k) of each row.
        row: of each group, shape (groups,); undefined where a group has none.
        starts: where each row's weights of the gaps begin.
    """

    groups: Positions
    pairs: tuple[tuple[int, int], ...]
    row: Positions
    starts: Positions

    def joined_form(self, forms: Sequence[GapForm]) -> GapForm:
        """The rows' gap forms, end to end."""
        if len(forms) == 1:
            return forms[0]
        return GapForm(
            np.concatenate([form.anchor for form in forms]),
            np.concatenate([form.from_zero for form in forms]),
            np.concatenate([form.first for form in forms]),
            np.concatenate([form.step for form in forms]),
        )

    def joined(self, weights: Sequence[Float64s]) -> Float64s:
        """The rows' weights, end to end."""
        return weights[0] if len(weights) == 1 else np.concatenate(weights)


def distinct_rows(layout: Layout, k: int | Int64s) -> Rows:
    """One row for each distinct (n, k) of a batch.

    Args:
        layout: where each group begins and ends.
        k: one for all groups, or shape (groups,); 0 where a group has none.
    """
    n, number = layout.uniform_size, layout.number_of_groups
    row = np.zeros(number, np.uint64)
    if n is not None and not isinstance(k, np.ndarray) and k > 0:
        return Rows(layout.groups, ((n, k),), row, np.zeros(1, np.uint64))
    groups = np.flatnonzero(np.broadcast_to(k, number))
    distinct, row[groups] = np.unique((layout.sizes << 32 | k)[groups], return_inverse=True)
    gaps = (distinct >> 32) - 1
    starts = (np.cumsum(gaps) - gaps).view(np.uint64)
    pairs = zip((distinct >> 32).tolist(), (distinct & 0xFFFFFFFF).tolist(), strict=True)
    return Rows(groups.view(np.uint64), tuple(pairs), row, starts)
