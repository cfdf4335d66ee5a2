"""TRL's own trainer, on the advantages of a live server: `make test-trl` runs this."""

from __future__ import annotations

import copy
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import reference
from live_server import LiveServer, sample_key
from pages import ROOT, blocks, commands, run_command, run_python
from pkpo_client import InvalidArgument, Unreachable

pytest.importorskip("trl", reason="needs trl: `make test-trl` installs it and runs this")

import torch
import trl
from torch import Tensor

from pkpo_client.integrations.objective import Objective
from pkpo_client.integrations.trl import PassAtKTrainer
from tests.integrations.trl_run import LONGEST, N, Recorded, policy, prompts, tokenizer, trained, trainer_of, variety

if TYPE_CHECKING:
    from collections.abc import Callable

# TRL and transformers warn of each other's names.
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

K = 3
PAGE = ROOT / "docs" / "integrations" / "trl.md"


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    with LiveServer() as live:
        yield live


@pytest.fixture(autouse=True)
def one_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One thread, as in the processes that tests start; and what accelerate remembers of one run is not the next's."""
    from accelerate.state import AcceleratorState

    torch.set_num_threads(1)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    yield
    AcceleratorState._reset_state(True)


@pytest.fixture
def make(server: LiveServer, tmp_path: Path) -> Callable[..., Recorded]:
    def made(reward: Any = variety, pkpo: dict[str, Any] | None = None, **options: Any) -> Recorded:
        return trainer_of(tmp_path, {"k": K, "address": server.address, **(pkpo or {})}, reward, **options)

    return made


def nowhere() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{listener.getsockname()[1]}"


def exact(rewards: list[float | None], k: int, scale: str = "sum", variant: str = "sloo_minus_one") -> list[float]:
    """The advantages of one group, of which None count nowhere."""
    counted = [reward for reward in rewards if reward is not None]
    k = reference.clamped(variant, len(counted), k) or 0
    answers = iter(reference.advantages(variant, counted, k, scale=scale) if k else [0.0] * len(counted))
    return [0.0 if reward is None else next(answers) for reward in rewards]


def groups_of(rewards_per_function: Tensor, n: int = N) -> list[list[float | None]]:
    """The rewards of a trainer with one reward function, as it saw them."""
    return [[None if r != r else r for r in row] for row in rewards_per_function.view(-1, n).tolist()]


def log_probabilities(model: torch.nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Of each token of each completion; written from the definition."""
    tokens = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    attended = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
    logits = model(input_ids=tokens, attention_mask=attended).logits
    first = batch["prompt_ids"].shape[1]
    table = logits[:, first - 1 : -1].log_softmax(dim=-1)
    return table.gather(2, batch["completion_ids"][:, :, None]).squeeze(2)


def objective_by_hand(loss_type: str, advantages: list[list[float]], log_p: Tensor, mask: Tensor) -> Tensor:
    """What a step is to make larger: the mean over groups of sum_i A_i, by the log probability of completion i.

    Args:
        advantages: of each group, in scale "sum".
    """
    lengths = mask.sum(1)
    per_completion = (log_p * mask).sum(1)
    if loss_type in ("grpo", "sapo"):
        per_completion = per_completion / lengths
    elif loss_type == "dr_grpo":
        per_completion = per_completion / LONGEST
    elif loss_type != "luspo":
        per_completion = per_completion / lengths.float().mean()
    return (torch.tensor(advantages).flatten() * per_completion).sum() / len(advantages)


def step_and_gradient(trainer: Recorded, loss_type: str, advantages: Callable[[Tensor], list[list[float]]]) -> None:
    """Trains a step, and asserts that it went along the gradient by hand, of which there is one."""
    before = policy()  # of the same weights, without what TRL puts over its forward pass
    trainer.train()
    batch = trainer.batches[0]
    log_p = log_probabilities(before, batch)
    objective_by_hand(loss_type, advantages(trainer.rewards[0]), log_p, batch["completion_mask"]).backward()
    moved = 0.0
    for (name, old), new in zip(before.named_parameters(), trainer.model.parameters(), strict=True):
        torch.testing.assert_close(new - old, old.grad, rtol=1e-3, atol=1e-6, msg=f"{name} moved otherwise")
        moved += float(old.grad.abs().sum())
    assert moved > 1.0


# --- what is computed ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss_type", ["dapo", "dr_grpo", "grpo", "bnpo", "luspo", "cispo", "sapo", "vespo"])
def test_a_step_follows_the_exact_gradient(loss_type: str, make: Callable[..., Recorded]) -> None:
    apart = {"cispo": {"epsilon_high": 5.0}, "luspo": {"importance_sampling_level": "sequence"}}
    trainer = make(max_steps=1, loss_type=loss_type, **apart.get(loss_type, {}))
    step_and_gradient(trainer, loss_type, lambda rewards: [exact(row, K) for row in groups_of(rewards)])


@pytest.mark.parametrize("scale_rewards", ["group", "batch", "none"])
def test_nothing_is_subtracted_and_nothing_divided_by(scale_rewards: str, make: Callable[..., Recorded]) -> None:
    trainer = make(scale_rewards=scale_rewards, logging_steps=1)
    trainer.train()
    assert len(trainer.batches) == 2
    for rewards, batch in zip(trainer.rewards, trainer.batches, strict=True):
        wanted = [a for row in groups_of(rewards) for a in exact(row, K, "mean")]
        np.testing.assert_allclose(batch["advantages"], wanted, rtol=1e-6)
        assert batch["advantages"].dtype == torch.float32
    assert (
        list(trainer._logs["advantages"]) == trainer.batches[-1]["advantages"].tolist()
    )  # of the table of completions


@pytest.mark.parametrize(("variant", "k"), [("centered", 3), ("passk_analytic", 3), ("loo", None)])
def test_other_variants_are_asked_for_by_name(variant: str, k: int | None, make: Callable[..., Recorded]) -> None:
    trainer = make(pkpo={"variant": variant, "k": k}, max_steps=1)
    trainer.train()
    wanted = [a for row in groups_of(trainer.rewards[0]) for a in exact(row, k or 1, "mean", variant)]
    np.testing.assert_allclose(trainer.batches[0]["advantages"], wanted, rtol=1e-5, atol=1e-7)


def test_several_rewards_are_weighted_and_summed(make: Callable[..., Recorded]) -> None:
    def brevity(completions: list[str], **_: Any) -> list[float | None]:
        return [None if text.startswith("a") else 1.0 / (1 + len(text)) for text in completions]

    trainer = make([variety, brevity], reward_weights=[1.0, 0.5], max_steps=1)
    trainer.train()
    both = trainer.rewards[0].double()
    assert 0 < both[:, 1].isnan().sum() < 2 * N
    rewards = both[:, 0] + 0.5 * both[:, 1].nan_to_num(0.0)  # what one function has nothing to say of, the other has
    wanted = [a for row in groups_of(rewards) for a in exact(row, K, "mean")]
    np.testing.assert_allclose(trainer.batches[0]["advantages"], wanted, rtol=1e-6)


class Unscorable:
    """Rewards of which the first `missing[g]` of group g are None."""

    def __init__(self, *missing: int) -> None:
        self.missing = missing
        self.__name__ = "unscorable"

    def __call__(self, completions: list[str], **_: Any) -> list[float | None]:
        scored: list[float | None] = list(variety(completions))
        for group, missing in enumerate(self.missing):
            scored[N * group : N * group + missing] = [None] * missing
        return scored


@pytest.mark.parametrize("missing", [(2, 0), (5, 3), (6, 1), (7, 0), (8, 1)])
def test_unscorable_completions_count_nowhere(missing: tuple[int, int], make: Callable[..., Recorded]) -> None:
    """Groups of 2 valid, fewer than k, get the k they allow; groups of 1 and 0 teach nothing."""
    trainer = make(Unscorable(*missing), max_steps=1, loss_type="dr_grpo")
    step_and_gradient(trainer, "dr_grpo", lambda rewards: [exact(row, K) for row in groups_of(rewards)])
    advantages = trainer.batches[0]["advantages"].view(2, N)
    for row, gone in zip(advantages, missing, strict=True):
        assert (row[:gone] == 0).all()
    log = trainer.state.log_history[0]
    assert log["pkpo/unscorable"] == sum(missing) / (2 * N)
    assert log["pkpo/groups_too_small"] == sum(gone >= 7 for gone in missing) / 2
    assert log["pkpo/groups_k_clamped"] == sum(gone == 6 for gone in missing) / 2


def test_batches_that_are_kept_for_several_steps_are_asked_for_once(make: Callable[..., Recorded]) -> None:
    trainer = make(
        pkpo={"k": "4@0,2@1,1@4", "run_id": "kept"},
        max_steps=8,
        per_device_train_batch_size=N,
        gradient_accumulation_steps=1,
        steps_per_generation=2,
        num_iterations=2,
        loss_type="grpo",
    )
    trainer.train()
    assert trainer.steps == [0, 4]
    for rewards, batch, k in zip(trainer.rewards, trainer.batches, (4, 1), strict=True):
        wanted = [a for row in groups_of(rewards) for a in exact(row, k, "mean")]
        np.testing.assert_allclose(batch["advantages"], wanted, rtol=1e-5, atol=1e-7)


# --- over a run ------------------------------------------------------------------------------------------------------


def test_a_run_anneals_logs_and_is_counted_once(server: LiveServer, make: Callable[..., Recorded]) -> None:
    trainer = make(pkpo={"k": "8@0,2@2", "run_id": "annealed"}, max_steps=4)
    trainer.train()
    logs = [log for log in trainer.state.log_history if "reward" in log]
    assert [log["pkpo/k"] for log in logs] == [8, 8, 2, 2]
    for log, rewards in zip(logs, trainer.rewards, strict=True):
        rows = groups_of(rewards)
        for k in (1, 2, 4, 8):
            assert log[f"pkpo/max@{k}"] == pytest.approx(np.mean([reference.max_at_k(row, k) for row in rows]))
        assert log["pkpo/unscorable"] == 0
    key = sample_key("pkpo_groups_total", {"run": "annealed", "variant": "SLOO_MINUS_ONE"})
    assert server.metrics()[key] == 4 * 2


def test_a_resumed_run_goes_on_where_it_was(make: Callable[..., Recorded], tmp_path: Path) -> None:
    schedule = {"k": "8@0,4@1,2@2,1@3"}
    whole = make(pkpo=schedule, max_steps=4, save_strategy="steps", save_steps=2)
    whole.train()
    resumed = make(pkpo=schedule, max_steps=4)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert resumed.steps == [2, 3]
    ks = [log["pkpo/k"] for log in resumed.state.log_history if "pkpo/k" in log]
    assert ks == [8, 4, 2, 1]
    for one, other in zip(whole.batches[2:], resumed.batches, strict=True):
        torch.testing.assert_close(one["advantages"], other["advantages"], rtol=0, atol=0)


def test_evaluation_measures_groups_of_its_own_size(server: LiveServer, make: Callable[..., Recorded]) -> None:
    def numbered(completions: list[str], **_: Any) -> list[float]:
        return [i / 16 for i in range(len(completions))]

    trainer = make(numbered, pkpo={"k": 8, "run_id": "evaluated"}, num_generations_eval=4, max_steps=1,
                   per_device_eval_batch_size=8, eval_strategy="steps", eval_steps=1)  # fmt: skip
    trainer.train()
    log = next(log for log in trainer.state.log_history if "eval_reward" in log)
    rows = groups_of(trainer.rewards[1], 4)
    for k in (1, 2, 4):
        assert log[f"eval_pkpo/max@{k}"] == pytest.approx(np.mean([reference.max_at_k(row, k) for row in rows]))
    assert "eval_pkpo/max@8" not in log
    assert log["eval_pkpo/groups_k_clamped"] == 1
    wanted = [a for row in rows for a in exact(row, 4, "mean")]
    np.testing.assert_allclose(trainer.batches[1]["advantages"], wanted, rtol=1e-6)
    counted = server.metrics()
    for run, groups in (("evaluated", 2), ("evaluated/eval", 2)):
        assert counted[sample_key("pkpo_groups_total", {"run": run, "variant": "SLOO_MINUS_ONE"})] == groups


def test_without_the_service_nothing_is_trained(make: Callable[..., Recorded]) -> None:
    trainer = make(pkpo={"address": nowhere(), "timeout": 1})
    before = copy.deepcopy(trainer.model.state_dict())
    with pytest.raises(Unreachable):
        trainer.train()
    assert trainer.state.global_step == 0
    assert all(torch.equal(before[name], weight) for name, weight in trainer.model.state_dict().items())


@pytest.mark.parametrize("instead", [{"fallback": "local", "timeout": 1}, {"address": "local"}])
def test_this_process_computes_the_same(instead: dict[str, Any], make: Callable[..., Recorded]) -> None:
    asked = make()
    asked.train()
    alone = make(pkpo={"address": nowhere(), **instead})
    alone.train()
    for one, other in zip(asked.batches, alone.batches, strict=True):
        assert torch.equal(one["advantages"], other["advantages"])


# --- several processes -----------------------------------------------------------------------------------------------


def test_two_processes_are_one_run_and_fail_as_one(server: LiveServer, tmp_path: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    common = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
        "OMP_NUM_THREADS": "1",
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    command = [sys.executable, "-m", "tests.integrations.trl_run", str(tmp_path), server.address, nowhere()]
    running = [
        subprocess.Popen(command, cwd=ROOT, env={**common, "RANK": rank, "LOCAL_RANK": rank}, stderr=subprocess.PIPE)
        for rank in "01"
    ]
    try:
        alone = trained(tmp_path, {"k": "4@0,2@1", "run_id": "one", "address": server.address}, 1)
        for process in running:
            _, written = process.communicate(timeout=200)
            assert process.returncode == 0, written.decode()
    finally:
        for process in running:
            process.kill()
            process.communicate()
    ran, failed = zip(*(torch.load(tmp_path / f"{rank}.pt") for rank in "01"), strict=True)

    assert [run["said"] for run in (alone, *ran)] == ["", "", ""]
    for step, advantages in enumerate(alone["advantages"]):
        assert len(advantages.unique()) > 2
        assert torch.equal(advantages, torch.cat([run["advantages"][step] for run in ran]))
    for name, weight in alone["weights"].items():
        for run in ran:
            torch.testing.assert_close(run["weights"][name], weight, rtol=1e-4, atol=1e-6)
    logged = [[log.get("pkpo/max@4") for log in run["logged"]] for run in (alone, ran[0])]
    assert logged[0] == logged[1]
    groups = server.metrics()[sample_key("pkpo_groups_total", {"run": "two", "variant": "SLOO_MINUS_ONE"})]
    assert groups == 2 * 2  # of two steps, asked for once

    # The one that did not ask learns it of the one that did, and waits for nothing.
    assert failed[0]["said"].startswith("Unreachable: ")
    assert failed[1]["said"] == failed[0]["said"]
    assert failed[0]["advantages"] == failed[1]["advantages"] == []


# --- what is refused -------------------------------------------------------------------------------------------------


def test_rewards_that_are_normalised_apart_are_refused(make: Callable[..., Recorded]) -> None:
    with pytest.raises(InvalidArgument, match="multi_objective_aggregation: is 'normalize_then_sum'; must be 'sum_the"):
        make(multi_objective_aggregation="normalize_then_sum")


def test_a_k_that_groups_do_not_allow_is_refused(make: Callable[..., Recorded]) -> None:
    with pytest.raises(InvalidArgument, match="is 9 for group 0 of n = 8"):
        make(pkpo={"k": 9}).train()
    clamped = make(pkpo={"k": 9, "k_policy": "clamp"}, max_steps=1)
    clamped.train()
    assert clamped.state.log_history[0]["pkpo/groups_k_clamped"] > 0


def test_a_reward_that_is_infinite_is_refused(make: Callable[..., Recorded]) -> None:
    def infinite(completions: list[str], **_: Any) -> list[float]:
        return [float("inf") if i == 9 else 0.0 for i in range(len(completions))]

    with pytest.raises(InvalidArgument, match=r"rewards\[1, 1\]"):
        make(infinite).train()


def test_settings_come_from_the_environment_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PKPO_K", "5")
    assert trainer_of(tmp_path, None).objective == Objective(k="5", scale="mean", estimate_k=(1, 2, 4, 8))
    given = Objective(k="2", scale="sum")
    assert trainer_of(tmp_path, given).objective is given
    monkeypatch.delenv("PKPO_K")
    with pytest.raises(InvalidArgument, match="must be an integer of at least 1, or k@step"):
        trainer_of(tmp_path, None)


def test_a_trl_without_what_is_needed_is_named(make: Callable[..., Recorded], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trl, "__version__", "9.9.9")
    with monkeypatch.context() as patched:
        patched.delattr(trl.GRPOTrainer, "_calculate_rewards")
        with pytest.raises(RuntimeError, match=r"trl 9\.9\.9: .* has no _calculate_rewards; docs/integrations/trl\.md"):
            PassAtKTrainer()
    with monkeypatch.context() as patched:
        made = make()
        patched.setattr(trl.GRPOTrainer, "_generate_and_score_completions", lambda self, inputs: {"advantages": None})
        with pytest.raises(RuntimeError, match=r"trl 9\.9\.9: .* scores completions in another way"):
            made.train()


@pytest.mark.parametrize(
    ("changed", "says"),
    [(lambda given: given[::2], "leaves some out"), (lambda given: given.roll(1), "puts other completions")],
)
def test_a_trainer_that_does_more_is_refused(
    changed: Callable[[Tensor], Tensor], says: str, make: Callable[..., Recorded], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those do that filter a group or replay old completions: whose an advantage is cannot be told any more."""
    made = make()
    under = trl.GRPOTrainer._generate_and_score_completions

    def more(self: Any, inputs: Any) -> Any:
        output = under(self, inputs)
        return {**output, "advantages": changed(output["advantages"])}

    monkeypatch.setattr(trl.GRPOTrainer, "_generate_and_score_completions", more)
    with pytest.raises(RuntimeError, match=says):
        made.train()


# --- the page --------------------------------------------------------------------------------------------------------


def test_the_page_does_what_it_says(server: LiveServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Model, data and reward are the reader's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PKPO_K", "2")
    namespace = {"model": policy(), "tokenizer": tokenizer(), "reward": variety, "dataset": prompts()}
    for block in blocks(PAGE):
        if block.language == "python":
            run_python(
                block.text.replace('GRPOConfig("runs/k4"', 'GRPOConfig("runs/k4", use_cpu=True'), namespace, server
            )
        elif block.language == "sh":
            for command in commands(block.text):
                run_command(command, server)
    assert namespace["trainer"].state.global_step == 2
    assert server.metrics()[sample_key("pkpo_groups_total", {"run": "k4", "variant": "SLOO_MINUS_ONE"})] == 4
    mine = trainer_of(tmp_path, None, kind=namespace["PassAtKTrainerOfMine"])
    assert mine.objective.k == "2"


def test_the_page_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", PAGE.read_text()):
        assert target.startswith("https://") or (PAGE.parent / target).exists(), target
