"""Everything a run can be told, as flags or as a YAML file."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast, get_args, get_type_hints

import yaml
from transformers import HfArgumentParser

CONFIGURATION_FILE = "configuration.yaml"
# What a resumed run may be told otherwise: none of it moves the policy elsewhere.
MAY_CHANGE = {
    *("server", "server_timeout", "on_outage", "run_dir", "run_id", "resume", "steps", "sample_batch", "micro_batch"),
    *("gradient_checkpointing", "warm_start_dir", "evaluate_every", "evaluation_prompts", "evaluation_samples"),
    *("checkpoint_every", "keep_checkpoints", "metrics_host", "metrics_port", "tensorboard"),
}


def _option(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class Configuration:
    """One training run."""

    # What is trained, on what, how, and where its advantages come from.
    model: str = _option(
        "tiny-gemma2", "tiny-gemma2, small-gemma2, tiny-llama, gemma-2-2b-random, or any causal LM of transformers"
    )
    task: str = _option(
        "rules", "rules, fog, reasoning_gym:GENERATOR, arc_agi_1_easy, math, mbpp_to_humaneval; :a=b for options"
    )
    method: str = _option("k:8", "k:SCHEDULE, loo, tzsm, anneal:STEP, entropy:COEFFICIENT, or VARIANT[:SCHEDULE]")
    server: str = _option("localhost:50051", "where pkpo-server is")
    server_timeout: float = _option(30.0, "seconds to wait for an answer, retries included, before it counts as gone")
    on_outage: Literal["stop", "local"] = _option(
        "stop", "without the service: stop, resumable; or compute advantages here"
    )

    # Where it goes.
    run_dir: str = _option("runs/latest", "configuration, metrics, plots, checkpoints and the trained model")
    run_id: str = _option("", "how the service and Prometheus name this run; empty: the run directory's name")
    resume: bool = _option(False, "go on from the newest checkpoint of run_dir")
    seed: int = _option(0, "of prompts and samples; the task has its own, and so has the tiny model")

    # A step.
    steps: int = _option(800, "training steps")
    prompts_per_step: int = _option(64, "prompts a step, over all processes")
    samples_per_prompt: int = _option(16, "n: samples per prompt, the size of a group")
    temperature: float = _option(1.0, "of sampling")
    max_new_tokens: int = _option(0, "how long an answer may get; 0: as the task says")
    objective: Literal["reinforce", "clip"] = _option("reinforce", "on-policy policy gradient, or PPO's clipped one")
    epochs: int = _option(1, "clip: how often each step's samples are gone through")
    minibatches: int = _option(1, "clip: optimiser steps an epoch")
    clip: float = _option(
        0.2, "clip: how far the probability of a token may move, as a ratio, before it counts no more"
    )
    learning_rate: float = _option(2e-4, "of Adam")
    warmup_steps: int = _option(0, "optimiser steps over which the learning rate rises from 0")
    max_grad_norm: float = _option(1.0, "gradients are scaled down to this norm")

    # How the model fits.
    sample_batch: int = _option(1024, "answers sampled at a time, a process")
    micro_batch: int = _option(1024, "answers a forward and backward pass, a process; gradients are accumulated")
    dtype: Literal["float32", "bfloat16"] = _option("float32", "of the weights; mixed precision is accelerate's to say")
    attention: str = _option("eager", "eager, sdpa, flash_attention_2, ...: Gemma-2 is exact with eager")
    gradient_checkpointing: bool = _option(False, "recompute activations in the backward pass")
    lora_rank: int = _option(0, "train adapters of this rank on every linear layer; 0: all weights")
    lora_alpha: int = _option(32, "scale of the adapters")

    # The tiny models start from demonstrations, where the task has them.
    model_seed: int = _option(0, "of the initial weights and of the demonstrations")
    warm_start_steps: int = _option(-1, "supervised steps; -1: as the task says")
    warm_start_dir: str = _option("runs/warm-starts", "where models are kept, for the runs that start from the same")

    # What is measured, and kept.
    evaluate_every: int = _option(100, "steps between evaluations; 0: never. The last step is always evaluated")
    evaluation_prompts: int = _option(500, "held-out prompts")
    evaluation_samples: int = _option(16, "samples per held-out prompt")
    checkpoint_every: int = _option(100, "steps between checkpoints; 0: none but the last")
    keep_checkpoints: int = _option(2, "how many")
    metrics_host: str = _option("127.0.0.1", "where the trainer's own Prometheus metrics are served; 0.0.0.0: to all")
    metrics_port: int = _option(-1, "theirs; 0: any, -1: none")
    tensorboard: bool = _option(True, "write TensorBoard's files into run_dir")

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(type(self)).items():
            value, choices = getattr(self, name), get_args(kind)
            if choices and value not in choices:
                raise ValueError(f"{name}: is {value!r}; must be one of {', '.join(choices)}")
            if not choices and type(value) not in ((int, float) if kind is float else (kind,)):
                raise ValueError(f"{name}: is {value!r}; must be of type {kind.__name__}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate: is {self.learning_rate}; must be above 0")
        at_least_one = (
            *("steps", "prompts_per_step", "samples_per_prompt", "epochs", "minibatches", "sample_batch"),
            *("micro_batch", "evaluation_prompts", "evaluation_samples", "keep_checkpoints"),
        )
        for name in at_least_one:
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: is {getattr(self, name)}; must be at least 1")
        if not self.temperature > 0:
            raise ValueError(f"temperature: is {self.temperature}; must be above 0")
        if self.objective == "reinforce" and (self.epochs, self.minibatches) != (1, 1):
            raise ValueError("epochs, minibatches: must be 1 with objective reinforce, which is on-policy; use clip")

    @property
    def name(self) -> str:
        """The run's name, as the service sees it."""
        return self.run_id or Path(self.run_dir).resolve().name

    def save(self) -> None:
        """Writes it into its run directory."""
        path = Path(self.run_dir) / CONFIGURATION_FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(dataclasses.asdict(self), sort_keys=False))

    def check_resumes(self) -> None:
        """Raises ValueError where it says something else than what its run directory was started with."""
        path = Path(self.run_dir) / CONFIGURATION_FILE
        was = yaml.safe_load(path.read_text()) if path.exists() else {}
        other = [f"{name} was {value!r}" for name, value in was.items()
                 if name not in MAY_CHANGE and getattr(self, name, value) != value]  # fmt: skip
        if other:
            raise ValueError(
                f"resume: the run was started otherwise: {', '.join(other)}; --config {path} says the same"
            )


def configuration_of(arguments: Sequence[str]) -> Configuration:
    """The configuration that command-line arguments say: flags, over the YAML file of --config, over the defaults."""
    file = argparse.ArgumentParser(add_help=False)
    file.add_argument("--config", metavar="FILE")
    known, rest = file.parse_known_args(arguments)
    parser = HfArgumentParser(
        Configuration,
        prog="python -m trainer_example",
        description="RL on pass@k. --config FILE reads options from YAML; flags override it.",
    )
    if known.config is not None:
        try:
            said = yaml.safe_load(Path(known.config).read_text()) or {}
        except OSError as error:
            parser.error(f"--config: {error}")
        unknown = set(said) - {option.name for option in dataclasses.fields(Configuration)}
        if unknown:
            parser.error(f"{known.config}: no such option: {', '.join(sorted(unknown))}")
        parser.set_defaults(**said)
    try:
        (configuration,) = parser.parse_args_into_dataclasses(rest)
    except ValueError as error:
        parser.error(str(error))
    return cast(Configuration, configuration)
