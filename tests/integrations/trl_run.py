"""A tiny Gemma-2, trained by TRL: for test_trl.py in its own process, and as a script in several."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor
from transformers import Gemma2Config, Gemma2ForCausalLM, PreTrainedTokenizerFast
from trl import GRPOConfig

from pkpo_client.errors import PkpoError
from pkpo_client.integrations.trl import PassAtKTrainer

SPECIALS = ("<pad>", "<bos>", "<eos>", "<unk>")
PROMPTS = ["ab=", "c=", "dead=", "be=", "f=", "fade=", "a=", "bad="]
N = 8
LONGEST = 6
STEPS = 2


class Recorded(PassAtKTrainer):
    """Keeps what each batch was scored and taught with. It overrides what the integration goes by, as users may."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.rewards: list[Tensor] = []
        self.batches: list[dict[str, Any]] = []
        self.steps: list[int] = []

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Tensor:
        self.rewards.append(super()._calculate_rewards(*args, **kwargs))
        return self.rewards[-1]

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self.batches.append(super()._generate_and_score_completions(inputs))
        self.steps.append(self.state.global_step)
        return self.batches[-1]


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a character."""
    tokens = [*SPECIALS, *"abcdef="]
    made = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    made.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    made.decoder = decoders.Fuse()
    names = {f"{name.strip('<>')}_token": name for name in SPECIALS}
    return PreTrainedTokenizerFast(tokenizer_object=made, padding_side="left", **names)


def policy() -> Gemma2ForCausalLM:
    """The same weights every time."""
    torch.manual_seed(0)
    config = Gemma2Config(vocab_size=11, hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
                          num_key_value_heads=2, head_dim=16, intermediate_size=128, query_pre_attn_scalar=16,
                          initializer_range=0.05, max_position_embeddings=64, pad_token_id=0, bos_token_id=1,
                          eos_token_id=2, attn_implementation="eager")  # fmt: skip
    return Gemma2ForCausalLM(config)


def prompts() -> Dataset:
    return Dataset.from_dict({"prompt": PROMPTS})


def variety(completions: list[str], **_: Any) -> list[float]:
    """Rewards with ties, of several values."""
    return [len(set(text) & set("abc")) / 3 for text in completions]


def trainer_of(
    directory: Path,
    pkpo: Any,
    reward: Callable[..., Any] | list[Any] = variety,
    kind: type[PassAtKTrainer] = Recorded,
    **options: Any,
) -> Any:
    """A trainer that takes one plain gradient step a batch, of learning rate 1 and unclipped."""
    usual: dict[str, Any] = {
        "output_dir": str(directory),
        "use_cpu": True,
        "max_steps": STEPS,
        "per_device_train_batch_size": 2 * N,
        "gradient_accumulation_steps": 1,
        "num_generations": N,
        "max_completion_length": LONGEST,
        "optim": "sgd",
        "learning_rate": 1.0,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "bf16": False,
    }
    return kind(
        model=policy(),
        reward_funcs=reward,
        args=GRPOConfig(**{**usual, **options}),
        train_dataset=prompts(),
        eval_dataset=prompts().select(range(2)),
        processing_class=tokenizer(),
        pkpo=pkpo,
    )


def answers_by_row(trainer: Recorded) -> Callable[..., Tensor]:
    """In the place of `generate`: what a row is answered depends on its number among all processes' and the batch."""

    def generate(input_ids: Tensor, **_: Any) -> Tensor:
        first = trainer.accelerator.process_index * len(input_ids)
        answers = torch.zeros((len(input_ids), LONGEST), dtype=torch.long)
        for row in range(len(input_ids)):
            drawn = torch.Generator().manual_seed(1000 * trainer.state.global_step + first + row)
            answer = torch.randint(4, 11, (int(torch.randint(1, LONGEST, (), generator=drawn)),), generator=drawn)
            answers[row, : len(answer)] = answer
            answers[row, len(answer)] = 2
        return torch.cat([input_ids, answers], dim=1)

    return generate


def trained(directory: Path, pkpo: Any, processes: int) -> dict[str, Any]:
    """What became of a run whose answers are the same for any number of processes."""
    size = 2 * N // processes
    trainer = trainer_of(directory, pkpo, per_device_train_batch_size=size, loss_type="dr_grpo")
    assert trainer.accelerator.num_processes == processes
    trainer.model.generate = answers_by_row(trainer)
    said = ""
    try:
        trainer.train()
    except PkpoError as error:
        said = f"{type(error).__name__}: {error}"
    return {
        "said": said,
        "advantages": [batch["advantages"] for batch in trainer.batches],
        "weights": trainer.accelerator.unwrap_model(trainer.model).state_dict(),
        "logged": trainer.state.log_history,
    }


def main() -> None:
    directory, address, nobody = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    settings = {"k": "4@0,2@1", "run_id": "two"}
    ran = trained(directory, {**settings, "address": address}, 2)
    failed = trained(directory, {**settings, "address": nobody, "timeout": 1}, 2)
    torch.save((ran, failed), directory / f"{torch.distributed.get_rank()}.pt")


if __name__ == "__main__":
    main()
