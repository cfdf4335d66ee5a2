"""Samples of a policy: each prompt is prefilled once, and answers that begin alike go through the model as one.

A token is drawn by inverting the cumulative distribution at one uniform number. All the numbers of a step are drawn
at once from a generator that the seed and the step decide, so that the same tokens are sampled however the prompts
are split over processes and batches, and after a checkpoint as without one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Rollouts:
    """Answers, a row each; those of a prompt stand together.

    Attributes:
        prompts: token ids of shape (answers, prompt tokens), padded on the left.
        prompt_mask: 1 where `prompts` is not padding.
        answers: token ids of shape (answers, answer tokens), padded on the right.
        answer_mask: 1 where `answers` is not padding; the end of sequence counts.
        entropies: of the distribution that each token was drawn from, in nats, of the shape of `answers`.
        texts: the answers.
    """

    prompts: Tensor
    prompt_mask: Tensor
    answers: Tensor
    answer_mask: Tensor
    entropies: Tensor
    texts: list[str]


@dataclass(frozen=True)
class Sampler:
    """How to sample.

    Attributes:
        model: a causal LM of transformers.
        tokenizer: its tokenizer, padding on the left.
        max_new_tokens: how long an answer may get.
        temperature: the logits are divided by it.
        batch: how many answers are sampled at a time.
        everywhere: whether something is true in every process; asked after each token, because a model that is
            sharded over processes needs all of them for each.
    """

    model: torch.nn.Module
    tokenizer: PreTrainedTokenizerBase
    max_new_tokens: int
    temperature: float
    batch: int
    everywhere: Callable[[bool], bool]

    def uniforms(self, seed: Sequence[int], answers: int) -> Tensor:
        """The numbers that decide a step's tokens: of shape (answers, max_new_tokens), in [0, 1)."""
        return torch.from_numpy(np.random.default_rng(seed).random((answers, self.max_new_tokens), dtype=np.float32))

    def rollouts(self, prompts: Sequence[str], n: int, uniforms: Tensor) -> Rollouts:
        """n answers to each prompt.

        Args:
            prompts: at least one.
            n: answers to each.
            uniforms: of shape (prompts * n, max_new_tokens).
        """
        device = next(self.model.parameters()).device
        chats = bool(self.tokenizer.chat_template)  # a template writes the special tokens itself
        texts = self._chats(prompts) if chats else list(prompts)
        encoded = self.tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=not chats).to(device)
        at_a_time = max(1, self.batch // n)
        parts = zip(
            encoded.input_ids.split(at_a_time),
            encoded.attention_mask.split(at_a_time),
            uniforms.to(device).split(at_a_time * n),
            strict=True,
        )
        self.model.eval()
        with torch.no_grad():
            sampled = [self._answers(ids, mask, n, numbers) for ids, mask, numbers in parts]
        for module in self.model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()  # the root keeps its weights together for a backward pass, which does not come
        answers, answer_mask, entropies = (_joined(columns) for columns in zip(*sampled, strict=True))
        shown = answers.masked_fill(answer_mask == 0, self.tokenizer.pad_token_id)
        return Rollouts(
            encoded.input_ids.repeat_interleave(n, 0),
            encoded.attention_mask.repeat_interleave(n, 0),
            answers,
            answer_mask,
            entropies,
            self.tokenizer.batch_decode(shown, skip_special_tokens=True),
        )

    def _answers(self, prompts: Tensor, mask: Tensor, n: int, uniforms: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        output = self.model(
            input_ids=prompts, attention_mask=mask, position_ids=_positions(mask), use_cache=True, logits_to_keep=1
        )
        cache, logits = output.past_key_values, output.logits[:, -1]
        vocabulary = logits.shape[-1]
        # The cache has a row for each beginning that differs; `row` says which is that of an answer.
        row = torch.arange(len(mask), device=mask.device).repeat_interleave(n)
        going = torch.ones(len(row), dtype=mask.dtype, device=mask.device)
        ends = self._ends(mask.device)
        tokens, valid, entropies = [], [], []
        for number in range(self.max_new_tokens):
            token, entropy = self._drawn(logits, row, uniforms[:, number])
            tokens.append(token)
            valid.append(going)
            entropies.append(entropy)
            going = going * torch.isin(token, ends, invert=True)
            some = bool(going.any())
            if number + 1 == self.max_new_tokens or self.everywhere(not some):
                break
            # Those that have ended stay at some row, and what they draw from it does not count.
            on = going > 0 if some else torch.ones_like(going, dtype=torch.bool)
            beginnings, row_of = (row * vocabulary + token)[on].unique(return_inverse=True)
            row = torch.zeros_like(row).masked_scatter(on, row_of)
            parents, token = beginnings // vocabulary, beginnings % vocabulary
            if not torch.equal(parents, torch.arange(len(mask), device=mask.device)):
                cache.batch_select_indices(parents)
                mask = mask[parents]
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
            output = self.model(
                input_ids=token[:, None],
                attention_mask=mask,
                position_ids=_positions(mask)[:, -1:],
                past_key_values=cache,
                use_cache=True,
            )
            logits = output.logits[:, -1]
        return torch.stack(tokens, 1), torch.stack(valid, 1), torch.stack(entropies, 1)

    def _drawn(self, logits: Tensor, row: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """A token of each answer from its row of logits, and the entropy of what it was drawn from."""
        p = (logits.float() / self.temperature).softmax(-1)
        cumulative = p.cumsum(-1)
        # Of the sum as it came out, which rounding leaves a little off 1; and never a token of no probability.
        total = cumulative[:, -1:]
        last = (cumulative < total).sum(-1)
        token = torch.searchsorted(cumulative[row], uniform[:, None] * total[row], right=True)[:, 0]
        return torch.minimum(token, last[row]), torch.special.entr(p).sum(-1)[row]

    def _ends(self, device: torch.device) -> Tensor:
        configured = getattr(getattr(self.model, "generation_config", None), "eos_token_id", None)
        ends = {self.tokenizer.eos_token_id, *(configured if isinstance(configured, list) else [configured])} - {None}
        return torch.tensor(sorted(ends), device=device)

    def _chats(self, prompts: Sequence[str]) -> list[str]:
        turns = [[{"role": "user", "content": prompt}] for prompt in prompts]
        texts: list[str] = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        return texts


def answer_log_probs(
    model: torch.nn.Module, rollouts: Rollouts, rows: Tensor, temperature: float, with_entropy: bool = False
) -> tuple[Tensor, Tensor]:
    """The log probability of each answer token under the model now, and the entropy there.

    Args:
        rows: which answers, of shape (rows,).
        temperature: that they were sampled with.
        with_entropy: whether the entropy is wanted, which costs as much memory as the logits; without, it is 0.

    Returns:
        Two tensors of shape (rows, answer tokens), float32, zero where `answer_mask` is.
    """
    answers, answer_mask = rollouts.answers[rows], rollouts.answer_mask[rows]
    mask = torch.cat([rollouts.prompt_mask[rows], answer_mask], 1)[:, :-1]
    output = model(
        input_ids=torch.cat([rollouts.prompts[rows], answers], 1)[:, :-1],
        attention_mask=mask,
        position_ids=_positions(mask),
        use_cache=False,
        logits_to_keep=answers.shape[1],
    )
    logits = output.logits.float()
    logits = logits if temperature == 1.0 else logits / temperature  # a copy as large as the logits
    total = logits.logsumexp(-1)
    log_p = (logits.gather(-1, answers[..., None])[..., 0] - total) * answer_mask
    if not with_entropy:
        return log_p, torch.zeros_like(log_p)
    return log_p, (total - (logits.softmax(-1) * logits).sum(-1)) * answer_mask


def _positions(mask: Tensor) -> Tensor:
    return (mask.cumsum(-1) - 1).clamp(min=0)


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """One below the other, padded with zeros to the longest answer."""
    longest = max(part.shape[1] for part in parts)
    return torch.cat([torch.nn.functional.pad(part, (0, longest - part.shape[1])) for part in parts])
