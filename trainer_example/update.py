"""The policy-gradient step."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.distributed.tensor import DTensor

from trainer_example.configuration import Configuration
from trainer_example.sampling import Rollouts, answer_log_probs


@dataclass(frozen=True)
class Update:
    """How answers and their advantages change the policy.

    REINFORCE, with P prompts and advantages A_i of scale "sum":

        loss = -(1/P) sum_i A_i sum_t log p(token_it)  -  entropy_coefficient * mean_it entropy_it

    The clipped objective puts min(r A_i, clip(r, 1 - c, 1 + c) A_i) in the place of A_i log p, where r is the ratio of
    the token's probability now to the one it was sampled with. Where a batch is one minibatch, gone through once, the
    policy that is changed is still the one that sampled: r is 1, both have the same gradient, and no old probabilities
    are needed. Any other batch gets them, whatever the objective is called. Without them, answers that are the same, of
    the same prompt, go through the model as one with the sum of their advantages. Answers whose advantage is 0 are left
    out, which changes nothing: they have no gradient, unless there is an entropy bonus.
    """

    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    accelerator: Accelerator
    configuration: Configuration
    entropy_coefficient: float

    def step(self, rollouts: Rollouts, advantages: Tensor, seed: Sequence[int]) -> float:
        """Changes the policy, once for each minibatch of each epoch; returns the last norm of the gradient.

        Args:
            rollouts: of this process.
            advantages: of each of its answers.
            seed: decides how epochs are split into minibatches.
        """
        configuration, norm = self.configuration, 0.0
        groups = len(advantages) // configuration.samples_per_prompt
        generator = np.random.default_rng(seed)
        on_policy = configuration.epochs * configuration.minibatches == 1
        old = None if on_policy else self._log_probs_before(rollouts)
        counts = torch.ones_like(advantages)
        if old is None:
            advantages, counts = _summed_over_alike(rollouts, advantages)
        self.model.train()
        for _ in range(configuration.epochs):
            for chosen in np.array_split(generator.permutation(groups), configuration.minibatches):
                samples = np.arange(configuration.samples_per_prompt)
                rows = torch.from_numpy(np.sort(chosen)[:, None] * configuration.samples_per_prompt + samples).flatten()
                norm = self._minibatch(rollouts, advantages, counts, old, rows.to(advantages.device), len(chosen))
        return norm

    def _minibatch(
        self, rollouts: Rollouts, advantages: Tensor, counts: Tensor, old: Tensor | None, rows: Tensor, groups: int
    ) -> float:
        taught = rows[(counts if self.entropy_coefficient else advantages)[rows] != 0]
        passes_of_mine = max(1, math.ceil(len(taught) / self.configuration.micro_batch))
        tokens_of_mine = int(rollouts.answer_mask[rows].sum())
        everyones = self.accelerator.gather(torch.tensor([[passes_of_mine, tokens_of_mine]], device=rows.device))
        # As many passes in every process: a model that is averaged or sharded over processes waits for all of them.
        passes = int(everyones[:, 0].max())
        tokens = float(everyones[:, 1].double().mean())
        for number in range(passes):
            part = taught[number * self.configuration.micro_batch : (number + 1) * self.configuration.micro_batch]
            part = part if len(part) else rows[:1]
            weight = 1.0 if len(taught) > number * self.configuration.micro_batch else 0.0
            last = number + 1 == passes
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.model):
                gain, entropy = self._objective(rollouts, advantages, counts, old, part)
                loss = -(gain / groups + self.entropy_coefficient * entropy / tokens)
                self.accelerator.backward(weight * loss)
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.configuration.max_grad_norm)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        # Of a sharded model it is a DTensor, of which each process holds a part.
        return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)

    def _objective(
        self, rollouts: Rollouts, advantages: Tensor, counts: Tensor, old: Tensor | None, rows: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What is to grow, and the entropy: each summed over the tokens of some answers."""
        log_p, entropies = answer_log_probs(
            self.model, rollouts, rows, self.configuration.temperature, bool(self.entropy_coefficient)
        )
        gains = advantages[rows, None] * log_p
        if old is not None:
            ratio = (log_p - old[rows]).exp()
            clipped = ratio.clamp(1 - self.configuration.clip, 1 + self.configuration.clip)
            gains = torch.minimum(ratio * advantages[rows, None], clipped * advantages[rows, None])
            gains = gains * rollouts.answer_mask[rows]
        return gains.sum(), (counts[rows, None] * entropies).sum()

    def _log_probs_before(self, rollouts: Rollouts) -> Tensor:
        """The log probability of each token under the policy that sampled it, by the same passes that train."""
        rows = torch.arange(len(rollouts.answers), device=rollouts.answers.device)
        parts = rows.split(self.configuration.micro_batch)
        self.model.eval()
        with torch.no_grad():
            return torch.cat(
                [answer_log_probs(self.model, rollouts, part, self.configuration.temperature)[0] for part in parts]
            )


def _summed_over_alike(rollouts: Rollouts, advantages: Tensor) -> tuple[Tensor, Tensor]:
    """Of same answers to the same prompt, all their advantages and their number at one of them, 0 at the others."""
    tokens = [rollouts.prompts, rollouts.prompt_mask, rollouts.answers * rollouts.answer_mask, rollouts.answer_mask]
    _, alike = torch.cat(tokens, 1).unique(dim=0, return_inverse=True)
    rows = torch.arange(len(alike), device=alike.device)
    first = torch.full_like(rows, len(rows)).scatter_reduce(0, alike, rows, "amin")[alike]
    nothing = torch.zeros_like(advantages)
    return nothing.index_add(0, first, advantages), nothing.index_add(0, first, torch.ones_like(advantages))
