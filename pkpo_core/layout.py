"""Where each group of a batch begins and ends."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pkpo_core.arrays import Int64s


@dataclass(frozen=True, eq=False)
class Layout:
    """Groups end to end: either all of one size, or each of its own.

    Args:
        total: how many samples there are.
        group_sizes: the size of every group, which divides `total`; or one per group, which add up to it.
    """

    total: int
    group_sizes: int | Int64s

    @property
    def uniform_size(self) -> int | None:
        """The size of every group, where there is one for all."""
        return None if isinstance(self.group_sizes, np.ndarray) else self.group_sizes

    @cached_property
    def number_of_groups(self) -> int:
        """How many groups there are."""
        return self.group_sizes.size if isinstance(self.group_sizes, np.ndarray) else self.total // self.group_sizes

    @cached_property
    def sizes(self) -> Int64s:
        """The size of each group, shape (groups,)."""
        if isinstance(self.group_sizes, np.ndarray):
            return self.group_sizes
        return np.full(self.number_of_groups, self.group_sizes, np.int64)

    @cached_property
    def offsets(self) -> Int64s:
        """Where each group begins, and where the last one ends, shape (groups + 1,)."""
        if isinstance(self.group_sizes, np.ndarray):
            return np.concatenate((np.zeros(1, np.int64), np.cumsum(self.group_sizes)))
        return np.arange(0, self.total + 1, self.group_sizes, dtype=np.int64)

    def parts(self, most_samples: int) -> Iterator[Part]:
        """The batch cut between groups into parts of at most so many samples, or of one group that has more."""
        if self.total <= most_samples:
            yield Part(self, slice(0, self.number_of_groups), slice(0, self.total))
            return
        begin = 0
        while begin < self.number_of_groups:
            start = int(self.offsets[begin])
            end = int(np.searchsorted(self.offsets, start + most_samples, side="right")) - 1
            end = max(end, begin + 1)
            stop = int(self.offsets[end])
            sizes = self.sizes[begin:end] if self.uniform_size is None else self.uniform_size
            yield Part(Layout(stop - start, sizes), slice(begin, end), slice(start, stop))
            begin = end


@dataclass(frozen=True, slots=True)
class Part:
    """Some consecutive groups of a batch: their own layout, and where the groups and their samples are in the batch."""

    layout: Layout
    groups: slice
    samples: slice
