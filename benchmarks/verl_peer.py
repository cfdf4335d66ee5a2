"""Run by the Python of verl's environment: its `grpo_passk` against the transform, on the same groups.

verl gives the gap between the two best rewards to the best sample of a group: what TZSM is, which is compared to it.
"""

from __future__ import annotations

import sys
from functools import partial

import numpy as np
import torch
from verl.trainer.config import AlgoConfig
from verl.trainer.ppo.core_algos import compute_grpo_passk_outcome_advantage

from benchmarks.measurement import in_turns
from pkpo_core import Scale, Variant, transform

GROUPS, N = 1024, 16
_CONFIG = AlgoConfig(norm_adv_by_std_in_grpo=False)


def main(rounds: int) -> None:
    rewards = np.random.default_rng(0).standard_normal((GROUPS, N))
    token_level = torch.from_numpy(rewards.reshape(-1, 1).astype(np.float32))
    mask = torch.ones_like(token_level)
    index = np.repeat(np.arange(GROUPS), N)

    def verl() -> object:
        return compute_grpo_passk_outcome_advantage(token_level, mask, index=index, config=_CONFIG)

    ours = partial(transform, rewards.astype(np.float32), N, variant=Variant.TZSM, scale=Scale.SUM)
    advantages = verl()[0].numpy().reshape(GROUPS, N)  # type: ignore[index]
    np.testing.assert_allclose(advantages, ours().advantages, rtol=1e-4, atol=1e-5)
    ratio = in_turns([verl], [ours], rounds, 2)
    print(ratio.median, ratio.low, ratio.high, ratio.ours, ratio.floor)


if __name__ == "__main__":
    main(int(sys.argv[1]))
