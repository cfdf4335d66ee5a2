"""The exact answer to any legal request: the contract, over the rational arithmetic of tests/reference.py."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import reference
from pkpo.v1 import reward_transform_pb2 as pb

# How far from exact a double may be, as a share of its group's largest: a few roundings.
EXACT = 2e-14
IGNORES_K = {"loo", "grpo"}
# These carry an offset common to the group, and are judged by (k/n) times its largest reward where that is more.
WITH_OFFSET = {"s", "sloo", "binary"}


@dataclass(frozen=True)
class Group:
    """One group of a request, and what becomes of it.

    Attributes:
        k: what it is transformed with; None where no k is legal.
        subsets: those of PASSK_BOOTSTRAP.
    """

    rewards: list[float]
    variant: str
    scale: str
    k: int | None
    clamped: bool
    subsets: list[list[int]] | None

    def advantages(self) -> list[float]:
        """Exact, rounded once to double."""
        if self.k is None:
            return [0.0] * len(self.rewards)
        return reference.advantages(self.variant, self.rewards, self.k, scale=self.scale, subsets=self.subsets)

    def status(self, advantages: Sequence[float]) -> int:
        """Of a group with these advantages."""
        if self.k is None:
            return pb.GROUP_STATUS_TOO_SMALL
        if len(set(self.rewards)) == 1 or not any(advantages):
            return pb.GROUP_STATUS_NO_SIGNAL
        return pb.GROUP_STATUS_K_CLAMPED if self.clamped else pb.GROUP_STATUS_UNSPECIFIED

    def looseness(self, advantages: Sequence[float]) -> float:
        """What the largest advantage must be multiplied by, to judge the others by it."""
        if self.variant not in WITH_OFFSET or self.k is None or not any(self.rewards):
            return 1.0
        share = self.k / len(self.rewards) if self.scale == "sum" else self.k
        return max(1.0, share * max(map(abs, self.rewards)) / max(map(abs, advantages)))


def transform_response(request: pb.TransformRequest) -> tuple[pb.TransformResponse, float]:
    """The exact answer, and how far from it an answer may be: the tolerance of a conformance case."""
    response = pb.TransformResponse(estimates=_estimates(request.groups, request.estimate_k))
    narrow = request.groups.WhichOneof("rewards") == "f32"
    values = (response.f32 if narrow else response.f64).values
    exact = [(group, group.advantages()) for group in _groups(request)]
    # A double this near to the exact one is rounded to a float32 that is at most twice as far.
    tolerance = EXACT * max(group.looseness(advantages) for group, advantages in exact) * (2 if narrow else 1)
    statuses = []
    for group, advantages in exact:
        if narrow:
            largest = max(map(abs, advantages))
            advantages = [_rounded_for_certain(a, tolerance / 2 * largest) for a in advantages]
        values.extend(advantages)
        statuses.append(group.status(advantages))
    if any(statuses):
        response.group_statuses.extend(statuses)  # type: ignore[arg-type]
    return response, tolerance


def estimate_response(request: pb.EstimateRequest) -> tuple[pb.EstimateResponse, float]:
    """The same of an Estimate."""
    return pb.EstimateResponse(estimates=_estimates(request.groups, request.k)), EXACT


def rewards_of(groups: pb.RewardGroups) -> list[list[float]]:
    """The rewards, group by group."""
    values = list(groups.f32.values if groups.WhichOneof("rewards") == "f32" else groups.f64.values)
    sizes = list(groups.group_sizes.sizes)
    if groups.WhichOneof("shape") == "group_size":
        sizes = [groups.group_size] * (len(values) // groups.group_size)
    assert sum(sizes) == len(values)
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    return [values[end - size : end] for size, end in zip(sizes, ends, strict=True)]


def variant_name(number: int) -> str:
    """As tests/reference.py has it."""
    return pb.Variant.Name(number or pb.VARIANT_SLOO_MINUS_ONE).removeprefix("VARIANT_").lower()  # type: ignore[arg-type]


def _groups(request: pb.TransformRequest) -> Iterator[Group]:
    variant = variant_name(request.variant)
    scale = "mean" if request.scale == pb.SCALE_MEAN else "sum"
    rewards = rewards_of(request.groups)
    asked = [1] * len(rewards) if variant in IGNORES_K else list(request.k)
    asked = asked * len(rewards) if len(asked) == 1 else asked
    for i, (group, wanted) in enumerate(zip(rewards, asked, strict=True)):
        n = len(group)
        wanted = n if variant == "tzsm" and wanted == 0 else wanted
        k = reference.clamped(variant, n, wanted)
        assert k == wanted or request.k_policy == pb.K_POLICY_CLAMP
        subsets = None
        if variant == "passk_bootstrap":
            subsets = reference.bootstrap_subsets(n, wanted if k is None else k, request.seed, request.first_group + i)
        yield Group(group, variant, scale, k, k != wanted, subsets)


def _estimates(groups: pb.RewardGroups, ks: Sequence[int]) -> Iterator[pb.MaxAtK]:
    rewards = rewards_of(groups)
    for k in ks:
        values = [reference.max_at_k(group, k) for group in rewards]
        yield pb.MaxAtK(k=k, values=values, standard_errors=[reference.standard_error(group, k) for group in rewards])


def _rounded_for_certain(exact: float, within: float) -> float:
    """As a float32. Raises ValueError where a double so near may be rounded to one that is more than twice as far."""
    rounded = _float32(exact)
    if max(rounded - _float32(exact - within), _float32(exact + within) - rounded) > 2 * within:
        raise ValueError(f"{exact!r} is too near the middle of two float32 to say which of them is right")
    return rounded


def _float32(value: float) -> float:
    rounded: float = struct.unpack("<f", struct.pack("<f", value))[0]
    return rounded
