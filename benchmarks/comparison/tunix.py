"""Run by the Python of tunix's environment: tunix's own estimators beside ours, all from its registry."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray
from tunix.rl import algo_core, reward_manager  # noqa: F401  they register tunix's own
from tunix.rl.algorithm_config import AlgorithmConfig
from tunix.rl.function_registry import get_advantage_estimator, get_reward_manager

from benchmarks.comparison.answers import Ask, NotAsked, report
from benchmarks.comparison.cases import K, N, Rewards, batch
from benchmarks.measurement import Effort, Ratio, in_turns
from pkpo_client.integrations.tunix import register

# What is asked of a cluster: that nothing was trained yet.
CLUSTER: Any = SimpleNamespace(
    global_steps=0, actor_trainer=SimpleNamespace(train_steps=0, restored_global_step=lambda: 0)
)


@cache
def estimator(name: str, k: int) -> Any:
    """One of tunix's registry."""
    if name == "pkpo":
        name = f"pkpo@{k}"
        register(CLUSTER, name=name, k=k, address="local")
    return get_advantage_estimator(name)


def advantages(name: str, rewards: Rewards, k: int) -> Sequence[NDArray[Any]]:
    """What it answers, as a learner calls it: with the rewards that tunix's reward manager makes of a function's."""
    n = rewards[0].size
    if any(group.size != n for group in rewards):
        raise NotAsked("groups are of one size")
    flat = np.concatenate(rewards)
    manager = get_reward_manager("sequence-level")(lambda **_: flat.tolist(), AlgorithmConfig())
    told = manager(prompts=["?"] * flat.size, completions=[""] * flat.size)["rewards"]
    return list(np.asarray(estimator(name, k)(rewards=told, num_generations=n)).reshape(-1, n))


NAMES = ("grpo", "drgrpo", "rloo", "pkpo")
ESTIMATORS: dict[str, Ask] = {name: partial(advantages, name) for name in NAMES}


def times(effort: Effort) -> dict[str, Ratio]:
    """Each over ours, called alike."""
    rewards = batch().ravel()

    def call(name: str) -> Any:
        of_name = estimator(name, K)
        return lambda: jax.block_until_ready(of_name(rewards=rewards, num_generations=N))

    ours = call("pkpo")
    return {name: in_turns([call(name)], [ours], effort.of(40), effort.of(10)) for name in NAMES if name != "pkpo"}


if __name__ == "__main__":
    report(ESTIMATORS, times, "google-tunix", "jax")
