"""The loop."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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


class Interrupted(RuntimeError):
    """The service did not answer; the run's state is kept, and --resume goes on from it."""


@dataclass(frozen=True)
class Run:
    """Everything that takes part in a run; `loop` is what they do."""

    configuration: Configuration
    accelerator: Accelerator
    task: Task
    sampler: Sampler
    service: Service
    update: Update
    evaluation: Evaluation
    progress: Progress
    checkpoints: Checkpoints
    metrics: Metrics

    def loop(self) -> None:
        """Steps, with evaluations between them and checkpoints behind them, to the last.

        Raises:
            Interrupted: the service is gone, and the run is to stop without it.
        """
        every, last = self.configuration.evaluate_every, self.configuration.steps
        # Said only where it is hidden, so that TQDM_DISABLE hides it too.
        hidden: dict[str, Any] = {} if self.accelerator.is_main_process else {"disable": True}
        with tqdm(total=last, initial=self.progress.step, unit="step", **hidden) as bar:
            while True:
                try:
                    # At the start of a step, so that a run which is resumed here evaluates here.
                    if every and (self.progress.step % every == 0 or self.progress.step == last):
                        self.metrics.record(self.progress.step, "evaluation", self.evaluation.measured())
                    if self.progress.step == last:
                        break
                    figures = self.step()
                except PkpoError as error:
                    path = self.checkpoints.save()
                    kept = f"{path} is kept: --resume true goes on from there"
                    raise Interrupted(f"step {self.progress.step}: {error}\n{kept}") from error
                self.checkpoints.save_if_due(self.configuration.checkpoint_every, last)
                bar.update()
                bar.set_postfix(reward=f"{figures['reward']:.3f}", entropy=f"{figures['entropy']:.2f}")

    def step(self) -> dict[str, float]:
        """One training step: samples, rewards, advantages, update. Returns what it showed.

        Raises:
            PkpoError: the service has no advantages; nothing has changed then.
        """
        step, n = self.progress.step, self.configuration.samples_per_prompt
        watch = Stopwatch()
        with watch.of("sampling"):
            numbers = prompts_of(step, self.configuration, len(self.task.train))
            problems = [self.task.train[number] for number in self._mine(numbers)]
            uniforms = self.sampler.uniforms([self.configuration.seed, 1, step], len(numbers) * n)
            rollouts = self.sampler.rollouts([problem.prompt for problem in problems], n, self._mine(uniforms))
        with watch.of("reward"):
            rewards = self.service.gathered(self.task.rewards(repeated(problems, n), rollouts.texts))
        with watch.of("service"):
            signal = self.service.signal(rewards, step)
        with watch.of("update"):
            norm = self.update.step(rollouts, signal.advantages, [self.configuration.seed, 3, step])

        self.progress.step += 1
        self.progress.solved |= set(numbers[(signal.rewards >= 1.0).any(1)].tolist())
        figures = self._figures(signal, rollouts) | {"gradient_norm": norm} | watch.figures()
        self.metrics.record(self.progress.step, "train", figures)
        self.metrics.count_step(signal.rewards.size, watch.seconds)
        return figures

    def _figures(self, signal: Signal, rollouts: Rollouts) -> dict[str, float]:
        """What a step shows, over all processes."""
        differing = distinct(rollouts.texts, self.configuration.samples_per_prompt).mean()
        means = torch.tensor([differing, rollouts.answer_mask.sum(1).double().mean()], device=self.accelerator.device)
        diversity, tokens = self.accelerator.reduce(means, "mean").tolist()
        return {
            "k": signal.k,
            "reward": float(signal.rewards.mean()),
            "solved_now": float((signal.rewards >= 1.0).any(1).mean()),
            "solved_in_training": len(self.progress.solved) / len(self.task.train),
            "groups_without_signal": signal.groups_without_signal / len(signal.rewards),
            "entropy": mean_entropy(self.accelerator, rollouts, torch.ones_like(signal.advantages)),
            "diversity": diversity,
            "answer_tokens": tokens,
        }

    def _mine(self, everyones: Any) -> Any:
        """This process's part of an array or tensor that has a part for each."""
        each = len(everyones) // self.accelerator.num_processes
        return everyones[self.accelerator.process_index * each : (self.accelerator.process_index + 1) * each]


def train(configuration: Configuration) -> None:
    """A run, from its first step or its newest checkpoint to its last step, and what it leaves behind.

    Args:
        configuration: what to train, on what, how.

    Raises:
        ValueError: something in the configuration is not possible.
        PkpoError: the service is not there at the start, or refuses the method.
        Interrupted: the service is gone, and the run is to stop without it.
        FileExistsError: the run directory holds checkpoints, and the run is not to resume.
    """
    accelerator = Accelerator()
    check_processes(configuration, accelerator.num_processes)
    if configuration.resume:
        configuration.check_resumes()
    main, run_dir = accelerator.is_main_process, Path(configuration.run_dir)
    method = method_named(configuration.method)
    task = task_named(configuration.task)

    with Service(configuration, method, accelerator) as service:
        service.check()  # first, because the rest takes long
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
        # The schedule is not prepared: accelerate would step it once for each process.
        model, optimizer = accelerator.prepare(model, optimizer)
        progress = Progress()
        accelerator.register_for_checkpointing(schedule, progress)
        checkpoints = Checkpoints(run_dir / "checkpoints", accelerator, progress, configuration.keep_checkpoints)
        checkpoints.start(configuration.resume)
        if main:
            configuration.save()

        sampler = Sampler(
            accelerator.unwrap_model(model),
            tokenizer,
            configuration.max_new_tokens or task.max_new_tokens,
            configuration.temperature,
            configuration.sample_batch,
            lambda true: everywhere(accelerator, true),
        )
        update = Update(model, optimizer, schedule, accelerator, configuration, method.entropy_coefficient)
        evaluation = Evaluation(task, sampler, service, accelerator, configuration)
        with Metrics(configuration, progress.step, written=main) as metrics:
            run = Run(
                configuration, accelerator, task, sampler, service, update, evaluation, progress, checkpoints, metrics
            )
            run.loop()

    weights = accelerator.get_state_dict(model)
    if main:
        accelerator.unwrap_model(model).save_pretrained(run_dir / "model", state_dict=weights)
        tokenizer.save_pretrained(run_dir / "model")
        write_plots(run_dir)
    # What the last collective held is given back by a thread of gloo's, which needs the interpreter. The end of the
    # process group waits for that thread and keeps the interpreter meanwhile: nothing may be left to give back.
    accelerator.wait_for_everyone()
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


def everywhere(accelerator: Accelerator, true: bool) -> bool:
    """Whether something is true in every process."""
    if accelerator.num_processes == 1:
        return true
    return bool(accelerator.gather(torch.tensor([int(true)], device=accelerator.device)).all())
