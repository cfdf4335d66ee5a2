"""The policy and its tokenizer: tiny models that need nothing, or any causal LM of transformers."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma2Config,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from trainer_example.configuration import Configuration
from trainer_example.tasks import Task

_TINY = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 128,
    "initializer_range": 0.05,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
}
_SMALL = {**_TINY, "hidden_size": 128, "num_hidden_layers": 4, "head_dim": 32, "intermediate_size": 256}
SPECIALS = ("<pad>", "<bos>", "<eos>", "<unk>")


def architecture(name: str, vocabulary: int) -> PretrainedConfig | None:
    """The configuration of a model of random weights, by name; None for models that have weights."""
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    if name == "tiny-gemma2":
        return Gemma2Config(vocab_size=vocabulary, query_pre_attn_scalar=16, **_TINY, **tokens)
    if name == "small-gemma2":
        return Gemma2Config(vocab_size=vocabulary, query_pre_attn_scalar=32, **_SMALL, **tokens)
    if name == "tiny-llama":
        return LlamaConfig(vocab_size=vocabulary, **_TINY, **tokens)
    if name == "gemma-2-2b-random":  # the published shape, to see what a step costs without the published weights
        return Gemma2Config(vocab_size=256_000, hidden_size=2304, num_hidden_layers=26, num_attention_heads=8,
                            num_key_value_heads=4, head_dim=256, intermediate_size=9216, query_pre_attn_scalar=256,
                            **tokens)  # fmt: skip
    return None


def has_random_weights(name: str) -> bool:
    """Whether a model of this name starts from nothing."""
    return architecture(name, len(SPECIALS)) is not None


def tokenizer_of(configuration: Configuration, task: Task) -> PreTrainedTokenizerBase:
    """The model's own tokenizer, padding on the left; for a model of random weights, one token a character."""
    if has_random_weights(configuration.model):
        return character_tokenizer(task.alphabet, task.phrases)
    tokenizer = AutoTokenizer.from_pretrained(configuration.model, padding_side="left")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def character_tokenizer(alphabet: str, phrases: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """One token a character and a phrase, and <bos> in front."""
    tokens = [*SPECIALS, *sorted(set(alphabet)), *phrases]
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="<unk>"))
    pieces = "|".join([*map(re.escape, sorted(phrases, key=len, reverse=True)), r"[\s\S]"])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pieces), "isolated")
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        padding_side="left",
        **{f"{name.strip('<>')}_token": name for name in SPECIALS},
    )


def policy_of(configuration: Configuration, vocabulary: int) -> PreTrainedModel:
    """The model, as its name says: random weights from `model_seed`, or pretrained ones."""
    kind = {"dtype": getattr(torch, configuration.dtype), "attn_implementation": configuration.attention}
    config = architecture(configuration.model, vocabulary)
    if config is None:
        return AutoModelForCausalLM.from_pretrained(configuration.model, **kind)
    with torch.random.fork_rng():
        torch.manual_seed(configuration.model_seed)
        return AutoModelForCausalLM.from_config(config, **kind)


def trainable(policy: PreTrainedModel, configuration: Configuration) -> torch.nn.Module:
    """The model with what is trained of it: everything, or adapters; activations recomputed where that is asked."""
    model: torch.nn.Module = policy
    if configuration.lora_rank > 0:
        with torch.random.fork_rng():
            torch.manual_seed(configuration.model_seed)
            adapters = LoraConfig(
                r=configuration.lora_rank,
                lora_alpha=configuration.lora_alpha,
                target_modules="all-linear",
                task_type="CAUSAL_LM",
            )
            model = get_peft_model(policy, adapters)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(f"model: {configuration.model} holds adapters on a frozen model; train new ones: --lora_rank")
    if configuration.gradient_checkpointing:
        policy.activation_checkpointing_enable({"use_reentrant": False})
    return model
