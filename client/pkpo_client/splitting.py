"""Batches over the limits of one request, split into parts that are not.

A part holds whole groups. Its request and its answer (advantages, statuses, estimates) both stay below the limit of a
message, so that a part that was accepted can also be answered.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from operator import itemgetter

import numpy as np
from numpy.typing import NDArray

from pkpo_client.errors import InvalidArgument, Violation
from pkpo_client.grouping import Grouped
from pkpo_client.results import Limits

#: What the client's own channel lets through, both ways.
LARGEST_MESSAGE_BYTES = 64 * 2**20

#: Where the service does not say its limits: its documented defaults.
DEFAULT_LIMITS = Limits(
    max_message_bytes=LARGEST_MESSAGE_BYTES,
    max_rewards=2**23,
    max_group_size=2**20,
    max_groups=2**20,
    max_estimate_k=32,
)

#: Of this process: what its numbers can count.
NO_LIMITS = Limits(
    max_message_bytes=2**62,
    max_rewards=2**62,
    max_group_size=2**32 - 1,
    max_groups=2**62,
    max_estimate_k=2**32 - 1,
)

# Everything in a message that does not grow with its groups: names, numbers, lengths, a run id, a sequence number.
_ENVELOPE_BYTES = 512
_ENVELOPE_BYTES_PER_ESTIMATE = 32
# A size and a k, as varints of at most five bytes each.
_REQUEST_BYTES_PER_GROUP = 10
_STATUS_BYTES = 1
_ESTIMATE_BYTES = 16


@dataclass(slots=True)
class Part:
    """Consecutive groups of a batch.

    Attributes:
        groups: their numbers, as a slice.
        rewards: the numbers of their rewards, as a slice.
    """

    groups: slice
    rewards: slice


def parts(batch: Grouped, limits: Limits, estimates: int) -> Iterator[Part]:
    """The batch in as few parts as consecutive groups allow, at least one.

    Args:
        batch: with at least one group.
        limits: of a request.
        estimates: how many estimates each group is answered with.

    Raises:
        InvalidArgument: one group alone is over a limit.
    """
    room = limits.max_message_bytes - _ENVELOPE_BYTES - _ENVELOPE_BYTES_PER_ESTIMATE * estimates
    per_group = max(_REQUEST_BYTES_PER_GROUP, _STATUS_BYTES + _ESTIMATE_BYTES * estimates)
    per_reward = batch.rewards.itemsize
    total, groups = len(batch.rewards), batch.number_of_groups

    _check_each_group(batch, limits, (room - per_group) // per_reward)
    if total * per_reward + groups * per_group <= room and total <= limits.max_rewards and groups <= limits.max_groups:
        yield Part(slice(0, groups), slice(0, total))
        return

    sizes = _sizes(batch)
    rewards_up_to = np.concatenate(([0], np.cumsum(sizes)))
    bytes_up_to = rewards_up_to * per_reward + per_group * np.arange(groups + 1)
    first = 0
    while first < groups:
        last = min(
            int(np.searchsorted(bytes_up_to, bytes_up_to[first] + room, side="right")) - 1,
            int(np.searchsorted(rewards_up_to, rewards_up_to[first] + limits.max_rewards, side="right")) - 1,
            first + limits.max_groups,
        )
        yield Part(slice(first, last), slice(int(rewards_up_to[first]), int(rewards_up_to[last])))
        first = last


def _check_each_group(batch: Grouped, limits: Limits, largest_by_bytes: int) -> None:
    largest, setting = min(
        (limits.max_group_size, "max_group_size"),
        (limits.max_rewards, "max_rewards"),
        (largest_by_bytes, "max_message_bytes"),
        key=itemgetter(0),
    )
    sizes = batch.group_sizes
    if not (sizes > largest if isinstance(sizes, int) else bool((sizes > largest).any())):
        return
    index = 0 if isinstance(sizes, int) else int(np.argmax(sizes > largest))
    size = sizes if isinstance(sizes, int) else int(sizes[index])
    raise InvalidArgument.of(
        Violation(
            f"groups.group_sizes[{index}]",
            f"is {size}; must be at most {largest}, what one request may hold of one group ({setting} of the service)",
            batch.group_in_callers_words(index),
        )
    )


def _sizes(batch: Grouped) -> NDArray[np.int64]:
    if isinstance(batch.group_sizes, int):
        return np.full(batch.number_of_groups, batch.group_sizes, dtype=np.int64)
    return batch.group_sizes


__all__ = ["DEFAULT_LIMITS", "LARGEST_MESSAGE_BYTES", "NO_LIMITS", "Part", "parts"]
