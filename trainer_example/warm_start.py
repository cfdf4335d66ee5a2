"""A model of random weights, taught by demonstrations, so that there is something to explore from."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase, get_cosine_schedule_with_warmup

from trainer_example.configuration import Configuration
from trainer_example.models import policy_of
from trainer_example.tasks import Task

LEARNING_RATE = 2e-3
BATCH = 256
DEMONSTRATIONS = 3  # the version of what tasks demonstrate: a model that was taught by another is not taken


def warm_started(configuration: Configuration, task: Task, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """The model of random weights after its supervised steps: as kept by an earlier run, or taught and kept now."""
    steps = task.warm_start_steps if configuration.warm_start_steps < 0 else configuration.warm_start_steps
    if steps == 0:
        return policy_of(configuration, len(tokenizer))
    about = [configuration.model, configuration.task, configuration.model_seed, steps, configuration.dtype,
             LEARNING_RATE, BATCH, DEMONSTRATIONS]  # fmt: skip
    name = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]
    kept = Path(configuration.warm_start_dir) / name
    if not (kept / "config.json").exists():
        policy = _taught(policy_of(configuration, len(tokenizer)), configuration, task, tokenizer, steps)
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept.parent) as unfinished:
            policy.save_pretrained(unfinished)
            (Path(unfinished) / "warm_start.json").write_text(json.dumps(about))
            try:
                os.rename(unfinished, kept)
                os.mkdir(unfinished)  # for the context to remove
            except OSError:
                if not (kept / "config.json").exists():
                    raise  # else another process was as fast
    return AutoModelForCausalLM.from_pretrained(
        kept, dtype=getattr(torch, configuration.dtype), attn_implementation=configuration.attention
    )


def _taught(
    policy: PreTrainedModel, configuration: Configuration, task: Task, tokenizer: PreTrainedTokenizerBase, steps: int
) -> PreTrainedModel:
    generator = np.random.default_rng([configuration.model_seed, 1])
    optimizer = torch.optim.Adam(policy.parameters(), lr=LEARNING_RATE)
    schedule = get_cosine_schedule_with_warmup(optimizer, 0, steps)
    if type(task).demonstrations is Task.demonstrations:
        raise ValueError(f"warm_start_steps: is {steps}; must be 0: {configuration.task} has no demonstrations")
    policy.to("cuda" if torch.cuda.is_available() else "cpu").train()
    for _ in tqdm(range(steps), desc="warm start", unit="step"):
        demonstrations = task.demonstrations(generator, BATCH)
        leaked = sum(prompt in task.held_out for prompt, _ in demonstrations)
        if leaked:
            raise ValueError(f"task: {configuration.task} has {leaked} test prompts in a batch of its demonstrations")
        ids, labels = _imitated(demonstrations, tokenizer, task.max_new_tokens)
        loss = policy(
            input_ids=ids.to(policy.device),
            attention_mask=(ids != tokenizer.pad_token_id).to(policy.device),
            labels=labels.to(policy.device),
        ).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return policy


def _imitated(
    demonstrations: list[tuple[str, str]], tokenizer: PreTrainedTokenizerBase, max_new_tokens: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids, padded on the right, and the labels: the answer, and its end where it stops before its longest."""
    prompts, said = (list(column) for column in zip(*demonstrations, strict=True))
    heads, tails = tokenizer(prompts).input_ids, tokenizer(said, add_special_tokens=False).input_ids
    tails = [tail + [tokenizer.eos_token_id] * (len(tail) < max_new_tokens) for tail in tails]
    longest = max(len(head) + len(tail) for head, tail in zip(heads, tails, strict=True))
    ids = np.full((len(heads), longest), tokenizer.pad_token_id)
    labels = np.full_like(ids, -100)
    for number, (head, tail) in enumerate(zip(heads, tails, strict=True)):
        ids[number, : len(head) + len(tail)] = head + tail
        labels[number, len(head) : len(head) + len(tail)] = tail
    return torch.from_numpy(ids), torch.from_numpy(labels)
