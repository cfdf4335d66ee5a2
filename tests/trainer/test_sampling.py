"""Samples come from the model's own distribution, whatever the padding, the batches, the cache and the architecture."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from trainer_example.models import architecture, character_tokenizer
from trainer_example.sampling import Sampler, answer_log_probs

ALPHABET = "abcdefgh=0123456789"
PROMPTS = ["a12=", "b=", "c1234567890=", "d0="]
N = 5


def sampler(name: str = "tiny-gemma2", max_new_tokens: int = 6, batch: int = 1000, **changes: Any) -> Sampler:
    tokenizer = character_tokenizer(ALPHABET)
    config = architecture(name, len(tokenizer))
    assert config is not None
    for option, value in changes.items():
        setattr(config, option, value)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.15)  # far from uniform, so that a mistake shows
    return Sampler(model, tokenizer, max_new_tokens, 0.8, batch, lambda true: true)


MODELS: list[tuple[str, dict[str, Any]]] = [
    ("tiny-gemma2", {}),
    ("tiny-gemma2", {"sliding_window": 4}),  # shorter than prompts: the cache of its local layers rolls
    ("tiny-llama", {}),
]


@pytest.mark.parametrize(("name", "changes"), MODELS)
def test_tokens_are_those_that_a_forward_pass_without_a_cache_draws(name: str, changes: dict[str, Any]) -> None:
    drawer = sampler(name, **changes)
    uniforms = drawer.uniforms([1], len(PROMPTS) * N)
    rollouts = drawer.rollouts(PROMPTS, N, uniforms)
    for row, text in enumerate(PROMPTS[i // N] for i in range(len(PROMPTS) * N)):
        ids = drawer.tokenizer(text, return_tensors="pt").input_ids
        for place in range(rollouts.answers.shape[1]):
            if not rollouts.answer_mask[row, place]:
                assert rollouts.answers[row, place - 1] == drawer.tokenizer.eos_token_id or place > 1
                break
            with torch.no_grad():
                p = (drawer.model(input_ids=ids).logits[0, -1].double() / 0.8).softmax(-1)
            below = p.cumsum(-1)
            token = int(rollouts.answers[row, place])
            low, high = float(below[token] - p[token]), float(below[token])
            assert low - 1e-4 <= float(uniforms[row, place]) <= high + 1e-4
            entropy = float(-(p * p.log()).sum())
            assert float(rollouts.entropies[row, place]) == pytest.approx(entropy, abs=1e-3)
            ids = torch.cat([ids, torch.tensor([[token]])], 1)


@pytest.mark.parametrize(("name", "changes"), MODELS)
def test_the_batches_do_not_matter(name: str, changes: dict[str, Any]) -> None:
    whole, parts = sampler(name, **changes), sampler(name, batch=2 * N, **changes)
    uniforms = whole.uniforms([2], len(PROMPTS) * N)
    one, other = whole.rollouts(PROMPTS, N, uniforms), parts.rollouts(PROMPTS, N, uniforms)
    assert one.texts == other.texts
    assert torch.equal(one.answer_mask, other.answer_mask)


def test_log_probabilities_are_those_that_were_sampled_with() -> None:
    drawer = sampler()
    rollouts = drawer.rollouts(PROMPTS, N, drawer.uniforms([3], len(PROMPTS) * N))
    rows = torch.arange(len(rollouts.answers))
    with torch.no_grad():
        log_p, entropies = answer_log_probs(drawer.model, rollouts, rows, 0.8, with_entropy=True)
    torch.testing.assert_close(entropies, rollouts.entropies * rollouts.answer_mask, atol=1e-4, rtol=1e-4)
    assert (log_p[rollouts.answer_mask == 0] == 0).all()
    # The chance that a token is drawn is its probability: the mean of -log p is the entropy.
    assert float(-log_p.sum() / rollouts.answer_mask.sum()) == pytest.approx(
        float(entropies.sum() / rollouts.answer_mask.sum()), rel=0.2
    )


def test_frequencies_are_the_probabilities() -> None:
    drawer = sampler(max_new_tokens=1)
    n = 20_000
    rollouts = drawer.rollouts(["a1="], n, drawer.uniforms([4], n))
    with torch.no_grad():
        logits = drawer.model(**drawer.tokenizer("a1=", return_tensors="pt")).logits[0, -1]
    p = (logits / 0.8).softmax(-1)
    counts = torch.bincount(rollouts.answers[:, 0], minlength=len(p))
    errors = (counts - n * p) / (n * p * (1 - p)).sqrt().clamp(min=1)
    assert float(errors.abs().max()) < 4.5


def test_an_answer_ends_with_its_end() -> None:
    drawer = sampler(max_new_tokens=40)
    rollouts = drawer.rollouts(PROMPTS, 40, drawer.uniforms([5], len(PROMPTS) * 40))
    ended = (rollouts.answers == drawer.tokenizer.eos_token_id) & (rollouts.answer_mask == 1)
    assert ended.any()
    assert (ended.sum(1) <= 1).all()
    for row in torch.nonzero(ended.any(1))[:, 0]:
        assert rollouts.answer_mask[row].sum() == ended[row].nonzero()[0, 0] + 1
    assert all("<eos>" not in text for text in rollouts.texts)


def test_sampling_stops_when_every_answer_has_ended() -> None:
    drawer = sampler(max_new_tokens=50)
    head = (
        drawer.model.get_input_embeddings().weight
    )  # tied to the output: a large <eos> row wins everywhere or nowhere
    asked: list[bool] = []

    def everywhere(true: bool) -> bool:
        asked.append(true)
        return true

    with torch.no_grad():
        head.zero_()
    eager = Sampler(drawer.model, drawer.tokenizer, 50, 1.0, 1000, everywhere)
    # All tokens are as likely now; numbers that fall on <eos> from the second token on end every answer there.
    uniforms = torch.full((len(PROMPTS), 50), (drawer.tokenizer.eos_token_id + 0.5) / head.shape[0])
    rollouts = eager.rollouts(PROMPTS, 1, uniforms)
    assert rollouts.answers.shape[1] == 1
    assert asked == [True]


def test_a_chat_template_is_used_where_there_is_one() -> None:
    drawer = sampler()
    drawer.tokenizer.chat_template = (
        "{% for m in messages %}<bos>b{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}={% endif %}"
    )
    rollouts = drawer.rollouts(["12"], 1, drawer.uniforms([0], 1))
    assert drawer.tokenizer.decode(rollouts.prompts[0]) == "<bos>b12="


def test_answers_that_begin_alike_go_through_the_model_as_one() -> None:
    """One prompt, four answers: what the numbers say is drawn is 2 tokens that differ, then 3 beginnings."""
    drawer = sampler(max_new_tokens=3)
    with torch.no_grad():
        drawer.model.get_input_embeddings().weight.zero_()  # all tokens are as likely
    rows: list[int] = []
    drawer.model.register_forward_pre_hook(
        lambda module, inputs, named: rows.append(named["input_ids"].shape[0]), with_kwargs=True
    )
    size = len(drawer.tokenizer)
    tokens = torch.tensor([[5, 6, 7], [5, 6, 8], [5, 9, 7], [4, 6, 7]])
    rollouts = drawer.rollouts(["a1="], 4, (tokens + 0.5) / size)
    assert rollouts.answers.tolist() == tokens.tolist()
    assert rows == [1, 2, 3]


def test_an_answer_that_has_ended_goes_through_the_model_no_more() -> None:
    drawer = sampler(max_new_tokens=3)
    with torch.no_grad():
        drawer.model.get_input_embeddings().weight.zero_()
    rows: list[int] = []
    drawer.model.register_forward_pre_hook(
        lambda module, inputs, named: rows.append(named["input_ids"].shape[0]), with_kwargs=True
    )
    end, size = drawer.tokenizer.eos_token_id, len(drawer.tokenizer)
    tokens = torch.tensor([[end, 6, 7], [5, 6, 8], [5, end, 7], [4, 6, 7]])
    rollouts = drawer.rollouts(["a1="], 4, (tokens + 0.5) / size)
    assert rows == [1, 2, 2]
    assert rollouts.answer_mask.tolist() == [[1, 0, 0], [1, 1, 1], [1, 1, 0], [1, 1, 1]]
    assert (rollouts.answers == tokens)[rollouts.answer_mask == 1].all()
