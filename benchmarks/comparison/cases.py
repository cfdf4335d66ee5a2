"""The rewards that every estimator is asked about."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations_with_replacement
from typing import Any

import numpy as np
from numpy.typing import NDArray

Rewards = list[NDArray[Any]]  # one array a group


@dataclass(frozen=True)
class Case:
    """One question.

    Attributes:
        name: as the tables have it.
        groups: the rewards.
        k: what pass@k is asked of.
        dtype: of the rewards. A framework that has rewards of one type only converts them, as it always does.
        about_k: whether it asks nothing of an estimator without a k.
        precise: whether it needs more digits than float32 has.
    """

    name: str
    groups: tuple[tuple[float, ...], ...]
    k: int
    dtype: str = "float64"
    about_k: bool = False
    precise: bool = False

    def rewards(self) -> Rewards:
        """The groups as arrays."""
        return [np.array(group, self.dtype) for group in self.groups]


RIGHT_AND_WRONG = (1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
GRADED = (0.3, 0.9, 0.45, 0.1, 0.7, 0.2, 0.85, 0.6)
LARGE = 2048
RARE = tuple(float(i in (5, 700, 2000)) for i in range(LARGE))
SPREAD = tuple(i * 1103 % LARGE / LARGE for i in range(LARGE))

CASES = (
    Case("0/1 rewards, k < n", (RIGHT_AND_WRONG,), 4),
    Case("rewards between, k < n", (GRADED,), 4),
    Case("k = 1", (RIGHT_AND_WRONG, GRADED), 1, about_k=True),
    Case("k = n", (RIGHT_AND_WRONG, GRADED), 8, about_k=True),
    Case("k > n", (RIGHT_AND_WRONG, GRADED), 12, about_k=True),
    Case("ties", ((1.0, 0.5, 0.0, 1.0, 0.5, 0.0, 0.0, 0.0),), 4),
    Case("all equal", ((0.1,) * 10, (1.0,) * 10), 4),
    Case("0/1 as integers", (RIGHT_AND_WRONG,), 4, dtype="int64"),
    Case("uneven groups", (RIGHT_AND_WRONG, GRADED[:3], (0.0, 1.0, 1.0, 0.0, 0.0)), 2),
    Case("a group of one", (RIGHT_AND_WRONG, (1.0,)), 2),
    Case("NaN for one sample", (RIGHT_AND_WRONG, (*RIGHT_AND_WRONG[:4], math.nan, *RIGHT_AND_WRONG[5:])), 4),
    Case("close rewards, float32", (tuple(1000 + reward / 100 for reward in GRADED),), 4, dtype="float32"),
    Case("close rewards, float64", (tuple(1e6 + reward / 1000 for reward in GRADED),), 4, precise=True),
    Case(f"n = {LARGE}, k = 8, three right", (RARE,), 8),
    Case(f"n = {LARGE}, k = {LARGE // 2}, three right", (RARE,), LARGE // 2),
    Case(f"n = {LARGE}, k = {LARGE // 2}, rewards between", (SPREAD,), LARGE // 2),
)

# What is timed.
GROUPS, N, K = 1024, 16, 8


def batch(values: str = "between") -> NDArray[np.float64]:
    """The rewards that are timed: "between", or "0/1"."""
    drawn = np.random.default_rng(0).random((GROUPS, N))
    return drawn if values == "between" else (drawn < np.linspace(0, 1, GROUPS)[:, None]).astype(np.float64)


@dataclass(frozen=True)
class Policy:
    """A policy small enough to list all that it may sample.

    Attributes:
        name: as the tables have it.
        levels: the rewards of its answers.
        prompts: the probability of each answer, for each prompt.
        n: samples in a group.
        ks: of which pass@k is asked.
    """

    name: str
    levels: tuple[float, ...]
    prompts: tuple[tuple[float, ...], ...]
    n: int
    ks: tuple[int, ...]

    def groups(self) -> list[tuple[int, ...]]:
        """Every group there is, without order: the numbers of its answers."""
        return list(combinations_with_replacement(range(len(self.levels)), self.n))

    def rewards(self) -> Rewards:
        """Those of every group."""
        return [np.array([self.levels[answer] for answer in group]) for group in self.groups()]


POLICIES = (
    Policy("pass", (0.0, 1.0), tuple((1 - p, p) for p in (1 / 16, 1 / 4, 1 / 2, 3 / 4)), 16, (1, 4, 16)),
    Policy("max", (0.0, 0.5, 1.0), ((0.8, 0.15, 0.05), (0.4, 0.5, 0.1), (0.2, 0.3, 0.5)), 8, (1, 4, 8)),
)
