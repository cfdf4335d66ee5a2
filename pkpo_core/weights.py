"""The weights that make the one gap-form kernel each variant.

Every weight of the family is a multiple of one distribution: that of the rank of the largest of k samples drawn without
replacement from n. Its cumulative form, C(j, k) / C(n, k), falls from 1 at j = n by the factor (j - k) / j, so that no
binomial is ever computed, nothing overflows, and what underflows is rightly 0.

A table holds the weights of one or more pairs (n, k), row after row. Tables of one row, which batches of equal groups
need, are kept; others are made anew, at a cost below that of transforming the groups they are for.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import numpy as np
from numba import types

from pkpo_core.arrays import Flags, Float64s, Int64s, Positions
from pkpo_core.compilation import kernel, reads, writes
from pkpo_core.layout import Layout
from pkpo_core.variants import Scale, Variant

CACHE_BYTES = 64 << 20
_i8, _f8 = types.int64, types.float64


@dataclass(slots=True)
class Rows:
    """Which row of a table belongs to each group of a batch.

    Attributes:
        groups: the numbers of the groups that have a row, which are those that have a k.
        row: of each group, shape (groups,); undefined where a group has none.
        n: of each row.
        k: of each row.
        starts: where each row's weights of the gaps begin.
    """

    groups: Positions
    row: Positions
    n: Int64s
    k: Int64s
    starts: Positions


def distinct_rows(layout: Layout, k: int | Int64s) -> Rows:
    """One row for each distinct (n, k) of a batch.

    Args:
        layout: where each group begins and ends.
        k: one for all groups, or shape (groups,); 0 where a group has none.
    """
    n, number = layout.uniform_size, layout.number_of_groups
    if n is not None and not isinstance(k, np.ndarray) and k > 0:
        return Rows(layout.groups, np.zeros(number, np.uint64), *_only_row(n, k))
    every_k = k if isinstance(k, np.ndarray) else np.full(number, k)
    groups = every_k.nonzero()[0].view(np.uint64)
    row = np.empty(number, np.uint64)
    if groups.size < number:
        sizes, every_k = layout.sizes[groups], every_k[groups]
        row_n, row_k, row[groups] = _distinct_pairs(sizes, every_k, layout.total)
    else:
        row_n, row_k, row[:] = _distinct_pairs(layout.sizes, every_k, layout.total)
    gaps = row_n - 1
    return Rows(groups, row, row_n, row_k, (gaps.cumsum() - gaps).view(np.uint64))


@lru_cache(maxsize=256)
def _only_row(n: int, k: int) -> tuple[Int64s, Int64s, Positions]:
    return np.array([n]), np.array([k]), np.zeros(1, np.uint64)


def _distinct_pairs(n: Int64s, k: Int64s, room: int) -> tuple[Int64s, Int64s, Int64s]:
    """The distinct pairs of n and k, and which of them each pair is."""
    if n.size == 0:
        return n, k, n
    base = int(k.max()) + 1
    codes = n * base + k
    most = int(codes.max()) + 1
    if most > 4 * room:
        distinct, number = np.unique(codes, return_inverse=True)
    else:
        seen = np.zeros(most, np.bool_)
        seen[codes] = True
        distinct = seen.nonzero()[0]
        numbers = np.empty(most, np.int64)
        numbers[distinct] = np.arange(distinct.size)
        number = numbers[codes]
    return distinct // base, distinct % base, number


@dataclass(frozen=True, slots=True)
class GapForm:
    """What a group's advantages are, in terms of its sorted rewards x_1 <= ... <= x_n and their gaps.

        gap_j = x_{j+1} - x_j
        A_1 = anchor x_n + sum_j first_j gap_j
        A_{j+1} = A_j + step_j gap_j

    Attributes:
        anchor: weight of the largest reward, shape (rows,).
        from_zero: whether A_1 is 0 whatever the rewards, shape (rows,).
        first: shape (gaps,), rows end to end.
        step: shape (gaps,), rows end to end.
    """

    anchor: Float64s
    from_zero: Flags
    first: Float64s
    step: Float64s

    @property
    def nbytes(self) -> int:
        return self.first.nbytes + self.step.nbytes


@dataclass(frozen=True, slots=True)
class MaximumLaw:
    """The law of the largest of k samples drawn from a group's n without replacement, at its gaps.

    Attributes:
        at_most: P(max <= x_j), j = 1..n-1, shape (gaps,), rows end to end.
        above: P(max > x_j), j = 1..n-1, summed from the top, so precise where it is small; shape (gaps,).
        lowest: the index of the smallest reward that can be the maximum, k - 1, shape (rows,).
    """

    at_most: Float64s
    above: Float64s
    lowest: Positions

    @property
    def nbytes(self) -> int:
        return self.at_most.nbytes + self.above.nbytes


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


def gap_form(variant: Variant, rows: Rows, scale: Scale) -> GapForm:
    """The weights of one of the sorted variants.

    Args:
        variant: any but the bootstrap and the block-wise variants, which are made of these.
        rows: pairs that are legal for the variant.
        scale: SUM or MEAN.
    """
    if rows.n.size > 1:
        return _gap_form(variant, rows.n, rows.k, scale)
    n, k = rows.n.item(), rows.k.item()
    return _cache.get((variant, n, k, scale), lambda: _gap_form(variant, rows.n, rows.k, scale))


def maximum_law(rows: Rows) -> MaximumLaw:
    """The law of the largest of k of n samples, 1 <= k <= n."""
    if rows.n.size > 1:
        return _maximum_law(rows.n, rows.k)
    n, k = rows.n.item(), rows.k.item()
    return _cache.get((MaximumLaw, n, k, None), lambda: _maximum_law(rows.n, rows.k))


def _gap_form(variant: Variant, n: Int64s, k: Int64s, scale: Scale) -> GapForm:
    if variant is Variant.TZSM:
        return _gap_form(Variant.SLOO_MINUS_ONE, n, n, scale)
    gaps = n - 1
    per_sum = np.ones(n.size) if scale is Scale.SUM else n.astype(np.float64)
    per_mean = per_sum / n
    if variant is Variant.SLOO_MINUS_ONE:
        step = (per_mean * k).repeat(gaps) * _cumulative_law(gaps, k - 1, n, 1)
        if k.min() > 1:
            return GapForm(np.zeros(n.size), np.ones(n.size, np.bool_), np.zeros(step.size), step)
        loo = _gap_form(Variant.LOO, n, k, scale)
        return GapForm(loo.anchor, k > 1, loo.first, np.where((k == 1).repeat(gaps), loo.step, step))
    if variant is Variant.LOO:
        return _centred(n, (per_sum / gaps).repeat(gaps))
    if variant is Variant.GRPO:
        return _centred(n, per_mean.repeat(gaps))
    of_smaller = _cumulative_law(gaps, k - 1, n, 0)  # C(j-1, k-1) / C(n-1, k-1)
    if variant is Variant.CENTERED:
        return _centred(n, (per_mean * n / (n - k) * k).repeat(gaps) * of_smaller)
    if variant is Variant.PASSK_ANALYTIC:
        return _centred(n, per_mean.repeat(gaps) * of_smaller)
    step = (per_mean * k).repeat(gaps) * of_smaller
    if variant in (Variant.S, Variant.BINARY):
        return _form(per_mean * k, -step, step)
    if variant is Variant.SLOO:
        baseline = (per_sum * k / gaps).repeat(gaps) * _cumulative_law(gaps, k, n, 0)
        return _form(-per_mean * k / gaps, baseline - step, step * (1 + n * k / (gaps * (n - k))).repeat(gaps))
    raise AssertionError(f"{variant} is no sorted variant")


def _form(anchor: Float64s, first: Float64s, step: Float64s) -> GapForm:
    return GapForm(anchor, np.zeros(anchor.size, np.bool_), first, step)


def _centred(n: Int64s, step: Float64s) -> GapForm:
    """The form with these steps whose advantages sum to zero."""
    gaps = n - 1
    above = gaps.cumsum().repeat(gaps) - np.arange(step.size)
    return _form(np.zeros(n.size), -step * above / n.repeat(gaps), step)


def _maximum_law(n: Int64s, k: Int64s) -> MaximumLaw:
    gaps = n - 1
    at_most = _cumulative_law(n, k, n, 1)
    above = (k / n).repeat(gaps) * _cumulative_law(gaps, k - 1, n, 1)  # P(max = x_{j+1}) at gap j
    _sum_from_top(gaps, above)
    return MaximumLaw(at_most, above, (k - 1).view(np.uint64))


def _cumulative_law(of: Int64s, k: Int64s, n: Int64s, first: int) -> Float64s:
    """C(j, k) / C(of, k), the probability that the largest of k of so many samples is among the j smallest, for
    j = first .. first + n - 2 of each row, rows end to end."""
    law = np.empty(int(n.sum()) - n.size)
    _descend(of, k, n, first, law)
    return law


@kernel(types.void(reads(_i8), reads(_i8), reads(_i8), _i8, writes(_f8)))
def _descend(of: Int64s, k: Int64s, row_n: Int64s, first: int, law: Float64s) -> None:
    end = 0
    for r in range(row_n.size):
        end += row_n[r] - 1
        cumulative = 1.0
        for j in range(of[r], first - 1, -1):
            below = first + row_n[r] - 2 - j  # how far under the last place of the row
            if below >= 0:
                law[end - 1 - below] = cumulative
            cumulative = cumulative * (j - k[r]) / j if j > max(k[r], 0) else 0.0


@kernel(types.void(reads(_i8), writes(_f8)))
def _sum_from_top(gaps: Int64s, values: Float64s) -> None:
    start = 0
    for r in range(gaps.size):
        total = 0.0
        for i in range(start + gaps[r] - 1, start - 1, -1):
            total += values[i]
            values[i] = total
        start += gaps[r]
