"""Which reward belongs to which group.

The wire knows groups of any size that lie end to end. Callers have rows of a matrix, or samples in any order with an id
each, and samples that are masked. This module turns the one into the other, and the answer back.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pkpo_client.arrays import on_host
from pkpo_client.errors import refused

_MOST_ROOM = 4  # of a table of ids, for each sample


@dataclass(eq=False, slots=True)
class Grouped:
    """Rewards as groups end to end, and the places they came from.

    A group whose samples are all masked is left out; the others keep their order.

    Attributes:
        rewards: (sent rewards,), float64 or float32.
        group_sizes: one size for all groups sent, or (groups sent,) int64.
        number_of_groups: groups sent.
        shape: of the rewards given.
        group_ids: one per group given, whether sent or not.
        positions: (sent rewards,) where each was among the rewards given, flat; None where all were sent in order.
        groups: (groups sent,) the number of each among the groups given; None where all were sent.
    """

    rewards: NDArray[Any]
    group_sizes: int | NDArray[np.int64]
    number_of_groups: int
    shape: tuple[int, ...]
    group_ids: Sequence[Hashable]
    positions: NDArray[np.int64] | None
    groups: NDArray[np.int64] | None

    def scattered(self, advantages: NDArray[Any]) -> NDArray[Any]:
        """Advantages of the rewards sent, in the places of the rewards given; 0 where masked."""
        if self.positions is None:
            return advantages.reshape(self.shape)
        full = np.zeros(self.shape, dtype=advantages.dtype)
        full.reshape(-1)[self.positions] = advantages
        return full

    def scattered_statuses(self, statuses: NDArray[np.uint8], left_out: int) -> NDArray[np.uint8]:
        """Statuses of the groups sent, in the places of the groups given; `left_out` for the others."""
        if self.groups is None:
            return statuses
        full = np.full(len(self.group_ids), left_out, dtype=np.uint8)
        full[self.groups] = statuses
        return full

    def reward_in_callers_words(self, index: int) -> str:
        """Where the caller gave the reward that was sent as number `index`."""
        if self.positions is not None:
            index = int(self.positions[index])
        if len(self.shape) == 2:
            return f"rewards[{index // self.shape[1]}, {index % self.shape[1]}]"
        return f"rewards[{index}]"

    def group_in_callers_words(self, index: int) -> str:
        """What the caller calls the group that was sent as number `index`."""
        if self.groups is not None:
            index = int(self.groups[index])
        return f"row {index}" if len(self.shape) == 2 else f"group {self.group_ids[index]!r}"


def grouped(rewards: NDArray[Any], group_ids: Any = None, mask: Any = None) -> Grouped:
    """Rewards as groups end to end.

    Args:
        rewards: (groups, n), or (samples,) with `group_ids`.
        group_ids: (samples,), equal for samples of one group, in any order: any hashables. None for (groups, n).
        mask: of the shape of the rewards; false (or 0) leaves a sample out. None keeps all.

    Raises:
        InvalidArgument: shapes that do not go together, an id that cannot be one, a mask that is none.
    """
    keep = None if mask is None else _kept(mask, rewards.shape)
    if rewards.ndim == 2:
        if group_ids is not None:
            raise refused(
                "group_ids", f"are given; must be None for rewards of shape {rewards.shape}, whose rows are the groups"
            )
        return _rows(rewards, keep)
    if rewards.ndim != 1:
        raise refused("rewards", f"has shape {rewards.shape}; must be (groups, n), or (samples,) with group_ids")
    if group_ids is None:
        raise refused(
            "group_ids",
            f"is None; must be one id per sample for rewards of shape {rewards.shape}, or give shape (groups, n)",
        )
    return _by_id(rewards, group_ids, keep)


def _rows(rewards: NDArray[Any], keep: NDArray[np.bool_] | None) -> Grouped:
    groups, size = rewards.shape
    flat = np.ascontiguousarray(rewards).reshape(-1)
    if keep is None and (size or not groups):
        return Grouped(flat, size, groups, rewards.shape, range(groups), None, None)
    if keep is None:
        keep = np.ones(rewards.shape, dtype=np.bool_)
    positions = np.flatnonzero(keep)
    sizes = keep.sum(axis=1, dtype=np.int64)
    return _ragged(flat[positions], sizes, rewards.shape, range(groups), positions)


def _by_id(rewards: NDArray[Any], group_ids: Any, keep: NDArray[np.bool_] | None) -> Grouped:
    numbers, ids = numbered(group_ids)
    if numbers.shape != rewards.shape:
        raise refused("group_ids", f"has {len(numbers)} values; must have one for each of {len(rewards)} rewards")
    # Stable, since the block-wise variants go by the order of a group's samples.
    # Few numbers fit 16 bits, which NumPy sorts by radix.
    sortable = numbers.astype(np.uint16) if len(ids) <= 1 << 16 else numbers
    positions = np.argsort(sortable, kind="stable") if np.any(numbers[1:] < numbers[:-1]) else None
    if keep is not None:
        positions = np.flatnonzero(keep) if positions is None else positions[keep[positions]]
        numbers = numbers[keep]
    sizes = np.bincount(numbers, minlength=len(ids)).astype(np.int64, copy=False)
    sent = np.ascontiguousarray(rewards if positions is None else rewards[positions])
    return _ragged(sent, sizes, rewards.shape, ids, positions)


def _ragged(
    sent: NDArray[Any],
    sizes: NDArray[np.int64],
    shape: tuple[int, ...],
    ids: Sequence[Hashable],
    positions: NDArray[np.int64] | None,
) -> Grouped:
    groups = None
    if len(sizes) and not sizes.all():
        groups = np.flatnonzero(sizes)
        sizes = sizes[groups]
    equal = len(sizes) > 0 and bool((sizes == sizes[0]).all())
    return Grouped(sent, int(sizes[0]) if equal else sizes, len(sizes), shape, ids, positions, groups)


def numbered(group_ids: Any) -> tuple[NDArray[np.int64], tuple[Hashable, ...]]:
    """Each sample's group as a number, groups being numbered by first appearance, and the groups' ids.

    Args:
        group_ids: (samples,) an array of integers or strings, or any sequence of hashables.

    Raises:
        InvalidArgument: an id is not hashable or not known by its value (NaN, tensors), or the ids have more than one
            dimension.
    """
    if hasattr(group_ids, "__array__"):
        array = on_host("group_ids", group_ids)
        if array.ndim != 1:
            raise refused("group_ids", f"has shape {array.shape}; must have one dimension")
        if array.dtype.kind in "biu":
            return _numbered_integers(array)
        group_ids = array.tolist()
    first: dict[Hashable, int] = {}
    samples: list[int] = []
    try:
        for each in group_ids:
            samples.append(first.setdefault(each, len(first)))
    except TypeError as error:
        raise refused(f"group_ids[{len(samples)}]", f"cannot name a group: {error}") from error
    for each in first:
        if each != each or (hasattr(each, "__array__") and not isinstance(each, np.generic)):
            raise refused("group_ids", f"holds {each!r:.80}; must be known by its value, as integers and strings are")
    return np.array(samples, dtype=np.int64), tuple(first)


def _numbered_integers(array: NDArray[Any]) -> tuple[NDArray[np.int64], tuple[Hashable, ...]]:
    if array.size == 0:
        return np.zeros(0, dtype=np.int64), ()
    lowest, highest = int(array.min()), int(array.max())
    if highest - lowest < _MOST_ROOM * array.size and array.dtype.kind == "i":
        # Of equal places in an assignment the last one counts, here that of the first appearance.
        places = array.astype(np.int64) - lowest
        first_of = np.full(highest - lowest + 1, -1)
        first_of[places[::-1]] = np.arange(array.size)[::-1]
        present = np.flatnonzero(first_of >= 0)
        by_appearance = present[np.argsort(first_of[present])]
        number = np.empty(first_of.size, dtype=np.int64)
        number[by_appearance] = np.arange(by_appearance.size)
        return number[places], tuple((by_appearance + lowest).tolist())
    distinct, first, inverse = np.unique(array, return_index=True, return_inverse=True)
    by_appearance = np.argsort(first, kind="stable")
    number = np.empty(len(distinct), dtype=np.int64)
    number[by_appearance] = np.arange(len(distinct))
    return number[inverse.reshape(-1)], tuple(distinct[by_appearance].tolist())


def _kept(mask: Any, shape: tuple[int, ...]) -> NDArray[np.bool_] | None:
    """The mask as bools; None where it keeps everything."""
    array = on_host("mask", mask)
    if array.shape != shape:
        raise refused("mask", f"has shape {array.shape}; must have that of the rewards, {shape}")
    if array.dtype != np.bool_:
        keep = array.astype(np.bool_) if array.dtype.kind in "iuf" else None
        if keep is None or not np.array_equal(array, keep):
            raise refused("mask", f"is of dtype {array.dtype}; must be true and false, or 1 and 0")
        array = keep
    return None if array.all() else array


__all__ = ["Grouped", "grouped", "numbered"]
