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


def warm_started(configuration: Configuration, task: Task, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """The model of random weights after its supervised steps: as kept by an earlier run, or taught and kept now."""
    steps = task.warm_start_steps if configuration.warm_start_steps < 0 else configuration.warm_start_steps
    if steps == 0:
        return policy_of(configuration, len(tokenizer))
    about = [configuration.model, configuration.task, configuration.model_seed, steps, configuration.dtype,
             LEARNING_RATE, BATCH]  # fmt: skip
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
        ids, labels = _imitated(task.demonstrations(generator, BATCH), tokenizer, task.max_new_tokens)
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
    rows, answers = [], []
    for prompt, answer in demonstrations:
        head = tokenizer(prompt).input_ids
        tail = tokenizer(answer, add_special_tokens=False).input_ids
        tail += [tokenizer.eos_token_id] * (len(tail) < max_new_tokens)
        rows.append(torch.tensor(head + tail))
        answers.append(torch.tensor([-100] * len(head) + tail))
    pad = torch.nn.utils.rnn.pad_sequence
    return pad(rows, True, tokenizer.pad_token_id), pad(answers, True, -100)
