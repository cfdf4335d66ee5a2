"""The pass@k curve of every training run, from the rewards it sends anyway.

An evenly spread part of its groups is kept, and their max@k is estimated later, when nobody waits: the sums stay
unbiased, and cost a run that sends much no more than one that sends little.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

import pkpo_core
from pkpo_core import RewardGroups

CURVE_K = (1, 2, 4, 8, 16, 32, 64)
# Of one batch, and of one run until it is summed. Estimating for so many takes about a tenth of a millisecond.
MOST_REWARDS = 2**12


@dataclass(frozen=True, slots=True)
class Point:
    """What is added to one k of a run's curve.

    Attributes:
        groups: of at least k rewards.
        positive, negative: the sums of their estimates above and below 0, both as magnitudes.
    """

    k: int
    groups: int
    positive: float
    negative: float


@dataclass(slots=True)
class _Kept:
    batches: list[RewardGroups] = field(default_factory=list)
    rewards: int = 0


class Curves:
    """The groups kept of each run, until they are summed. Groups are kept on one thread, and summed on any."""

    def __init__(self) -> None:
        self._kept: dict[str, _Kept] = {}
        self._turn = 0

    def keep(self, run: str, groups: RewardGroups) -> None:
        """Keeps a part of a batch, while there is room for the run."""
        kept = self._kept.setdefault(run, _Kept())
        if kept.rewards >= MOST_REWARDS:
            return
        self._turn += 1
        part = spread(groups, self._turn)
        if part is not None:
            kept.batches.append(part)
            kept.rewards += part.rewards.size

    def __bool__(self) -> bool:
        return bool(self._kept)

    def summed(self, most_runs: int) -> Iterator[tuple[str, list[Point]]]:
        """The points of the runs that have waited longest, and forgets what they come from."""
        for run in list(self._kept)[:most_runs]:
            kept = self._kept.pop(run, None)
            if kept is not None and kept.batches:
                yield run, points(_joined(kept.batches))


def spread(groups: RewardGroups, turn: int) -> RewardGroups | None:
    """About MOST_REWARDS of a batch: every so-and-so-manieth group, another first one every turn.

    None where the turn hits no group, or only groups larger than that.
    """
    layout, rewards = groups.layout, groups.rewards
    step = -(-layout.total // MOST_REWARDS)
    if step == 1:
        return groups
    start, n = turn % step, layout.uniform_size
    if n is not None:
        if n > MOST_REWARDS or start >= layout.number_of_groups:
            return None
        return RewardGroups(rewards.reshape(-1, n)[start::step].reshape(-1), n)
    numbers = np.arange(start, layout.number_of_groups, step)
    numbers = numbers[layout.sizes[numbers] <= MOST_REWARDS]
    sizes = layout.sizes[numbers]
    # Uneven groups may add up to more.
    within = int(sizes.cumsum().searchsorted(2 * MOST_REWARDS, side="right"))
    numbers, sizes = numbers[:within], sizes[:within]
    if numbers.size == 0:
        return None
    begins = layout.offsets[numbers].astype(np.int64)
    places = np.arange(sizes.sum()) + np.repeat(begins - (sizes.cumsum() - sizes), sizes)
    return RewardGroups(rewards[places], sizes)


def points(groups: RewardGroups) -> list[Point]:
    """The curve's points that some groups have, by pkpo_core.estimate."""
    largest = groups.layout.uniform_size or int(groups.sizes.max())
    found = []
    for estimate in pkpo_core.estimate(groups, [k for k in CURVE_K if k <= largest]):
        values = estimate.values[~np.isnan(estimate.values)]
        above, below = values[values > 0].sum(), values[values < 0].sum()
        found.append(Point(estimate.k, values.size, float(above), float(-below)))
    return found


def _joined(batches: list[RewardGroups]) -> RewardGroups:
    if len(batches) == 1:
        return batches[0]
    sizes = {batch.layout.uniform_size for batch in batches}
    size = sizes.pop() if len(sizes) == 1 else None
    rewards = np.concatenate([batch.rewards for batch in batches])
    return RewardGroups(rewards, size or np.concatenate([batch.sizes for batch in batches]))
