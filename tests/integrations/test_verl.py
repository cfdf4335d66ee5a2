"""verl: found by it, told by its configuration, and its own trainer with a tiny Gemma-2 through a live service."""

from __future__ import annotations

import importlib.util
import os
import shlex
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import reference
from live_server import LiveServer, sample_key
from pages import ROOT, check_page, run_command

if importlib.util.find_spec("verl") is None:
    pytest.skip("needs verl", allow_module_level=True)
# verl's own switches: the platform of live_verl, and the FSDP engine that it keeps for CUDA.
os.environ.update(VERL_PLATFORM="cpu", VERL_ENGINE_DEVICE="cuda", VERL_USE_EXTERNAL_MODULES="live_verl")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import torch
    from verl import DataProto
    from verl.trainer.config import AlgoConfig
    from verl.trainer.ppo.core_algos import get_policy_loss_fn
    from verl.trainer.ppo.ray_trainer import compute_advantage
    from verl.utils.config import omega_conf_to_dataclass
    from verl.utils.skip import SkipManager

    from live_verl import PROMPTS_PER_STEP, RESPONSE, SAMPLES, Run, composed, tiny_gemma2

from pkpo_client import InvalidArgument, Unreachable
from pkpo_client.integrations.objective import Objective

# What verl, ray and torch warn of is theirs.
pytestmark = pytest.mark.filterwarnings("ignore")

PAGE = ROOT / "docs" / "integrations" / "verl.md"
REWARDS = [1.0, 0.0, 0.25, 0.5, 0.0, 1.0, 0.0, 0.75, 0.5]
UIDS = ["a", "b", "a", "c", "b", "b", "a", "c", "b"]
MODES = ("token-mean", "token-sum", "seq-mean-token-sum", "seq-mean-token-sum-norm", "seq-mean-token-mean")


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    with LiveServer() as live:
        yield live


@pytest.fixture(autouse=True)
def _no_training_step() -> Iterator[None]:
    SkipManager.set_step(-1)
    yield
    SkipManager.set_step(-1)


def algorithm(*settings: str) -> Any:
    """The `algorithm` section of verl's configuration with settings of pkpo."""
    overrides = [f"+algorithm.pkpo.{setting}" for setting in settings]
    return composed(["algorithm.adv_estimator=pkpo", *overrides]).algorithm


def batch(rewards: list[float], uids: list[str], mask: torch.Tensor | None = None) -> DataProto:
    """Samples as verl has them before it asks for advantages, of three tokens each."""
    mask = torch.ones(len(rewards), 3, dtype=torch.long) if mask is None else mask
    token_level_rewards = torch.zeros(len(rewards), 3)
    token_level_rewards[:, 1] = torch.tensor(rewards)
    return DataProto.from_dict(
        tensors={"token_level_rewards": token_level_rewards, "response_mask": mask},
        non_tensors={"uid": np.array(uids, dtype=object)},
    )


def advantages(config: Any, data: DataProto | None = None, estimator: str = "pkpo") -> torch.Tensor:
    """What verl's own compute_advantage makes of a batch."""
    data = compute_advantage(data or batch(REWARDS, UIDS), adv_estimator=estimator, config=config)
    assert data.batch["returns"] is data.batch["advantages"]
    answer: torch.Tensor = data.batch["advantages"]
    return answer


def exact(
    rewards: list[float], uids: list[str], k: int, variant: str = "sloo_minus_one", scale: str = "mean"
) -> np.ndarray:
    """The exact advantages of ragged groups."""
    answer = np.zeros(len(rewards))
    for uid in set(uids):
        members = [i for i, each in enumerate(uids) if each == uid]
        answer[members] = reference.advantages(variant, [rewards[i] for i in members], k, scale=scale)
    return answer


# --- found by verl, told by its configuration ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "environment",
    [{}, {"VERL_USE_EXTERNAL_PLUGINS": "none", "VERL_USE_EXTERNAL_MODULES": "pkpo_client.integrations.verl"}],
    ids=["plugin", "module"],
)
def test_verl_finds_it_with_nothing_but_its_own_import(environment: dict[str, str]) -> None:
    source = (
        "import verl\nfrom verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY\nprint(*ADV_ESTIMATOR_REGISTRY)"
    )
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("VERL_")}
    done = subprocess.run(
        [sys.executable, "-c", source],
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        timeout=200,
        check=True,
    )
    assert "pkpo" in done.stdout.split()


def test_settings_come_through_verls_configuration(server: LiveServer) -> None:
    config = algorithm("k=2", f"address={server.address}", "run_id=from-verl", "estimate_k=[1,2]")
    measured = advantages(config)
    np.testing.assert_allclose(measured[:, 0], exact(REWARDS, UIDS, 2), rtol=1e-6)
    assert (measured == measured[:, :1]).all()
    asked = {"variant": "SLOO_MINUS_ONE", "run": "from-verl"}
    assert server.metrics()[sample_key("pkpo_groups_total", asked)] == 3


@pytest.mark.parametrize(
    "config",
    [None, AlgoConfig(adv_estimator="pkpo"), {"pkpo": None}, {"adv_estimator": "pkpo"}],
    ids=["none", "dataclass", "empty", "dict"],
)
def test_without_a_section_the_environment_says(config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PKPO_K", "2")
    monkeypatch.setenv("PKPO_ADDRESS", "local")
    np.testing.assert_allclose(advantages(config)[:, 0], exact(REWARDS, UIDS, 2), rtol=1e-6)


def test_no_section_and_no_environment_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="k: is ''; must be an integer of at least 1"):
        advantages(composed(["algorithm.adv_estimator=pkpo"]).algorithm)


# --- what is computed ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["sloo_minus_one", "s", "loo", "passk_analytic", "grpo"])
def test_groups_of_any_sizes_in_any_order_are_exact(variant: str) -> None:
    for k in (1, 2):
        measured = advantages(algorithm(f"k={k}", "address=local", f"variant={variant}"))
        np.testing.assert_allclose(measured[:, 1], exact(REWARDS, UIDS, k, variant), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("sizes", [(4, 4, 4), (2, 3, 7)])
def test_at_k_of_n_tzsm_is_verls_own_grpo_passk(sizes: tuple[int, ...]) -> None:
    generator = np.random.default_rng(sum(sizes))
    uids = [str(group) for group, size in enumerate(sizes) for _ in range(size)]
    generator.shuffle(uids)
    # Fewer levels than samples: the best is tied now and then, and then nobody gets anything.
    for rewards in (generator.random(len(uids)).tolist(), generator.integers(0, 3, len(uids)).astype(float).tolist()):
        config = algorithm("variant=tzsm", "scale=sum", "address=local")
        theirs = advantages(AlgoConfig(norm_adv_by_std_in_grpo=False), batch(rewards, uids), "grpo_passk")
        np.testing.assert_allclose(advantages(config, batch(rewards, uids)), theirs, rtol=1e-6)


def test_a_reward_is_the_sum_of_its_tokens_rewards() -> None:
    data = batch(REWARDS, UIDS)
    penalty = torch.linspace(0, 0.3, data.batch["token_level_rewards"].numel()).view(-1, 3)
    data.batch["token_level_rewards"] -= penalty
    rewards = (torch.tensor(REWARDS) - penalty.sum(dim=1)).tolist()
    measured = advantages(algorithm("k=2", "address=local"), data)
    np.testing.assert_allclose(measured[:, 0], exact(rewards, UIDS, 2), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_advantages_are_of_the_dtype_of_the_rewards(dtype: torch.dtype) -> None:
    data = batch(REWARDS, UIDS)
    data.batch["token_level_rewards"] = data.batch["token_level_rewards"].to(dtype)
    assert advantages(algorithm("k=2", "address=local"), data).dtype == dtype


def test_a_sample_without_a_token_to_train_on_counts_nowhere() -> None:
    mask = torch.ones(len(REWARDS), 3, dtype=torch.long)
    mask[0, 2] = 0
    mask[[1, 4, 5], :] = 0  # leaves one of the four of group b, for which no k is legal
    mask[3, :] = 0  # and one of the two of c
    kept = [0, 2, 6]
    measured = advantages(algorithm("k=3", "address=local"), batch(REWARDS, UIDS, mask))
    expected = np.zeros(len(REWARDS))
    expected[kept] = exact([REWARDS[i] for i in kept], ["a"] * 3, 3)
    np.testing.assert_allclose(measured, expected[:, None] * mask.numpy(), rtol=1e-6)


def test_k_above_a_group_is_refused_where_every_sample_counts() -> None:
    with pytest.raises(InvalidArgument, match=r"is 3 for group 2 of n = 2"):
        advantages(algorithm("k=3", "address=local"))


def test_a_reward_that_is_no_number_is_refused() -> None:
    with pytest.raises(InvalidArgument, match=r"rewards\[1\]: is nan; must be finite"):
        advantages(algorithm("k=2", "address=local"), batch([1.0, float("nan")], ["a", "a"]))


# --- k over the course of training -----------------------------------------------------------------------------------


def test_k_follows_the_step_that_verl_tells_its_rollout_cache() -> None:
    config = algorithm('k="3@0,2@2,1@3"', "address=local")
    rewards, uids = [0.5, 0.0, 1.0, 0.25], ["a"] * 4
    for verls_step, k in ((1, 3), (2, 3), (3, 2), (4, 1)):  # verl counts from 1
        SkipManager.set_step(verls_step)
        np.testing.assert_allclose(
            advantages(config, batch(rewards, uids))[:, 0], exact(rewards, uids, k), rtol=1e-6, atol=1e-7
        )


@pytest.mark.parametrize(
    ("settings", "field"), [(['k="3@0,2@2"'], "k"), (["k=2", "variant=passk_bootstrap"], "variant")]
)
def test_where_verl_does_not_say_the_step_what_needs_it_is_refused(settings: list[str], field: str) -> None:
    with pytest.raises(InvalidArgument, match=f"{field}: .* where the training step is not known"):
        advantages(algorithm(*settings, "address=local"))


def test_multi_trajectory_trainers_come_to_the_same() -> None:
    """verl's v1 trainers, its default, compute advantages by this function."""
    if importlib.util.find_spec("transfer_queue") is None:
        pytest.skip("needs TransferQueue")
    from verl.trainer.ppo.v1.utils import compute_advantage_for_multi_trajectories

    keys = [f"{uid}_{i}_0" for i, uid in enumerate(UIDS)]
    data = compute_advantage_for_multi_trajectories(
        batch(REWARDS, UIDS), batch_keys=keys, adv_estimator="pkpo", config=algorithm("k=2", "address=local")
    )
    np.testing.assert_allclose(data.batch["advantages"][:, 0], exact(REWARDS, UIDS, 2), rtol=1e-6)


# --- the service is away ---------------------------------------------------------------------------------------------


def test_without_a_service_training_stops_unless_told_otherwise() -> None:
    nobody = ("k=2", "address=127.0.0.1:1", "timeout=0.5")
    with pytest.raises(Unreachable, match=r"127\.0\.0\.1:1"):
        advantages(algorithm(*nobody))
    here = advantages(algorithm(*nobody, "fallback=local"))
    assert (here == advantages(algorithm("k=2", "address=local"))).all()


def test_figures_go_to_pythons_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "pkpo_client.integrations.verl"):
        advantages(algorithm("k=2", "address=local", "estimate_k=1"))
    assert "'pkpo/k': 2.0" in caplog.text
    assert "'pkpo/max@1'" in caplog.text


# --- verl's other losses ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def settings_of_the_actor() -> Any:
    actor = "actor_rollout_ref.actor"
    return composed([f"{actor}.policy_loss.dro_beta=0.1", f"{actor}.ppo_micro_batch_size_per_gpu=1"]).actor_rollout_ref


@pytest.mark.parametrize(
    "loss", ["vanilla", "dppo_tv", "dppo_kl", "gspo", "gpg", "clip_cov", "kl_cov", "cispo", "dro", "sapo", "geo_mean"]
)
def test_what_each_loss_makes_of_the_advantages(loss: str, settings_of_the_actor: Any) -> None:
    """The page's table: the weight of each sample's log-probability, at a probability ratio of 1."""
    lengths = torch.tensor([1, 3, 2, 3, 1, 2, 3, 1, 2])
    mask = (torch.arange(3) < lengths[:, None]).long()
    samples = len(REWARDS)
    weights = {
        "token-mean": torch.full((samples,), 1 / int(mask.sum())),
        "token-sum": torch.ones(samples),
        "seq-mean-token-sum": torch.full((samples,), 1 / samples),
        "seq-mean-token-sum-norm": torch.full((samples,), 1 / samples / 7),
        "seq-mean-token-mean": 1 / samples / lengths,
    }
    actor = omega_conf_to_dataclass(settings_of_the_actor.actor)
    actor.global_batch_info["loss_scale_factor"] = 7
    made = advantages({"pkpo": {"k": 2, "address": "local"}}, batch(REWARDS, UIDS, mask))
    exactly = torch.tensor(exact(REWARDS, UIDS, 2)).float()
    for mode in MODES:
        weight = weights["seq-mean-token-mean" if loss in ("sapo", "geo_mean") else mode]
        log_probs = torch.full((samples, 3), -1.5, requires_grad=True)
        get_policy_loss_fn(loss)(
            old_log_prob=log_probs.detach().clone(),
            log_prob=log_probs,
            advantages=made,
            response_mask=mask,
            loss_agg_mode=mode,
            config=actor,
        )[0].backward()
        torch.testing.assert_close(-log_probs.grad, (weight * exactly)[:, None] * mask, rtol=1e-4, atol=1e-7, msg=mode)


# --- verl's own trainer ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def one_process(monkeypatch_module: pytest.MonkeyPatch) -> Iterator[None]:
    """A process group of this process alone, and what verl's workers read of the environment."""
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}.items():
        monkeypatch_module.setenv(name, value)
    monkeypatch_module.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch_module.setenv("MASTER_PORT", "0")
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def monkeypatch_module() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gemma2(tmp_path_factory.mktemp("gemma2"))


def reward(responses: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What an answer is worth, and how long it is: the fifth of a step was aborted before its first token."""
    lengths = 2 + responses[:, 1] % (RESPONSE - 1)
    lengths[4] = 0
    return (responses[:, 0] % 5).float() * (lengths > 0), lengths


def by_hand(run: Run, model: Path, step: int, k: int, mode: str) -> dict[str, torch.Tensor]:
    """The gradient of the step's loss, from the exact advantages of what was sampled and counts."""
    from transformers import AutoModelForCausalLM

    sampled = run.rollouts[step].batch
    mask = sampled["response_mask"]
    rewards = sampled["rm_scores"].sum(dim=1).tolist()
    counted = [i for i in range(len(rewards)) if mask[i].any()]
    exactly = torch.zeros(len(rewards))
    groups = [str(i // SAMPLES) for i in range(len(rewards))]
    assert len(set(groups)) == PROMPTS_PER_STEP
    exactly[counted] = torch.from_numpy(
        exact([rewards[i] for i in counted], [groups[i] for i in counted], k).astype(np.float32)
    )

    policy = AutoModelForCausalLM.from_pretrained(model, attn_implementation="eager", dtype=torch.float32)
    policy.load_state_dict(run.weights[step], strict=False)
    logits = policy(
        sampled["input_ids"], attention_mask=sampled["attention_mask"], position_ids=sampled["position_ids"]
    ).logits[:, -RESPONSE - 1 : -1]
    log_probs = torch.log_softmax(logits, dim=-1).gather(2, sampled["responses"].unsqueeze(2)).squeeze(2)
    of_samples = exactly * (log_probs * mask).sum(dim=1)
    lengths = mask.sum(dim=1).clamp(min=1)
    loss = {
        "token-mean": of_samples.sum() / mask.sum(),
        "token-sum": of_samples.sum(),
        "seq-mean-token-sum": of_samples.mean(),
        "seq-mean-token-sum-norm": of_samples.mean() / 7,
        "seq-mean-token-mean": (of_samples / lengths).mean(),
    }[mode]
    (-loss).backward()
    return {name: each.grad for name, each in policy.named_parameters()}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.usefixtures("one_process")
def test_verls_trainer_steps_along_the_exact_gradient(mode: str, model: Path, server: LiveServer) -> None:
    run = Run(
        model,
        [
            "algorithm.adv_estimator=pkpo",
            '+algorithm.pkpo.k="3@0,2@1"',
            f"+algorithm.pkpo.address={server.address}",
            f"+algorithm.pkpo.run_id=verl/{mode}",
            f"actor_rollout_ref.actor.loss_agg_mode={mode}",
            "actor_rollout_ref.actor.loss_scale_factor=7",
            "trainer.total_training_steps=2",
            "trainer.save_freq=-1",
        ],
        reward,
    )
    run.fit()
    assert len(run.gradients) == 2
    for step, k in enumerate((3, 2)):
        expected = by_hand(run, model, step, k, mode)
        assert max(float(each.abs().max()) for each in expected.values()) > 1e-3
        for name, gradient in run.gradients[step].items():
            torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-5)
    assert any((run.weights[1][name] != run.weights[0][name]).any() for name in run.weights[0])
    asked = {"variant": "SLOO_MINUS_ONE", "run": f"verl/{mode}"}
    assert server.metrics()[sample_key("pkpo_groups_total", asked)] == 2 * PROMPTS_PER_STEP


@pytest.mark.usefixtures("one_process")
def test_k_goes_on_after_a_checkpoint(model: Path, server: LiveServer, tmp_path: Path) -> None:
    settings = [
        "algorithm.adv_estimator=pkpo",
        '+algorithm.pkpo.k="3@0,1@2"',
        f"+algorithm.pkpo.address={server.address}",
        "actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-sum",
        "trainer.resume_mode=auto",
        f"trainer.default_local_dir={tmp_path}",
        "trainer.save_freq=1",
    ]
    Run(model, [*settings, "trainer.total_training_steps=2"], reward).fit()
    SkipManager.set_step(-1)
    resumed = Run(model, [*settings, "trainer.total_training_steps=3"], reward)
    resumed.fit()
    assert len(resumed.gradients) == 1
    expected = by_hand(resumed, model, 0, 1, "seq-mean-token-sum")
    for name, gradient in resumed.gradients[0].items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-5, msg=name)


# --- the page --------------------------------------------------------------------------------------------------------


def test_the_page_does_what_it_says(server: LiveServer) -> None:
    understood: list[Objective] = []

    def run(command: str, live: LiveServer) -> str:
        if "verl.trainer.main_ppo" not in command:
            return run_command(command, live)
        arguments = shlex.split(command)
        config = composed(arguments[arguments.index("verl.trainer.main_ppo") + 1 :])
        assert config.algorithm.adv_estimator == "pkpo"
        understood.append(Objective.from_settings(dict(config.algorithm.pkpo), environment={}))
        return ""

    check_page(PAGE, server, run)
    assert [objective.k for objective in understood] == ["8", "8@0,1@1500"]
    assert {objective.address for objective in understood} == {"localhost:50051"}
