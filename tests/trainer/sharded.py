"""Run in two processes by test_processes.py: samples and a step with a model whose weights are sharded over both."""

from __future__ import annotations

import copy

import torch
from accelerate import Accelerator
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from tests.trainer.test_sampling import sampler
from trainer_example.configuration import Configuration
from trainer_example.sampling import Sampler, answer_log_probs
from trainer_example.train import everywhere
from trainer_example.update import Update

PROMPTS = ["a12=", "b=", "c1234567890=", "d0="]
N = 4


def update_of(model: torch.nn.Module, accelerator: Accelerator, max_grad_norm: float) -> Update:
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)
    options = Configuration(samples_per_prompt=N, micro_batch=3, max_grad_norm=max_grad_norm, temperature=0.8)
    return Update(model, optimizer, schedule, accelerator, options, 0.0)


def main() -> None:
    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == 2
    drawer = sampler(max_new_tokens=12)
    whole = copy.deepcopy(drawer.model)
    mesh = init_device_mesh("cpu", (2,))
    for layer in drawer.model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(drawer.model, mesh=mesh)
    assert all(isinstance(parameter, DTensor) for parameter in drawer.model.parameters())
    update = update_of(drawer.model, accelerator, 0.5)

    mine = slice(2 * accelerator.process_index, 2 * accelerator.process_index + 2)
    uniforms = drawer.uniforms([1], len(PROMPTS) * N)
    sharded = Sampler(drawer.model, drawer.tokenizer, 12, 0.8, N, lambda true: everywhere(accelerator, true))
    alone = Sampler(whole, drawer.tokenizer, 12, 0.8, 1000, lambda true: true)
    rollouts = sharded.rollouts(PROMPTS[mine], N, uniforms.view(len(PROMPTS), N, -1)[mine].flatten(0, 1))
    everything = alone.rollouts(PROMPTS, N, uniforms)
    rows = slice(mine.start * N, mine.stop * N)
    assert rollouts.texts == everything.texts[rows], (rollouts.texts, everything.texts[rows])

    assert all(isinstance(parameter, DTensor) for parameter in drawer.model.parameters())  # to be saved, say

    advantages = torch.randn(len(PROMPTS) * N, generator=torch.Generator().manual_seed(0))
    advantages[: 2 * N - 2] = 0.0  # the first process has one pass to make, the second three
    norm = update.step(rollouts, advantages[rows], [0])

    # By the formula, all answers in one pass, clipped to the same norm.
    log_p, _ = answer_log_probs(whole, everything, torch.arange(len(advantages)), 0.8)
    (-(advantages * log_p.sum(1)).sum() / len(PROMPTS)).backward()
    wanted = torch.nn.utils.clip_grad_norm_(whole.parameters(), 0.5)
    torch.testing.assert_close(torch.tensor(norm), wanted, rtol=1e-4, atol=0)
    for (name, one), other in zip(drawer.model.named_parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(
            one.full_tensor().detach(),
            (other - other.grad).detach(),
            rtol=1e-4,
            atol=1e-5,
            msg=f"{name} moved otherwise",
        )


if __name__ == "__main__":
    main()
