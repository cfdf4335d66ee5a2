"""What the calls give back."""

from __future__ import annotations

import enum
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

ArrayT = TypeVar("ArrayT")


class GroupStatus(enum.IntEnum):
    """What a trainer should know of a group. TOO_SMALL wins over NO_SIGNAL, NO_SIGNAL over K_CLAMPED."""

    FINE = 0
    #: k was lowered to the largest legal one.
    K_CLAMPED = 1
    #: All rewards are equal, or every advantage is 0.
    NO_SIGNAL = 2
    #: No k is legal for a group of this size (or all of it is masked): its advantages are 0.
    TOO_SMALL = 3


@dataclass(frozen=True, eq=False)
class MaxAtK:
    """An estimate of max@k (pass@k for rewards of 0 and 1) for each group.

    Attributes:
        k: how many samples the best is taken of.
        values: (groups,) float64; NaN where the group has fewer than k samples, for no unbiased estimate exists.
        standard_errors: (groups,) float64; NaN where the group has no more than k samples.
    """

    k: int
    values: NDArray[np.float64]
    standard_errors: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class TransformResult(Generic[ArrayT]):
    """Advantages, and what there is to know of their groups.

    Attributes:
        advantages: of the shape, kind, dtype and device of the rewards.
        group_statuses: (groups,) uint8; compare with `GroupStatus`: `result.group_statuses == GroupStatus.NO_SIGNAL`.
        estimates: one `MaxAtK` per `estimate_k`, in its order.
        group_ids: the id of each group in the order used by the two above: the row numbers of two-dimensional rewards,
            else the ids in order of first appearance.
    """

    advantages: ArrayT
    group_statuses: NDArray[np.uint8]
    estimates: tuple[MaxAtK, ...]
    group_ids: Sequence[Hashable]


@dataclass(frozen=True)
class VariantInfo:
    """A variant the service knows.

    Attributes:
        name: as `variant=` takes it.
        source: the paper and equation.
        k_range: the legal k for a group of n, in words.
        needs_seed: whether the advantages depend on `seed`.
    """

    name: str
    source: str
    k_range: str
    needs_seed: bool


@dataclass(frozen=True)
class Limits:
    """What one request may hold. Batches over it are split and joined unseen; a single group cannot be.

    Attributes:
        max_message_bytes: of a request or an answer.
        max_rewards: of all groups of a request together.
        max_group_size: samples in one group.
        max_groups: groups in a request.
        max_estimate_k: numbers in `estimate_k`, or in the `k` of `estimate`.
    """

    max_message_bytes: int
    max_rewards: int
    max_group_size: int
    max_groups: int
    max_estimate_k: int


@dataclass(frozen=True)
class ServerInfo:
    """What the service says of itself.

    Attributes:
        version: of the server.
        variants: those it knows.
        limits: what one request may hold.
        default_variant: the name of the variant of requests that name none.
    """

    version: str
    variants: tuple[VariantInfo, ...]
    limits: Limits
    default_variant: str


def joined(estimates: Sequence[tuple[MaxAtK, ...]]) -> tuple[MaxAtK, ...]:
    """The estimates of a batch from those of its parts, in order."""
    if len(estimates) == 1:
        return estimates[0]
    return tuple(
        MaxAtK(
            parts[0].k,
            np.concatenate([part.values for part in parts]),
            np.concatenate([part.standard_errors for part in parts]),
        )
        for parts in zip(*estimates, strict=True)
    )


def scattered(estimates: tuple[MaxAtK, ...], groups: NDArray[Any] | None, total: int) -> tuple[MaxAtK, ...]:
    """The estimates with those of `groups` in their places among `total`, NaN elsewhere."""
    if groups is None:
        return estimates

    def spread(values: NDArray[np.float64]) -> NDArray[np.float64]:
        full = np.full(total, np.nan)
        full[groups] = values
        return full

    return tuple(MaxAtK(each.k, spread(each.values), spread(each.standard_errors)) for each in estimates)


__all__ = ["GroupStatus", "Limits", "MaxAtK", "ServerInfo", "TransformResult", "VariantInfo", "joined", "scattered"]
