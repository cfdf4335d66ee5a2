"""What a call needs done: the questions an operation asks of whoever can answer them.

An operation (see `operations`) is a generator: it yields these and is sent the answers. Clients differ in how they
answer (a channel, an asyncio channel, this process), and in nothing else. Nothing here knows of protobuf.

What is made anew for every call is changed by nobody, and yet not frozen: that takes three times as long to make.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from pkpo_client.results import MaxAtK

ResultT = TypeVar("ResultT")


@dataclass(eq=False, slots=True)
class Work:
    """Something to be done.

    Attributes:
        timeout: seconds from the start of the operation until its last work must be done.
    """

    timeout: float


@dataclass(eq=False, slots=True)
class Info(Work):
    """What the service says of itself; answered by `ServerInfo`."""


@dataclass(eq=False, slots=True)
class ServerLimits(Work):
    """What one request may hold; answered by `Limits`, from memory where they are known."""


@dataclass(eq=False, slots=True)
class Batch(Work):
    """Groups to transform; answered by `Advantages`.

    Attributes:
        rewards: (rewards,) float64 or float32, groups end to end.
        group_sizes: one size for all groups, or (groups,) int64.
        number_of_groups: how many there are.
        variant, scale, k_policy: short names.
        k: one for all groups, (groups,) int64, or None.
        estimate_k: also estimate max@k for these.
        seed: of the variants that draw.
        run_id: of the training run.
        first_group: the number of the first group, where the batch is part of a larger one.
    """

    rewards: NDArray[Any]
    group_sizes: int | NDArray[np.int64]
    number_of_groups: int
    variant: str
    scale: str
    k_policy: str
    k: int | NDArray[np.int64] | None
    estimate_k: tuple[int, ...]
    seed: int
    run_id: str
    first_group: int


@dataclass(eq=False, slots=True)
class EstimateBatch(Work):
    """Groups to estimate max@k of; answered by a tuple of `MaxAtK`.

    Attributes:
        rewards, group_sizes, number_of_groups: as in `Batch`.
        k: estimate max@k for these.
    """

    rewards: NDArray[Any]
    group_sizes: int | NDArray[np.int64]
    number_of_groups: int
    k: tuple[int, ...]


@dataclass(eq=False, slots=True)
class Advantages:
    """The answer to a `Batch`.

    Attributes:
        values: (rewards,) in the dtype of the rewards.
        group_statuses: (groups,) uint8.
        estimates: one per `estimate_k`.
    """

    values: NDArray[Any]
    group_statuses: NDArray[np.uint8]
    estimates: tuple[MaxAtK, ...]


Operation: TypeAlias = Generator[Work, Any, ResultT]
