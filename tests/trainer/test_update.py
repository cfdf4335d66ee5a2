"""The step is along the gradient that the formula says, however it is split."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from trainer_example.configuration import Configuration
from trainer_example.models import trainable
from trainer_example.sampling import Rollouts, answer_log_probs
from trainer_example.update import Update

from .test_sampling import PROMPTS, sampler

N = 4


def rollouts_of(drawer: Any, n: int = N) -> Rollouts:
    rollouts: Rollouts = drawer.rollouts(PROMPTS, n, drawer.uniforms([7], len(PROMPTS) * n))
    return rollouts


def updated(
    drawer: Any, configuration: Configuration, rollouts: Rollouts, advantages: Any, entropy_coefficient: float = 0.0
) -> dict[str, Any]:
    """How far each parameter moved, divided by the learning rate: the gradient, with plain gradient descent."""
    model = drawer.model
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)
    update = Update(model, optimizer, schedule, Accelerator(cpu=True), configuration, entropy_coefficient)
    update.step(rollouts, advantages, [0, 0])
    return {name: before[name] - parameter.detach() for name, parameter in model.named_parameters()}


def expected(drawer: Any, rollouts: Rollouts, advantages: Any, entropy_coefficient: float = 0.0) -> dict[str, Any]:
    """The gradient of the loss as its formula is written, by one pass over all answers."""
    log_p, entropies = answer_log_probs(
        drawer.model, rollouts, torch.arange(len(advantages)), drawer.temperature, with_entropy=True
    )
    loss = -(advantages * log_p.sum(1)).sum() / len(PROMPTS)
    loss = loss - entropy_coefficient * entropies.sum() / rollouts.answer_mask.sum()
    names = [name for name, _ in drawer.model.named_parameters()]
    return dict(zip(names, torch.autograd.grad(loss, list(drawer.model.parameters())), strict=True))


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    largest = max(float(gradient.abs().max()) for gradient in other.values())
    assert largest > 1e-3
    for name in other:
        torch.testing.assert_close(one[name], other[name], atol=2e-5 * largest, rtol=1e-4, msg=name)


@pytest.fixture
def options(configuration: Configuration) -> Configuration:
    return dataclasses.replace(
        configuration, samples_per_prompt=N, max_grad_norm=1e9, temperature=0.8, micro_batch=1000
    )


@pytest.fixture
def advantages() -> Any:
    drawn = torch.randn(len(PROMPTS) * N, generator=torch.Generator().manual_seed(0))
    drawn[::3] = 0.0
    return drawn


@pytest.mark.parametrize("micro_batch", [1, 3, 1000])
@pytest.mark.parametrize("entropy_coefficient", [0.0, 0.05])
def test_the_gradient_is_that_of_the_formula(
    options: Configuration, advantages: Any, micro_batch: int, entropy_coefficient: float
) -> None:
    drawer = sampler()
    rollouts = rollouts_of(drawer)
    wanted = expected(drawer, rollouts, advantages, entropy_coefficient)
    options = dataclasses.replace(options, micro_batch=micro_batch)
    assert_same(updated(drawer, options, rollouts, advantages, entropy_coefficient), wanted)


@pytest.mark.parametrize("entropy_coefficient", [0.0, 0.05])
def test_same_answers_go_through_the_model_as_one(
    options: Configuration, advantages: Any, entropy_coefficient: float
) -> None:
    """Answers of one token, of which many are the same: the gradient is that of all of them, one by one."""
    drawer = sampler(max_new_tokens=1)
    rollouts = rollouts_of(drawer)
    wanted = expected(drawer, rollouts, advantages, entropy_coefficient)
    rows: list[int] = []
    drawer.model.register_forward_pre_hook(
        lambda module, inputs, named: rows.append(named["input_ids"].shape[0]), with_kwargs=True
    )
    assert_same(updated(drawer, options, rollouts, advantages, entropy_coefficient), wanted)
    distinct = {(row // N, int(token)) for row, token in enumerate(rollouts.answers[:, 0])
                if entropy_coefficient or advantages[row] != 0}  # fmt: skip
    assert rows == [len(distinct)]
    assert len(distinct) < len(PROMPTS) * N - (0 if entropy_coefficient else int((advantages == 0).sum()))


def test_without_any_signal_nothing_moves(options: Configuration) -> None:
    drawer = sampler()
    moved = updated(drawer, options, rollouts_of(drawer), torch.zeros(len(PROMPTS) * N))
    assert all(float(change.abs().max()) == 0.0 for change in moved.values())


def test_the_first_clipped_step_is_the_policy_gradient(options: Configuration, advantages: Any) -> None:
    drawer = sampler()
    rollouts = rollouts_of(drawer)
    wanted = expected(drawer, rollouts, advantages)
    assert_same(updated(drawer, dataclasses.replace(options, objective="clip"), rollouts, advantages), wanted)


def test_a_token_that_moved_too_far_counts_no_more(options: Configuration) -> None:
    """Ratios are made by hand: half of the tokens are beyond the clip, in the direction of their advantage."""
    drawer = sampler()
    rollouts = rollouts_of(drawer)
    options = dataclasses.replace(options, objective="clip", clip=0.2)
    rows = torch.arange(len(PROMPTS) * N)
    advantages = torch.where(rows % 2 == 0, 1.0, -1.0)
    now, _ = answer_log_probs(drawer.model, rollouts, rows, 0.8)
    shift = torch.where(torch.arange(now.shape[1]) % 2 == 0, 0.5, 0.05) * advantages[:, None]
    old = now.detach() - shift  # ratios exp(0.5) and exp(0.05) for the good, exp(-0.5) and exp(-0.05) for the bad
    update = Update(drawer.model, None, None, Accelerator(cpu=True), options, 0.0)  # type: ignore[arg-type]
    gain, _ = update._objective(rollouts, advantages, torch.ones_like(advantages), old, rows)
    inside = (torch.arange(now.shape[1]) % 2 == 1) * rollouts.answer_mask
    ratio = (now - old).exp()
    wanted = torch.autograd.grad(
        (ratio * advantages[:, None] * inside).sum(), drawer.model.lm_head.weight, retain_graph=True
    )
    got = torch.autograd.grad(gain, drawer.model.lm_head.weight)
    torch.testing.assert_close(got, wanted)


def test_epochs_and_minibatches_each_take_a_step(options: Configuration, advantages: Any) -> None:
    drawer = sampler()
    rollouts = rollouts_of(drawer)
    taken: list[int] = []
    options = dataclasses.replace(options, objective="clip", epochs=3, minibatches=2)
    optimizer = torch.optim.SGD(drawer.model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: taken.append(step) or 1.0)  # type: ignore[func-returns-value]
    Update(drawer.model, optimizer, schedule, Accelerator(cpu=True), options, 0.0).step(rollouts, advantages, [0, 0])
    assert taken[-1] == 6


def test_recomputed_activations_give_the_same_gradient(options: Configuration, advantages: Any) -> None:
    drawer = sampler()
    rollouts = rollouts_of(drawer)
    wanted = expected(drawer, rollouts, advantages)
    trainable(drawer.model, dataclasses.replace(options, gradient_checkpointing=True))
    assert drawer.model.is_activation_checkpointing
    assert_same(updated(drawer, options, rollouts, advantages), wanted)
