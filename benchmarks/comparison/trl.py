"""Run by the Python of TRL's environment: the advantages of TRL's own trainers beside ours.

TRL computes them inside `_generate_and_score_completions`, so that is what is called, of real trainers with a tiny
Gemma-2; only the completions are given instead of generated. What is timed is what lies between the rewards and the
advantages in there, and of ours what takes its place.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from itertools import chain
from typing import Any
from unittest import mock

import torch
from numpy.typing import NDArray
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from benchmarks.comparison.answers import Ask, report
from benchmarks.comparison.cases import K as TIMED_K
from benchmarks.comparison.cases import N, Rewards, batch
from benchmarks.measurement import Effort, Ratio, of_rounds
from pkpo_client.integrations.trl import PassAtKTrainer
from tests.integrations.trl_run import policy, prompts, tokenizer

PROMPT, COMPLETION = [1, 4], [5, 2]
SETTINGS: dict[str, Any] = {
    "output_dir": tempfile.gettempdir(),  # into which nothing is written
    "use_cpu": True,
    "bf16": False,
    "report_to": "none",
    "num_generations": 2,
    "per_device_train_batch_size": 1024,
    "gradient_accumulation_steps": 1,
}


class Given:
    """Completions that are given to a trainer, and the time from their rewards to their advantages."""

    rewards: Sequence[float | None] = ()
    scored = 0.0
    took = 0.0

    def reward(self, completions: list[str], **_: Any) -> list[float | None]:
        """TRL's reward function."""
        return list(self.rewards)

    def put_into(self, trainer: Any) -> None:
        """Instead of what the trainer would generate."""
        calculate = trainer._calculate_rewards

        def generate(asked: list[Any]) -> tuple[Any, ...]:
            ids, texts = ([PROMPT] * len(asked), [COMPLETION] * len(asked)), ["d"] * len(asked)
            # A GRPOTrainer may have tools, log probabilities and images besides.
            return (*ids, None, texts, None, {}, None, None) if isinstance(trainer, GRPOTrainer) else (*ids, texts)

        def calculate_rewards(*args: Any, **kwargs: Any) -> torch.Tensor:
            rewards: torch.Tensor = calculate(*args, **kwargs)
            self.scored = time.perf_counter()
            return rewards

        trainer._generate, trainer._calculate_rewards = generate, calculate_rewards

    def advantages_of(self, trainer: Any, rewards: Sequence[float | None]) -> torch.Tensor:
        """What a trainer makes of these rewards."""
        self.rewards = rewards
        last = torch.nan_to_num

        def nan_to_num(*args: Any, **kwargs: Any) -> torch.Tensor:
            answer = last(*args, **kwargs)
            self.took = time.perf_counter() - self.scored
            return answer

        # The last thing that TRL does to advantages.
        with mock.patch.object(torch, "nan_to_num", nan_to_num):
            answer: torch.Tensor = trainer._generate_and_score_completions([{"prompt": "a"}] * len(rewards))[
                "advantages"
            ]
        return answer


@cache
def trainer(name: str) -> tuple[Any, Given]:
    """A trainer, and what is given to it."""
    given = Given()
    common: dict[str, Any] = {
        "model": policy(),
        "reward_funcs": given.reward,
        "train_dataset": prompts(),
        "processing_class": tokenizer(),
    }
    made: Any
    if name == "RLOOTrainer":
        made = RLOOTrainer(args=RLOOConfig(**SETTINGS, beta=0.0), **common)
    elif name == "pkpo":
        made = PassAtKTrainer(args=GRPOConfig(**SETTINGS), pkpo={"k": 1, "address": "local"}, **common)
    else:
        scale = "none" if "none" in name else "group"
        made = GRPOTrainer(args=GRPOConfig(**SETTINGS, scale_rewards=scale), **common)
    made.model.train()
    given.put_into(made)
    return made, given


def advantages(name: str, rewards: Rewards, k: int) -> Sequence[NDArray[Any]]:
    """What it answers, group by group.

    TRL has groups of one size; where a group has fewer samples, it is told that the others could not be scored.
    """
    made, given = trainer(name)
    made.num_generations = max(group.size for group in rewards)
    if name == "pkpo":
        made.objective = replace(made.objective, k=str(k))
    missing = [made.num_generations - group.size for group in rewards]
    filled = [[*map(float, group), *[None] * gone] for group, gone in zip(rewards, missing, strict=True)]
    rows = given.advantages_of(made, list(chain(*filled))).view(len(rewards), -1).double().numpy()
    return [row[: group.size] for row, group in zip(rows, rewards, strict=True)]


def ask(name: str) -> Ask:
    return lambda rewards, k: advantages(name, rewards, k)


NAMES = ("GRPOTrainer", 'GRPOTrainer, scale_rewards="none"', "RLOOTrainer", "pkpo")
ESTIMATORS: dict[str, Ask] = {name: ask(name) for name in NAMES}


def times(effort: Effort) -> dict[str, Ratio]:
    """Each over ours, between the same two moments."""
    rewards = batch().ravel().tolist()
    pkpo, _ = trainer("pkpo")
    pkpo.num_generations, pkpo.objective = N, replace(pkpo.objective, k=str(TIMED_K))
    per_function = torch.tensor(rewards).unsqueeze(1)
    ratios = {}
    for name in NAMES[:-1]:
        made, given = trainer(name)
        made.num_generations = N
        theirs, ours = [], []
        for _ in range(effort.of(7) + 1):
            given.advantages_of(made, rewards)
            theirs.append(given.took)
            started = time.perf_counter()
            pkpo._told(per_function)
            ours.append(time.perf_counter() - started)
        ratios[name] = of_rounds(theirs[1:], ours[1:])
    return ratios


if __name__ == "__main__":
    torch.set_num_threads(1)
    report(ESTIMATORS, times, "trl", "torch")
