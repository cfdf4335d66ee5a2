"""Two processes are one run: the same samples, one call of all groups, the same gradient."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from safetensors.torch import load_file

from live_server import LiveServer, sample_key
from trainer_example.configuration import Configuration
from trainer_example.train import train

from .conftest import ROOT, finished, recorded

ACCELERATE = str(Path(sys.executable).with_name("accelerate"))
TWO_PROCESSES = [
    *(ACCELERATE, "launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no"),
    *("--dynamo_backend", "no", "--main_process_port", "0", "-m", "trainer_example"),
]
MIXED_PRECISION = [
    *(ACCELERATE, "launch", "--cpu", "--num_processes", "1", "--num_machines", "1", "--mixed_precision", "bf16"),
    *("--dynamo_backend", "no", "-m", "trainer_example"),
]

SUMS = "reasoning_gym:chain_sum,min_terms=2,max_terms=3,max_digits=2"


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("reinforce", {}),
        ("clip", {"objective": "clip", "epochs": 2}),
        ("entropy", {"method": "entropy:0.05", "micro_batch": 24}),
        ("lengths", {"task": f"{SUMS},train_prompts=200,max_new_tokens=5", "warm_start_steps": 0}),
    ],
)
def test_two_processes_do_what_one_does(
    name: str, more: dict[str, Any], tiny: dict[str, Any], server: LiveServer, tmp_path: Path
) -> None:
    one = {**tiny, **more, "steps": 3, "evaluate_every": 3, "evaluation_prompts": 31, "run_dir": str(tmp_path / "one")}
    two = {**one, "run_dir": str(tmp_path / f"two-{name}")}
    train(Configuration(**one))
    finished(two, *TWO_PROCESSES)

    alone, together = recorded(one["run_dir"]), recorded(two["run_dir"])
    for one_step, two_steps in zip(alone, together, strict=True):
        del one_step["kind"], two_steps["kind"]
        assert one_step == pytest.approx(two_steps, rel=2e-4, abs=1e-6)
    weights, others = (load_file(Path(run["run_dir"]) / "model" / "model.safetensors") for run in (one, two))
    for weight in others:
        # Three steps of Adam move a weight by up to 3e-3.
        torch.testing.assert_close(weights[weight], others[weight], atol=3e-5, rtol=1e-3)

    variant = "LOO" if name == "entropy" else "SLOO_MINUS_ONE"
    groups = server.metrics()[sample_key("pkpo_groups_total", {"run": f"two-{name}", "variant": variant})]
    assert groups == 3 * 16 + 1  # a call a step, of all groups; and the one before the first


def test_mixed_precision_computes_in_bfloat16_and_keeps_float32(tiny: dict[str, Any], tmp_path: Path) -> None:
    full = {**tiny, "steps": 1, "method": "entropy:0.05"}  # whatever the rewards, there is a gradient
    mixed = {**full, "run_dir": str(tmp_path / "mixed")}
    train(Configuration(**full))
    finished(mixed, *MIXED_PRECISION)
    exact, rounded = (recorded(run["run_dir"])[0]["gradient_norm"] for run in (full, mixed))
    assert rounded != exact
    assert rounded == pytest.approx(exact, rel=0.05)
    saved = load_file(Path(mixed["run_dir"]) / "model" / "model.safetensors")
    assert {value.dtype for value in saved.values()} == {torch.float32}


def test_processes_that_do_not_find_each_other_do_not_train(
    tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="2 processes were started, and accelerate would train 1 in each"):
        train(Configuration(**tiny))


def test_prompts_that_do_not_divide_are_refused(tiny: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="prompts_per_step: is 16; must be a multiple of 1 processes times 3"):
        train(Configuration(**{**tiny, "objective": "clip", "minibatches": 3}))


@pytest.mark.parametrize(
    "file", sorted((ROOT / "trainer_example" / "accelerate").glob("*.yaml")), ids=lambda path: path.name
)
def test_accelerate_understands_its_configurations(file: Path) -> None:
    configuration = load_config_from_file(str(file))
    assert configuration.fsdp_config["fsdp_version"] == 2
    assert configuration.num_processes > 1


def test_a_sharded_model_samples_and_learns_as_a_whole_one(tmp_path: Path) -> None:
    """accelerate shards on accelerators only; torch shards on CPUs too, and what the loop does with it is the same."""
    finished({}, sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
             str(Path(__file__).with_name("sharded.py")))  # fmt: skip
