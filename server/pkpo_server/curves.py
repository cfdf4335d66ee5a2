"""The pass@k curve of every training run, from the rewards it sends anyway.

A part of its groups is kept, drawn at random, and their max@k is estimated after the answer has left. Each group that
is kept stands for as many as it was drawn from, so that the sums are those of all groups, but for chance; and a run
that sends much takes no more time than one that sends little.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

import pkpo_core
from pkpo_core import RewardGroups

CURVE_K = (1, 2, 4, 8, 16, 32, 64)
# Kept of a run until it is summed, which then takes about half a millisecond, and three times that for uneven groups.
MOST_REWARDS = 2**12
# A counter that has once added 1e30 never moves again.
LARGEST_REWARD = 1e6


@dataclass(frozen=True, slots=True)
class Point:
    """What is added to one k of a run's curve.

    Attributes:
        groups: those of at least k rewards.
        positive, negative: the sums of their estimates above and below 0, both as magnitudes.
    """

    k: int
    groups: int
    positive: float
    negative: float


@dataclass(frozen=True, slots=True)
class Sample:
    """Some groups of a batch, each of which stands for `weight` of them."""

    groups: RewardGroups
    weight: int


@dataclass(slots=True)
class _Kept:
    samples: list[Sample] = field(default_factory=list)
    rewards: int = 0
    # Of so many groups one is kept, beyond what a batch by itself asks for.
    thinning: int = 1


class Curves:
    """What is kept of each run, until it is summed. Belongs to one event loop."""

    def __init__(self) -> None:
        self._kept: dict[str, _Kept] = {}

    def __bool__(self) -> bool:
        return bool(self._kept)

    def keep(self, run: str, groups: RewardGroups) -> None:
        """Keeps a part of a batch."""
        kept = self._kept.setdefault(run, _Kept())
        step = kept.thinning * -(-groups.layout.total // MOST_REWARDS)
        _add(kept, drawn(Sample(groups, 1), step))
        while kept.rewards > MOST_REWARDS:
            # Whatever came before is thinned out like what will come, so that no part of the window counts for more.
            samples, kept.samples, kept.rewards = kept.samples, [], 0
            kept.thinning *= 2
            for sample in samples:
                _add(kept, drawn(sample, 2))

    def summed(self) -> tuple[str, list[Point]]:
        """The run that has waited longest and its points, whose samples are forgotten. There must be one."""
        run = next(iter(self._kept))
        return run, points(self._kept.pop(run).samples)


def drawn(sample: Sample, step: int) -> Sample | None:
    """One group of every `step`, from one drawn at random on; None where that hits none.

    Groups of more than MOST_REWARDS rewards are left out: one would take the time of many.
    """
    if step == 1:
        return sample
    groups = sample.groups
    layout, rewards = groups.layout, groups.rewards
    start, n = random.randrange(step), layout.uniform_size
    if n is not None:
        if start >= layout.number_of_groups or n > MOST_REWARDS:
            return None
        part = RewardGroups(rewards.reshape(-1, n)[start::step].flatten(), n)
    else:
        numbers = np.arange(start, layout.number_of_groups, step)
        numbers = numbers[layout.sizes[numbers] <= MOST_REWARDS]
        if numbers.size == 0:
            return None
        sizes = layout.sizes[numbers]
        begins = layout.offsets[numbers].astype(np.int64)
        places = np.arange(sizes.sum()) + np.repeat(begins - (sizes.cumsum() - sizes), sizes)
        part = RewardGroups(rewards[places], sizes)
    return Sample(part, sample.weight * step)


def points(samples: Sequence[Sample]) -> list[Point]:
    """The curve's points that some groups have, by pkpo_core.estimate.

    Groups with a reward beyond LARGEST_REWARD are left out.
    """
    if not samples:
        return []
    groups, weights = _joined(samples)
    largest = np.maximum.reduceat(np.abs(groups.rewards), groups.offsets[:-1].astype(np.int64))
    weights = np.where(largest <= LARGEST_REWARD, weights, 0)
    most = groups.layout.uniform_size or int(groups.sizes.max())
    found = []
    for estimate in pkpo_core.estimate(groups, [k for k in CURVE_K if k <= most]):
        there = ~np.isnan(estimate.values) & (weights > 0)
        values, counted = estimate.values[there], weights[there]
        above, below = values > 0, values < 0
        positive, negative = values[above] @ counted[above], values[below] @ counted[below]
        found.append(Point(estimate.k, int(counted.sum()), float(positive), float(-negative)))
    return found


def _add(kept: _Kept, sample: Sample | None) -> None:
    if sample is not None:
        kept.samples.append(sample)
        kept.rewards += sample.groups.layout.total


def _joined(samples: Sequence[Sample]) -> tuple[RewardGroups, NDArray[np.int64]]:
    """The groups of all end to end, and the weight of each."""
    weights = np.repeat([sample.weight for sample in samples], [sample.groups.number_of_groups for sample in samples])
    sizes = {sample.groups.layout.uniform_size for sample in samples}
    size = sizes.pop() if len(sizes) == 1 else None
    rewards = np.concatenate([sample.groups.rewards for sample in samples], dtype=np.float64)
    return RewardGroups(rewards, size or np.concatenate([sample.groups.sizes for sample in samples])), weights
