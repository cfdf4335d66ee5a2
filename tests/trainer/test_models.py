"""Any causal LM: other architectures, adapters, bfloat16, pretrained weights."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from trainer_example.configuration import Configuration
from trainer_example.models import architecture, character_tokenizer, policy_of
from trainer_example.tasks import task_named
from trainer_example.train import train
from trainer_example.warm_start import warm_started

from .conftest import trained


def test_a_llama_trains_too(configuration: Configuration) -> None:
    train(dataclasses.replace(configuration, model="tiny-llama", steps=2))
    model = AutoModelForCausalLM.from_pretrained(Path(configuration.run_dir) / "model")
    assert type(model).__name__ == "LlamaForCausalLM"


def test_a_run_goes_on_from_what_another_saved(configuration: Configuration, tmp_path: Path) -> None:
    train(dataclasses.replace(configuration, steps=2))
    saved = str(Path(configuration.run_dir) / "model")
    train(
        dataclasses.replace(
            configuration, model=saved, run_dir=str(tmp_path / "second"), steps=1, warm_start_dir=str(tmp_path)
        )
    )
    assert not list(tmp_path.glob("*/warm_start.json"))
    assert AutoTokenizer.from_pretrained(tmp_path / "second" / "model")("a1=").input_ids[0] == 1


@pytest.mark.filterwarnings("ignore:.*activation_checkpointing:FutureWarning")  # peft still says the old name
def test_adapters_train_and_nothing_else(configuration: Configuration) -> None:
    configuration = dataclasses.replace(
        configuration, lora_rank=2, steps=3, dtype="bfloat16", gradient_checkpointing=True
    )
    train(configuration)
    assert [record["step"] for record in trained(configuration.run_dir)] == [1, 2, 3]
    adapters = load_file(Path(configuration.run_dir) / "model" / "adapter_model.safetensors")
    assert all("lora_" in name for name in adapters)
    assert all(float(value.abs().max()) > 0 for name, value in adapters.items() if "lora_B" in name)
    before = warm_started(configuration, (task := task_named("rules")), character_tokenizer(task.alphabet)).state_dict()
    after = load_file(next((Path(configuration.run_dir) / "checkpoints").glob("step-*")) / "model.safetensors")
    frozen = [name for name in after if name.endswith("base_layer.weight")]
    assert len(frozen) == 14  # seven linear layers in each of two blocks
    for name in frozen:
        original = before[name.replace("base_model.model.", "").replace(".base_layer", "")]
        assert torch.equal(after[name], original), name


def test_bfloat16_trains(configuration: Configuration) -> None:
    train(dataclasses.replace(configuration, dtype="bfloat16", steps=3))
    records = trained(configuration.run_dir)
    assert all(record["gradient_norm"] >= 0 and record["entropy"] > 0 for record in records)
    saved = load_file(Path(configuration.run_dir) / "model" / "model.safetensors")
    assert {value.dtype for value in saved.values()} == {torch.bfloat16}


def test_the_random_2b_has_the_published_shape() -> None:
    config = architecture("gemma-2-2b-random", 100)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    # As the model card counts: 2.61 billion parameters.
    assert sum(parameter.numel() for parameter in model.parameters()) == 2_614_341_888


def test_the_tokenizer_has_a_token_a_character() -> None:
    tokenizer = character_tokenizer("ab=01\n ")
    assert len(tokenizer) == 4 + 7
    ids = tokenizer("a0 =\nb").input_ids
    assert len(ids) == 1 + 6
    assert tokenizer.decode(ids, skip_special_tokens=True) == "a0 =\nb"
    assert tokenizer(["a", "ab"], padding=True).input_ids[0][0] == tokenizer.pad_token_id


def test_the_seed_of_the_model_decides_its_weights(tiny: dict[str, Any]) -> None:
    def weights(seed: int) -> Any:
        return policy_of(Configuration(**{**tiny, "model_seed": seed}), 30).lm_head.weight

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_a_warm_start_is_taught_once_and_kept(configuration: Configuration, tmp_path: Path) -> None:
    configuration = dataclasses.replace(configuration, warm_start_dir=str(tmp_path), warm_start_steps=20)
    task = task_named("rules")
    tokenizer = character_tokenizer(task.alphabet)
    taught = warm_started(configuration, task, tokenizer)
    kept = list(tmp_path.iterdir())
    assert len(kept) == 1
    written = (kept[0] / "model.safetensors").stat().st_mtime_ns
    again = warm_started(configuration, task, tokenizer)
    assert torch.equal(taught.lm_head.weight, again.lm_head.weight)
    assert (kept[0] / "model.safetensors").stat().st_mtime_ns == written
    warm_started(dataclasses.replace(configuration, model_seed=1), task, tokenizer)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_warm_start_learns_its_demonstrations(configuration: Configuration) -> None:
    """After 200 steps the answers are four digits, and some are right."""
    train(dataclasses.replace(configuration, steps=1, samples_per_prompt=16))
    (record,) = trained(configuration.run_dir)
    assert record["answer_tokens"] == pytest.approx(4.0, abs=0.1)
