"""Run by the Python of verl's environment: verl's own estimators beside ours, all from its registry."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from verl.trainer.config import AlgoConfig
from verl.trainer.ppo.core_algos import get_adv_estimator_fn

import pkpo_client.integrations.verl  # noqa: F401  it registers "pkpo"
from benchmarks.comparison.answers import Ask, report
from benchmarks.comparison.cases import K, Rewards, batch
from benchmarks.measurement import Effort, Ratio, in_turns


def estimator(name: str, config: Any, rewards: Rewards, k: int) -> Callable[[], tuple[torch.Tensor, torch.Tensor]]:
    """A call of one of verl's estimators, as its compute_advantage makes it.

    Every sample has one token, and the samples of a prompt lie apart, as they may in verl. Rewards are float32 there.
    """
    order, index = apart(rewards)
    token_level_rewards = torch.from_numpy(np.concatenate(rewards)[order]).float().unsqueeze(1)
    if name == "pkpo":
        config = {"pkpo": {"k": k, "address": "local"}}
    given = {
        "token_level_rewards": token_level_rewards,
        "response_mask": torch.ones_like(token_level_rewards),
        "index": index,
        "config": config,
    }
    return lambda: get_adv_estimator_fn(name)(**{**given, "token_level_rewards": token_level_rewards.clone()})


def advantages(name: str, config: Any, rewards: Rewards, k: int) -> Sequence[NDArray[Any]]:
    """What it answers, group by group."""
    answered = estimator(name, config, rewards, k)()[0].squeeze(1).numpy()
    flat = np.empty_like(answered)
    flat[apart(rewards)[0]] = answered
    return np.split(flat, np.cumsum([group.size for group in rewards])[:-1])


def apart(rewards: Rewards) -> tuple[NDArray[np.int64], NDArray[np.object_]]:
    """Where the samples of all groups come from when they take turns, and the uid of each."""
    groups = np.repeat(np.arange(len(rewards)), [group.size for group in rewards])
    places = np.concatenate([np.arange(group.size) for group in rewards])
    order = np.lexsort((groups, places))
    return order, np.array([f"prompt-{group}" for group in groups[order]], object)


NAMES = {
    "grpo": ("grpo", AlgoConfig()),
    "grpo_vectorized": ("grpo_vectorized", AlgoConfig()),
    "grpo_passk": ("grpo_passk", AlgoConfig()),
    "grpo_passk, no deviation": ("grpo_passk", AlgoConfig(norm_adv_by_std_in_grpo=False)),
    "rloo": ("rloo", AlgoConfig()),
    "rloo_vectorized": ("rloo_vectorized", AlgoConfig()),
    "pkpo": ("pkpo", None),
}
ESTIMATORS: dict[str, Ask] = {name: partial(advantages, *given) for name, given in NAMES.items()}


def times(effort: Effort) -> dict[str, Ratio]:
    """Each over ours, called alike."""
    rewards = list(batch())
    ours = estimator("pkpo", None, rewards, K)
    return {
        name: in_turns([estimator(*given, rewards, K)], [ours], effort.of(10), effort.of(3))
        for name, given in NAMES.items()
        if name != "pkpo"
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    report(ESTIMATORS, times, "verl", "torch")
