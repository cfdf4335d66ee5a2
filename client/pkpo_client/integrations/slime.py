"""slime: advantages of pass@k in the place of its normalised rewards.

    --custom-reward-post-process-path pkpo_client.integrations.slime.passk_rewards
    --custom-rollout-log-function-path pkpo_client.integrations.slime.note_step     # where k follows a schedule

docs/integrations/slime.md tells what slime's loss makes of it, and which of its arguments it does not go with.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from pkpo_client.errors import refused
from pkpo_client.integrations.objective import Objective

logger = logging.getLogger(__name__)

#: Those that take a sample's reward for the advantage of its tokens.
ESTIMATORS = ("grpo", "gspo", "cispo")

# slime notes a rollout and asks for its rewards in one process, one after the other.
_step: int | None = None


def note_step(rollout_id: int, args: Any, samples: Any, rollout_extra_metrics: Any, rollout_time: float) -> bool:
    """Notes which training step the next rewards belong to, and leaves logging to slime.

    A `--custom-rollout-log-function-path` of one's own calls this.

    Returns:
        False, which is slime's word for going on with its own logging.
    """
    global _step
    _step = rollout_id
    return False


def passk_rewards(args: Any, samples: Sequence[Any], **_: Any) -> tuple[list[float], list[float]]:
    """Raw rewards, and advantages that optimise pass@k, or max@k of continuous rewards.

    With A_i the advantages of a group of n rollouts in scale "sum", those given are n A_i: slime's loss averages over
    rollouts. Groups are those of `group_index`, or of `index` by `--n-samples-per-prompt`, and may differ in size.
    Samples of one `rollout_id` are one rollout in several pieces: it counts once, and each piece gets its advantage.

    A rollout without a reward (None or NaN), or of which no token is trained on (an empty response, a loss mask of
    zeros), counts in no group and has the advantage 0. Where there is one, a k above what is left of a group is
    lowered. A sample with `remove_sample` counts, as slime has it.

    Args:
        args: slime's arguments. Their `pkpo`, as `--custom-config-path` sets it, is the settings of `Objective`; what
            it leaves out, PKPO_* of the environment say.
        samples: slime's, in any order.

    Returns:
        A reward and an advantage for each sample, in their order; the reward is NaN where there is none.

    Raises:
        InvalidArgument: a setting that cannot be, an argument of slime that would change the advantages, a sample
            without a group, or a rollout whose pieces differ in reward.
        PkpoError: the service cannot be reached, and `fallback` is "none".
    """
    _require_that_advantages_stay(args)
    objective = Objective.from_settings(getattr(args, "pkpo", None) or {}, scale="mean")
    step = objective.known_step(_step)

    raw = [_reward(args, sample) for sample in samples]
    groups = _groups(args, samples)
    pieces: dict[Hashable, list[int]] = {}
    for i, sample in enumerate(samples):
        pieces.setdefault(_rollout(groups[i], sample, i), []).append(i)
    rollouts = list(pieces.values())
    rewards = np.array([_one_reward(samples, raw, rollout) for rollout in rollouts])
    trained = np.array([any(_trained(samples[i]) for i in rollout) for rollout in rollouts], dtype=bool)
    counted = trained & ~np.isnan(rewards)
    if not counted.all():
        objective = replace(objective, k_policy="clamp")

    result = objective.transform(rewards, step, group_ids=[groups[rollout[0]] for rollout in rollouts], mask=counted)
    logger.info("step %d: %s", step, objective.measured(result, step))
    advantages = np.empty(len(samples))
    for rollout, advantage in zip(rollouts, result.advantages, strict=True):
        advantages[rollout] = advantage
    return raw, advantages.tolist()


def _require_that_advantages_stay(args: Any) -> None:
    if getattr(args, "normalize_advantages", False):
        raise refused("normalize_advantages", "is set; must not be, as it subtracts the mean of the batch")
    if args.advantage_estimator not in ESTIMATORS:
        raise refused("advantage_estimator", f"is {args.advantage_estimator!r}; must be one of {', '.join(ESTIMATORS)}")


def _reward(args: Any, sample: Any) -> float:
    reward = None if sample.reward is None else sample.get_reward_value(args)
    return math.nan if reward is None else float(reward)


def _trained(sample: Any) -> bool:
    return sample.response_length > 0 and (sample.loss_mask is None or any(sample.loss_mask))


def _groups(args: Any, samples: Sequence[Any]) -> list[int]:
    """Which group each sample is of; slime numbers both samples and groups over the whole run."""
    if all(sample.group_index is not None for sample in samples):
        return [sample.group_index for sample in samples]
    for i, sample in enumerate(samples):
        if sample.index is None:
            raise refused("group_index", f"is None, and so is index, for sample {i}; must be one of them for each")
    return [sample.index // args.n_samples_per_prompt for sample in samples]


def _rollout(group: int, sample: Any, i: int) -> Hashable:
    # Older versions have no rollout_id: each sample is a rollout.
    rollout_id = getattr(sample, "rollout_id", None)
    return ("sample", i) if rollout_id is None else (group, rollout_id)


def _one_reward(samples: Sequence[Any], raw: Sequence[float], rollout: Sequence[int]) -> float:
    rewards = sorted({raw[i] for i in rollout if not math.isnan(raw[i])})
    if len(rewards) > 1:
        raise refused(
            "reward",
            f"is {rewards[0]} and {rewards[-1]} for pieces of rollout {samples[rollout[0]].rollout_id}; must be one",
        )
    return rewards[0] if rewards else math.nan


__all__ = ["ESTIMATORS", "note_step", "passk_rewards"]
