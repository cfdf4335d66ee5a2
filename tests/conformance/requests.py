"""Requests, written briefly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pkpo.v1 import reward_transform_pb2 as pb


def request(**fields: Any) -> pb.TransformRequest:
    """A request that is legal but for these fields."""
    return pb.TransformRequest(**{"groups": groups(), "k": [2], **fields})


def groups(
    values: Sequence[float] = (0.0, 1.0, 0.0, 1.0),
    size: int | None = 4,
    sizes: Sequence[int] | None = None,
    kind: str | None = "f64",
) -> pb.RewardGroups:
    """Rewards and shape that need not be of one mind."""
    message = pb.RewardGroups()
    if kind is not None:
        rewards = message.f32 if kind == "f32" else message.f64
        rewards.values.extend(values)
        rewards.SetInParent()
    if sizes is not None:
        message.group_sizes.sizes.extend(sizes)
        message.group_sizes.SetInParent()
    elif size is not None:
        message.group_size = size
    return message


def reward_groups(rewards: Sequence[Sequence[float]], kind: str = "f64", uniform: bool = False) -> pb.RewardGroups:
    """Groups end to end, of one size where they are uniform."""
    values = [reward for group in rewards for reward in group]
    sizes = [len(group) for group in rewards]
    groups = pb.RewardGroups()
    if kind == "f32":
        groups.f32.values.extend(values)
    else:
        groups.f64.values.extend(values)
    if uniform:
        (groups.group_size,) = set(sizes)
    else:
        groups.group_sizes.sizes.extend(sizes)
    return groups


def changed(request: pb.TransformRequest, **fields: Any) -> pb.TransformRequest:
    """A request with other or more fields."""
    copy = pb.TransformRequest()
    copy.CopyFrom(request)
    copy.MergeFrom(pb.TransformRequest(**fields))
    return copy
