"""Groups of rewards, end to end in one array."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeGuard

import numpy as np
from numba import types
from numpy.typing import ArrayLike, NDArray

from pkpo_core.arrays import Float64s, Int64s, Positions
from pkpo_core.compilation import kernel, reads
from pkpo_core.errors import MOST_VIOLATIONS, InvalidArgument, Violation, refuse_any
from pkpo_core.layout import Layout, layout_of

LARGEST_REWARD = 1e100
_DTYPES = (np.dtype(np.float64), np.dtype(np.float32))


@dataclass(frozen=True, eq=False)
class RewardGroups:
    """The rewards of one or more groups, end to end, and where each group ends.

    Args:
        rewards: shape (rewards,), float64 or float32, at least one, each finite and of magnitude at most 1e100.
        group_sizes: the size of every group, or one size per group, shape (groups,), any integer dtype. Sizes are at
            least 1; one size divides the number of rewards, several add up to it.

    Attributes:
        layout: where each group begins and ends.

    Raises:
        InvalidArgument: a rule above is broken; names `groups.rewards[i]`, `groups.group_size` or
            `groups.group_sizes[i]`.
    """

    rewards: Float64s | NDArray[np.float32]
    group_sizes: int | NDArray[np.integer]
    layout: Layout = field(init=False, repr=False)

    def __post_init__(self) -> None:
        rewards = self.rewards
        if not isinstance(rewards, np.ndarray) or rewards.ndim != 1 or rewards.dtype not in _DTYPES:
            raise InvalidArgument.of(
                "groups.rewards", f"is {_described(rewards)}; must be a one-dimensional array of float64 or float32"
            )
        if rewards.size == 0:
            raise InvalidArgument.of("groups.rewards", "is empty; must hold at least one reward")
        self._check_sizes()
        largest = LARGEST_REWARD if rewards.dtype == _DTYPES[0] else np.finfo(np.float32).max
        if _number_within(_doubles(rewards), largest) < rewards.size:
            refuse_any(
                Violation(f"groups.rewards[{i}]", f"is {rewards[i]}; must be finite and of magnitude at most 1e100")
                for i in np.flatnonzero(~(np.abs(rewards) <= largest))[:MOST_VIOLATIONS]
            )
        sizes = self.group_sizes
        layout = layout_of(rewards.size, sizes.astype(np.int64) if isinstance(sizes, np.ndarray) else int(sizes))
        object.__setattr__(self, "layout", layout)

    def _check_sizes(self) -> None:
        total = self.rewards.size
        if isinstance(self.group_sizes, np.ndarray):
            sizes = self.group_sizes
            if sizes.ndim != 1 or sizes.dtype.kind not in "iu":
                raise InvalidArgument.of(
                    "groups.group_sizes", f"is {_described(sizes)}; must be a one-dimensional array of integers"
                )
            if sizes.size > 0 and not (sizes.min() >= 1 and sizes.max() <= total):
                refuse_any(
                    Violation(
                        f"groups.group_sizes[{i}]", f"is {sizes[i]}; must be from 1 to {total}, the number of rewards"
                    )
                    for i in np.flatnonzero((sizes < 1) | (sizes > total))[:MOST_VIOLATIONS]
                )
            held = int(sizes.sum(dtype=np.int64))
            if held != total:
                raise InvalidArgument.of(
                    "groups.group_sizes", f"add up to {held}; must add up to {total}, the number of rewards"
                )
        else:
            size = self.group_sizes
            if not is_whole(size) or size < 1 or total % size:
                raise InvalidArgument.of(
                    "groups.group_size",
                    f"is {size!r}; must be an integer from 1 that divides {total}, the number of rewards",
                )

    @classmethod
    def of(cls, groups: RewardGroups | ArrayLike) -> RewardGroups:
        """`groups` itself, or the rows of an array of shape (groups, n); integers and booleans become float64."""
        if isinstance(groups, RewardGroups):
            return groups
        rows = np.asarray(groups)
        if rows.ndim != 2:
            raise InvalidArgument.of("groups.rewards", f"has shape {rows.shape}; must be (groups, n), or RewardGroups")
        if rows.dtype.kind in "biu":
            rows = rows.astype(np.float64)
        return cls(np.ascontiguousarray(rows).reshape(-1), rows.shape[1])

    @property
    def number_of_groups(self) -> int:
        """How many groups there are."""
        return self.layout.number_of_groups

    @property
    def sizes(self) -> Int64s:
        """The size of each group, shape (groups,)."""
        return self.layout.sizes

    @property
    def offsets(self) -> Positions:
        """Where each group begins, and where the last one ends, shape (groups + 1,)."""
        return self.layout.offsets

    def size_field(self, group: int) -> str:
        """The path of the field that holds the size of a group."""
        return f"groups.group_sizes[{group}]" if isinstance(self.group_sizes, np.ndarray) else "groups.group_size"


@kernel(types.int64(reads(types.float64), types.float64))
def _number_within(rewards: Float64s, largest: float) -> int:
    within = 0
    for i in range(rewards.size):
        within += abs(rewards[i]) <= largest  # which NaN is not
    return within


def _doubles(rewards: Float64s | NDArray[np.float32]) -> Float64s:
    if rewards.dtype == np.float64:
        return np.ascontiguousarray(rewards, np.float64)
    with np.errstate(invalid="ignore"):  # a signalling NaN, which is refused, is nothing to warn about
        return np.ascontiguousarray(rewards, np.float64)


def is_whole(value: object) -> TypeGuard[int]:
    """Whether a value is an integer, of Python or NumPy."""
    return type(value) is int or (isinstance(value, (int, np.integer)) and not isinstance(value, bool))


def _described(value: object) -> str:
    return (
        f"an array of {value.dtype}, shape {value.shape}"
        if isinstance(value, np.ndarray)
        else f"a {type(value).__name__}"
    )
