"""The loop."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from tqdm import tqdm
from transformers import get_constant_schedule_with_warmup

from pkpo_client.errors import PkpoError
from trainer_example import models
from trainer_example.advantages import Service, Signal
from trainer_example.checkpoints import Checkpoints, Progress
from trainer_example.configuration import Configuration
from trainer_example.evaluation import Evaluation, distinct, mean_entropy, repeated
from trainer_example.methods import method_named
from trainer_example.metrics import Metrics, Stopwatch
from trainer_example.plots import write_plots
from trainer_example.sampling import Rollouts, Sampler
from trainer_example.tasks import Task, task_named
from trainer_example.update import Update
from trainer_example.warm_start import warm_started

log = logging.getLogger("trainer_example")


class Interrupted(RuntimeError):
    """The service did not answer; the run's state is kept, and --resume goes on from it."""


def train(configuration: Configuration) -> None:
    """A run, from its first step or its newest checkpoint to its last step.

    Args:
        configuration: what to train, on what, how.

    Raises:
        ValueError: something in the configuration is not possible.
        Interrupted: the service is gone, and the run is to stop without it.
        FileExistsError: the run directory holds checkpoints, and the run is not to resume.
    """
    accelerator = Accelerator()
    check_processes(configuration, accelerator.num_processes)
    run_dir = Path(configuration.run_dir)
    method = method_named(configuration.method)
    task = task_named(configuration.task)

    tokenizer = models.tokenizer_of(configuration, task)
    with accelerator.main_process_first():
        if models.has_random_weights(configuration.model):
            policy = warm_started(configuration, task, tokenizer)
        else:
            policy = models.policy_of(configuration, len(tokenizer))
    model = models.trainable(policy, configuration)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=configuration.learning_rate, betas=(0.9, 0.99))
    schedule = get_constant_schedule_with_warmup(optimizer, configuration.warmup_steps)
    # The schedule is stepped by hand, once an optimiser step, however many processes there are: it is not prepared.
    model, optimizer = accelerator.prepare(model, optimizer)
    accelerator.register_for_checkpointing(schedule)

    progress = Progress()
    accelerator.register_for_checkpointing(progress)
    checkpoints = Checkpoints(run_dir / "checkpoints", accelerator, progress, configuration.keep_checkpoints)
    if (newest := checkpoints.newest()) is not None:
        if not configuration.resume:
            raise FileExistsError(
                f"{newest.parent} holds checkpoints: --resume goes on from them; or name another run_dir"
            )
        checkpoints.load(newest)
        log.info("going on from step %d", progress.step)

    sampler = Sampler(
        accelerator.unwrap_model(model),
        tokenizer,
        configuration.max_new_tokens or task.max_new_tokens,
        configuration.temperature,
        configuration.sample_batch,
        lambda true: everywhere(accelerator, true),
    )
    update = Update(model, optimizer, schedule, accelerator, configuration, method.entropy_coefficient)
    main = accelerator.is_main_process
    if main:
        configuration.save()
    with (
        Service(configuration, method, accelerator) as service,
        Metrics(
            run_dir if main else None,
            configuration.name,
            configuration.metrics_host,
            configuration.metrics_port,
            configuration.tensorboard,
            progress.step,
        ) as metrics,
        tqdm(total=configuration.steps, initial=progress.step, unit="step", disable=not main) as bar,
    ):
        service.check()
        evaluation = Evaluation(task, sampler, service, accelerator, configuration)
        if progress.step == 0 and configuration.evaluate_every:
            metrics.record(0, "evaluation", evaluation.measured())
        while progress.step < configuration.steps:
            step = progress.step
            watch = Stopwatch()
            with watch.of("sampling"):
                numbers = prompts_of(step, configuration, len(task.train))
                mine = np.split(numbers, accelerator.num_processes)[accelerator.process_index]
                problems = [task.train[number] for number in mine]
                rollouts = sampler.rollouts(
                    [problem.prompt for problem in problems],
                    configuration.samples_per_prompt,
                    sampled_by(sampler, step, configuration, accelerator),
                )
            with watch.of("reward"):
                rewards = task.rewards(repeated(problems, configuration.samples_per_prompt), rollouts.texts)
            try:
                with watch.of("service"):
                    signal = service.signal(rewards, step)
            except PkpoError as error:
                path = checkpoints.save()
                raise Interrupted(f"step {step}: {error}; {path} is kept: --resume goes on from there") from error
            with watch.of("update"):
                norm = update.step(rollouts, signal.advantages, [configuration.seed, step])

            progress.step += 1
            progress.solved |= set(numbers[(signal.rewards >= 1.0).any(1)].tolist())
            figures = figures_of(signal, rollouts, task, progress, accelerator, configuration)
            seconds = {f"{stage}_seconds": time for stage, time in watch.seconds.items()}
            figures |= {"gradient_norm": norm, **seconds, "step_seconds": sum(watch.seconds.values())}
            if torch.cuda.is_available():
                figures["peak_memory_bytes"] = float(torch.cuda.max_memory_allocated())
            metrics.record(progress.step, "train", figures)
            metrics.count_step(signal.rewards.size, watch.seconds)
            bar.update()
            bar.set_postfix(reward=f"{figures['reward']:.3f}", entropy=f"{figures['entropy']:.2f}", k=signal.k)

            last = progress.step == configuration.steps
            if configuration.evaluate_every and (last or progress.step % configuration.evaluate_every == 0):
                metrics.record(progress.step, "evaluation", evaluation.measured())
            if last or (configuration.checkpoint_every and progress.step % configuration.checkpoint_every == 0):
                checkpoints.save()

    trained_state = accelerator.get_state_dict(model)
    if main:
        accelerator.unwrap_model(model).save_pretrained(run_dir / "model", state_dict=trained_state)
        tokenizer.save_pretrained(run_dir / "model")
        write_plots(run_dir)
    accelerator.end_training()


def check_processes(configuration: Configuration, processes: int) -> None:
    """Raises ValueError where processes do not find each other, or prompts do not divide into them."""
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started != processes:
        raise ValueError(f"{started} processes were started, and accelerate would train {processes} in each on its own")
    if configuration.prompts_per_step % (processes * configuration.minibatches) != 0:
        raise ValueError(
            f"prompts_per_step: is {configuration.prompts_per_step}; must be a multiple of "
            f"{processes} processes times {configuration.minibatches} minibatches"
        )


def prompts_of(step: int, configuration: Configuration, problems: int) -> np.ndarray:
    """The numbers of the problems of a step, of all processes: each once before any comes again."""
    first = step * configuration.prompts_per_step
    places = range(first, first + configuration.prompts_per_step)
    rounds = {place // problems for place in places}
    orders = {r: np.random.default_rng([configuration.seed, 0, r]).permutation(problems) for r in rounds}
    return np.array([orders[place // problems][place % problems] for place in places])


def sampled_by(sampler: Sampler, step: int, configuration: Configuration, accelerator: Accelerator) -> torch.Tensor:
    """The random numbers of this process's answers of a step."""
    answers = configuration.prompts_per_step * configuration.samples_per_prompt
    everyones = sampler.uniforms([configuration.seed, 1, step], answers)
    return everyones.chunk(accelerator.num_processes)[accelerator.process_index]


def everywhere(accelerator: Accelerator, true: bool) -> bool:
    """Whether something is true in every process."""
    if accelerator.num_processes == 1:
        return true
    return bool(accelerator.gather(torch.tensor([int(true)], device=accelerator.device)).all())


def figures_of(
    signal: Signal,
    rollouts: Rollouts,
    task: Task,
    progress: Progress,
    accelerator: Accelerator,
    configuration: Configuration,
) -> dict[str, float]:
    """What a training step shows, over all processes."""
    differing = distinct(rollouts.texts, configuration.samples_per_prompt).mean()
    tokens = rollouts.answer_mask.sum(1).double().mean()
    means = accelerator.reduce(torch.tensor([differing, tokens], device=accelerator.device), "mean").tolist()
    return {
        "k": signal.k,
        "reward": float(signal.rewards.mean()),
        "solved_now": float((signal.rewards >= 1.0).any(1).mean()),
        "solved_in_training": len(progress.solved) / len(task.train),
        "groups_without_signal": signal.groups_without_signal / len(signal.rewards),
        "entropy": mean_entropy(accelerator, rollouts),
        "diversity": means[0],
        "answer_tokens": means[1],
    }
