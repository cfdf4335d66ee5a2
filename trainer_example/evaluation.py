"""What the policy can do on prompts it is not trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather
from numpy.typing import NDArray
from torch import Tensor

from trainer_example.advantages import Service
from trainer_example.configuration import Configuration
from trainer_example.sampling import Rollouts, Sampler
from trainer_example.tasks import Problem, Task

EVALUATED_K = (1, 2, 4, 8, 16)
DIVERSITY_AMONG = 16


@dataclass(frozen=True)
class Evaluation:
    """Held-out prompts, sampled from.

    Every step is evaluated with the same random numbers, so that what moves is the policy.
    """

    task: Task
    sampler: Sampler
    service: Service
    accelerator: Accelerator
    configuration: Configuration

    def measured(self) -> dict[str, float]:
        """pass@k for each k, with its standard error over prompts; max@k where rewards are not 0 or 1; and more.

        The keys are pass@1, ..., pass_error@1, ..., reward (the mean), solved (the share of prompts that any sample
        solved), entropy (of a token, in nats), diversity (the share of a prompt's answers that differ: among 16 where
        n is a multiple of that, else among n).
        """
        n = self.configuration.evaluation_samples
        problems = self.task.test[: self.configuration.evaluation_prompts]
        mine, counted = share_of(self.accelerator, len(problems))
        chosen = [problems[i] for i in mine]
        rollouts = self.sampler.rollouts(
            [problem.prompt for problem in chosen],
            n,
            self.sampler.uniforms([self.configuration.seed, 2], len(problems) * n)
            .view(len(problems), n, -1)[mine]
            .flatten(0, 1),
        )
        rewards = self.task.rewards(repeated(chosen, n), rollouts.texts)
        device = self.accelerator.device
        among = DIVERSITY_AMONG if n % DIVERSITY_AMONG == 0 else n
        differing = distinct(rollouts.texts, among)
        table = torch.tensor(
            [rewards, np.repeat(counted, n).tolist(), np.repeat(differing, among).tolist()],
            dtype=torch.float64,
            device=device,
        ).T.contiguous()
        everyones = gather(table).cpu().numpy().reshape(-1, n, 3)
        everyones = everyones[everyones[:, 0, 1] == 1]
        solved = everyones[..., 0] >= 1.0
        measured = self._of_k("pass", solved.astype(float))
        if not np.isin(everyones[..., 0], (0.0, 1.0)).all():
            measured |= self._of_k("max", everyones[..., 0])
        measured["reward"] = float(everyones[..., 0].mean())
        measured["solved"] = float(solved.any(1).mean())
        measured["diversity"] = float(everyones[..., 2].mean())
        counts = torch.tensor(np.repeat(counted, n), device=device)
        measured["entropy"] = mean_entropy(self.accelerator, rollouts, counts)
        return measured

    def _of_k(self, name: str, rewards: NDArray[np.float64]) -> dict[str, float]:
        ks = [k for k in EVALUATED_K if k <= rewards.shape[1]]
        estimates = self.service.max_at_k(rewards, ks)
        return {
            **{f"{name}@{k}": value for k, (value, _) in zip(ks, estimates, strict=True)},
            **{f"{name}_error@{k}": error for k, (_, error) in zip(ks, estimates, strict=True)},
        }


def share_of(accelerator: Accelerator, count: int) -> tuple[list[int], list[float]]:
    """The numbers, out of `count`, of this process's prompts, and whether each counts.

    Every process gets as many: where they do not divide, the last ones get some that are another's, and do not count.
    """
    each = -(-count // accelerator.num_processes)
    numbers = range(accelerator.process_index * each, (accelerator.process_index + 1) * each)
    return [number % count for number in numbers], [float(number < count) for number in numbers]


def repeated(problems: Sequence[Problem], n: int) -> list[Problem]:
    """Each problem n times, beside each of its answers."""
    return [problem for problem in problems for _ in range(n)]


def distinct(texts: Sequence[str], n: int) -> NDArray[np.float64]:
    """The share of each prompt's n answers that differ from each other."""
    return np.array([len(set(texts[i : i + n])) / n for i in range(0, len(texts), n)])


def mean_entropy(accelerator: Accelerator, rollouts: Rollouts, counts: Tensor) -> float:
    """The entropy of a token, in nats, over all processes' answers whose `counts` is 1."""
    counted = rollouts.answer_mask * counts[:, None]
    sums = torch.stack([(rollouts.entropies * counted).sum(), counted.sum()]).double()
    total, tokens = accelerator.reduce(sums, "sum").tolist()
    return float(total / tokens)
