"""Where each group of a batch begins and ends."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from pkpo_core.arrays import Int64s, Positions

_MOST_KEPT_GROUPS = 1 << 13  # of a layout that is kept for the next batch: 128 KiB


def layout_of(total: int, group_sizes: int | Int64s) -> Layout:
    """The layout of groups of these sizes. A training run asks for the same one at every step, so some are kept."""
    if isinstance(group_sizes, np.ndarray) and group_sizes.size > 0 and (group_sizes == group_sizes[0]).all():
        group_sizes = int(group_sizes[0])
    if isinstance(group_sizes, np.ndarray) or total // group_sizes > _MOST_KEPT_GROUPS:
        return Layout(total, group_sizes)
    return _kept_layout(total, group_sizes)


class Layout:
    """Groups end to end: either all of one size, or each of its own.

    Args:
        total: how many samples there are.
        group_sizes: the size of every group, which divides `total`; or one per group, which add up to it.

    Attributes:
        uniform_size: the size of every group, where there is one for all.
        number_of_groups: how many groups there are.
        offsets: where each group begins, and where the last one ends, shape (groups + 1,).
    """

    __slots__ = ("_groups", "_sizes", "number_of_groups", "offsets", "total", "uniform_size")

    def __init__(self, total: int, group_sizes: int | Int64s) -> None:
        self.total = total
        self._groups: Positions | None = None
        self._sizes: Int64s | None = None
        self.offsets: Positions
        if isinstance(group_sizes, np.ndarray):
            self.uniform_size: int | None = None
            self.number_of_groups: int = group_sizes.size
            self.offsets = np.zeros(group_sizes.size + 1, np.uint64)
            group_sizes.cumsum(dtype=np.uint64, out=self.offsets[1:])
            self._sizes = group_sizes
        else:
            self.uniform_size = group_sizes
            self.number_of_groups = total // group_sizes
            self.offsets = np.arange(0, total + 1, group_sizes, dtype=np.uint64)

    @property
    def groups(self) -> Positions:
        """The numbers of all groups, shape (groups,)."""
        if self._groups is None:
            self._groups = np.arange(self.number_of_groups, dtype=np.uint64)
        return self._groups

    @property
    def sizes(self) -> Int64s:
        """The size of each group, shape (groups,)."""
        if self._sizes is None:
            self._sizes = np.full(self.number_of_groups, self.uniform_size, np.int64)
        return self._sizes

    def parts(self, most_samples: int) -> Iterator[Part]:
        """The batch cut between groups into parts of at most so many samples, or of one group that has more."""
        if self.total <= most_samples:
            yield Part(self, slice(0, self.number_of_groups), slice(0, self.total))
            return
        for groups in runs(self.sizes, most_samples):
            start, stop = int(self.offsets[groups.start]), int(self.offsets[groups.stop])
            sizes = self.sizes[groups] if self.uniform_size is None else self.uniform_size
            yield Part(Layout(stop - start, sizes), groups, slice(start, stop))


def runs(costs: Int64s, most: int) -> Iterator[slice]:
    """Consecutive runs of items that cost at most so much together, or of one that costs more."""
    total = costs.cumsum()
    begin = 0
    while begin < costs.size:
        before = total[begin - 1] if begin > 0 else 0
        end = max(begin + 1, int(total.searchsorted(before + most, side="right")))
        yield slice(begin, end)
        begin = end


_kept_layout = lru_cache(maxsize=32)(Layout)


@dataclass(slots=True)
class Part:
    """Some consecutive groups of a batch: their own layout, and where the groups and their samples are in the batch."""

    layout: Layout
    groups: slice
    samples: slice
