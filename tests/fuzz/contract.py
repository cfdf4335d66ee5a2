"""Which requests the contract takes: written from docs/design.md and the .proto, and from nothing of the server."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import reference
from conformance.oracle import IGNORES_K, variant_name
from pkpo.v1 import reward_transform_pb2 as pb

LARGEST_REWARD = 1e100
# Rewards above this, as float32, may have advantages that fit no float32; which is for the exact arithmetic to say.
SURE_TO_FIT = 1e30
_RUN_ID = re.compile(r"[A-Za-z0-9._:/-]{0,128}")


def takes_transform(request: pb.TransformRequest, limits: Any) -> bool | None:
    """Whether the request is to be answered; None where only exact arithmetic could say."""
    if request.variant not in pb.Variant.values() or request.scale not in pb.Scale.values():
        return False
    if request.k_policy not in pb.KPolicy.values() or not _RUN_ID.fullmatch(request.run_id):
        return False
    if 0 in request.estimate_k or len(request.estimate_k) > limits.max_estimate_k:
        return False
    sizes = _sizes(request.groups, limits)
    if sizes is None or not _fits(sizes, len(request.estimate_k), request.groups, limits):
        return False
    variant = variant_name(request.variant)
    rewards = _rewards(request.groups)
    if variant == "binary" and any(reward not in (0, 1) for reward in rewards):
        return False
    if not _takes_k(variant, sizes, request.k, request.k_policy == pb.K_POLICY_CLAMP):
        return False
    if request.groups.HasField("f32") and any(abs(reward) > SURE_TO_FIT for reward in rewards):
        return None
    return True


def takes_estimate(request: pb.EstimateRequest, limits: Any) -> bool:
    """Whether the request is to be answered."""
    if not request.k or 0 in request.k or len(request.k) > limits.max_estimate_k:
        return False
    sizes = _sizes(request.groups, limits)
    return sizes is not None and _fits(sizes, len(request.k), None, limits)


def _rewards(groups: pb.RewardGroups) -> Sequence[float]:
    return groups.f32.values if groups.WhichOneof("rewards") == "f32" else groups.f64.values


def _sizes(groups: pb.RewardGroups, limits: Any) -> list[int] | None:
    """The size of each group; None where the groups are not to be taken."""
    kind, shape = groups.WhichOneof("rewards"), groups.WhichOneof("shape")
    if kind is None or shape is None:
        return None
    rewards = _rewards(groups)
    number = len(rewards)
    if not 1 <= number <= limits.max_rewards:
        return None
    if shape == "group_size":
        size = groups.group_size
        if size < 1 or number % size:
            return None
        sizes = [size] * (number // size)
    else:
        sizes = list(groups.group_sizes.sizes)
        if 0 in sizes or sum(sizes) != number:
            return None
    if len(sizes) > limits.max_groups or max(sizes) > limits.max_group_size:
        return None
    if not all(math.isfinite(reward) and abs(reward) <= LARGEST_REWARD for reward in rewards):
        return None
    return sizes


def _fits(sizes: Sequence[int], estimates: int, groups: pb.RewardGroups | None, limits: Any) -> bool:
    """Whether the answer fits a message: numbers, a status for each group, and some bytes for tags and lengths."""
    answer = 64 + estimates * (16 * len(sizes) + 32)
    if groups is not None:
        answer += len(_rewards(groups)) * (4 if groups.HasField("f32") else 8) + len(sizes)
    return answer <= limits.max_message_bytes


def _takes_k(variant: str, sizes: Sequence[int], ks: Sequence[int], clamp: bool) -> bool:
    ignored = variant in IGNORES_K
    if len(ks) not in (1, len(sizes)) and not (ignored and not ks):
        return False
    if ignored:
        return clamp or all(reference.legal(variant, n, 1) for n in sizes)
    each = list(ks) * len(sizes) if len(ks) == 1 else ks
    return all(_takes_k_of(variant, n, k, clamp) for n, k in set(zip(sizes, each, strict=True)))


def _takes_k_of(variant: str, n: int, k: int, clamp: bool) -> bool:
    if variant == "tzsm":
        k = k or n
        if k < n:
            return False
    elif k == 0:
        return False
    return clamp or (k <= n and reference.legal(variant, n, k))
