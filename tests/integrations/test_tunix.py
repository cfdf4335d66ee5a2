"""tunix's own GRPO learner, with a tiny Gemma-2 and a live service: its updates are those of the exact advantages."""

from __future__ import annotations

import os
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

# tunix warns of what it uses itself.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
pytest.importorskip("tunix", reason="needs tunix")

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import optax  # noqa: E402
from flax import nnx  # noqa: E402
from orbax.checkpoint import CheckpointManagerOptions  # noqa: E402
from tunix.rl.function_registry import get_policy_loss_fn  # noqa: E402
from tunix.rl.grpo.grpo_learner import GRPOConfig, GRPOLearner, TrainExample  # noqa: E402
from tunix.rl.rl_cluster import ClusterConfig, Mode, RLCluster, RLTrainingConfig, Role  # noqa: E402
from tunix.rl.rollout.base_rollout import RolloutConfig  # noqa: E402

import reference  # noqa: E402
from examples.tunix_gemma2 import Digits, model_and_tokenizer, parser  # noqa: E402
from live_server import LiveServer, sample_key  # noqa: E402
from pages import ROOT, blocks, commands, run_command, run_python  # noqa: E402
from pkpo_client import InvalidArgument, Unreachable  # noqa: E402
from pkpo_client.integrations.tunix import register  # noqa: E402

PAGE = ROOT / "docs" / "integrations" / "tunix.md"
N = 8
SCHEDULE = "4@0,2@1,1@2"
LEARNING_RATE = 0.5
BATCHES = [{"prompts": np.array([f"{step}+1=", f"{step}+2="])} for step in range(3)]
RUN_ID = "tunix-test"


def scored(prompts: Any, completions: Any, **_: Any) -> list[float]:
    """Some rewards between 0 and 1, with ties."""
    return [sum(map(int, re.findall(r"\d", completion))) % 5 / 4 for completion in completions]


def cluster(**training: Any) -> RLCluster:
    mesh = jax.make_mesh((1, 1), ("fsdp", "tp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    model, tokenizer = model_and_tokenizer("tiny", Path(), mesh)
    return RLCluster(
        actor=model,
        tokenizer=tokenizer,
        cluster_config=ClusterConfig(
            role_to_mesh={Role.ACTOR: mesh, Role.REFERENCE: mesh, Role.ROLLOUT: mesh},
            training_config=RLTrainingConfig(
                actor_optimizer=optax.sgd(LEARNING_RATE), eval_every_n_steps=100, **training
            ),
            rollout_config=RolloutConfig(
                max_tokens_to_generate=6, max_prompt_length=8, kv_cache_size=16, temperature=1.0
            ),
        ),
    )


def configuration(**settings: Any) -> GRPOConfig:
    return GRPOConfig(
        advantage_estimator="pkpo",
        num_generations=N,
        **{"loss_agg_mode": "seq-mean-token-sum", "beta": 0.0, **settings},
    )


def weights_of(learner: GRPOLearner) -> dict[str, np.ndarray]:
    return flat(nnx.state(learner.rl_cluster.actor_trainer.model, nnx.Param))


def flat(state: Any) -> dict[str, np.ndarray]:
    return {jax.tree_util.keystr(path): np.array(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(state)}


@dataclass
class Step:
    """What a learner trained on, and the weights it had."""

    weights: dict[str, np.ndarray]
    example: TrainExample
    rewards: np.ndarray


@dataclass
class Run:
    learner: GRPOLearner
    steps: list[Step] = field(default_factory=list)
    logged: list[dict[str, Any]] = field(default_factory=list)


def run(made: RLCluster, **settings: Any) -> Run:
    """A learner that tells of its steps; tunix's in everything else."""
    estimator = register(made, run_id=RUN_ID, **settings)
    rewards: list[list[float]] = []

    class Told(GRPOLearner):
        def _generate_and_compute_advantage(self, training_input: Any, mode: Mode = Mode.TRAIN) -> TrainExample:
            before = weights_of(self)
            example = super()._generate_and_compute_advantage(training_input, mode)
            told.steps.append(Step(before, example, np.array(rewards.pop())))
            return example

    def score(**batch: Any) -> list[float]:
        rewards.append(scored(**batch))
        return rewards[-1]

    learner = Told(made, configuration(), score, metric_fns=[estimator.metrics])
    told = Run(learner)
    made.with_external_metrics_logger(lambda buffer: told.logged.append(buffer.metrics))
    return told


@pytest.fixture(scope="module", autouse=True)
def compiled_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Every learner compiles the same programs."""
    names = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": 0,
    }
    before = {name: getattr(jax.config, name) for name in names}
    for name, value in names.items():
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    with LiveServer() as live:
        yield live


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return {
        "checkpoint_root_directory": str(tmp_path_factory.mktemp("checkpoints")),
        "checkpointing_options": CheckpointManagerOptions(save_interval_steps=1),
    }


@pytest.fixture(scope="module")
def trained(server: LiveServer, checkpoints: dict[str, Any]) -> Run:
    """Two steps."""
    told = run(cluster(max_steps=2, **checkpoints), k=SCHEDULE, estimate_k="1,4", address=server.address)
    told.learner.train(BATCHES)
    return told


def exact(rewards: np.ndarray, k: int) -> np.ndarray:
    """In scale "sum", group by group."""
    groups = rewards.reshape(-1, N).tolist()
    return np.concatenate([reference.advantages("sloo_minus_one", group, k) for group in groups])


def log_probs(model: Any, example: TrainExample) -> tuple[Any, Any]:
    """(samples, tokens): of each token that was sampled, and whether it was."""
    tokens = jnp.concatenate([example.prompt_ids, example.completion_ids], axis=1)
    written = tokens != Digits().pad_id()
    attended = jnp.tril(jnp.ones((tokens.shape[1],) * 2, bool)) & written[:, None, :]
    logits, _ = model(tokens, jnp.maximum(jnp.cumsum(written, axis=1) - 1, 0), None, attended)
    of_all = jax.nn.log_softmax(logits[:, :-1].astype(jnp.float32))
    of_written = jnp.take_along_axis(of_all, tokens[:, 1:, None], axis=2)[..., 0]
    length = example.completion_ids.shape[1]
    return of_written[:, -length:], written[:, -length:]


def model_with(weights: dict[str, np.ndarray], like: Any) -> Any:
    graph, state = nnx.split(like)
    named = jax.tree_util.tree_map_with_path(lambda path, _: jnp.array(weights[jax.tree_util.keystr(path)]), state)
    return nnx.merge(graph, named)


def gradient(model: Any, example: TrainExample, weight: np.ndarray) -> dict[str, np.ndarray]:
    """Of -sum_i weight_i log p(sample i)."""
    return flat(_gradient(model, example, jnp.asarray(weight, jnp.float32)))


@nnx.jit
@nnx.grad
def _gradient(model: Any, example: TrainExample, weight: Any) -> Any:
    of_tokens, written = log_probs(model, example)
    return -(weight * (of_tokens * written).sum(axis=1)).sum()


class Bigrams(nnx.Module):
    """The smallest model that tunix's losses take: the next token by the last."""

    def __init__(self) -> None:
        self.logits = nnx.Param(jax.random.normal(jax.random.key(0), (16, 16)))

    def __call__(self, tokens: Any, positions: Any, cache: None, attention_mask: Any) -> tuple[Any, None]:
        return self.logits[...][tokens], None


def assert_close(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    """Each array to 1e-4 of the largest number of them all: float32, summed in another order."""
    assert found.keys() == expected.keys()
    largest = max(np.abs(array).max() for array in expected.values())
    assert largest > 0
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=0, atol=1e-4 * largest, err_msg=name)


def test_each_update_is_that_of_the_exact_advantages(trained: Run) -> None:
    """minus the learning rate times the gradient of -1/P sum_groups sum_i A_i log p(y_i), A in scale "sum"."""
    assert len(trained.steps) == 2
    model = trained.learner.rl_cluster.actor_trainer.model
    after = [trained.steps[1].weights, weights_of(trained.learner)]
    for step, then, k in zip(trained.steps, after, (4, 2), strict=True):
        advantages = exact(step.rewards, k)
        assert len(np.unique(advantages)) > 3
        np.testing.assert_allclose(step.example.advantages, N * advantages, rtol=1e-6)
        by_hand = gradient(model_with(step.weights, model), step.example, advantages * N / len(advantages))
        updated = {name: (then[name] - before) / -LEARNING_RATE for name, before in step.weights.items()}
        assert_close(updated, by_hand)


def test_the_service_and_the_learner_tell_of_the_run(trained: Run, server: LiveServer) -> None:
    labels = {"run": RUN_ID, "variant": "SLOO_MINUS_ONE"}
    assert server.metrics()[sample_key("pkpo_rewards_total", labels)] >= 4 * N
    logged = [buffer for buffer in trained.logged if buffer]
    assert [buffer["pkpo/k"][0] for buffer in logged] == [[4.0], [2.0]]
    for buffer, step in zip(logged, trained.steps, strict=True):
        pass_at_4 = np.mean([reference.max_at_k(group, 4) for group in step.rewards.reshape(-1, N).tolist()])
        assert buffer["pkpo/max@4"][0] == [pytest.approx(pass_at_4)]
        assert buffer["pkpo/max@4"][1] is np.mean


def test_a_resumed_run_goes_on_with_the_k_of_its_step(
    trained: Run, server: LiveServer, checkpoints: dict[str, Any]
) -> None:
    told = run(cluster(max_steps=3, **checkpoints), k=SCHEDULE, address=server.address)
    assert told.learner.rl_cluster.global_steps == 2
    told.learner.train(BATCHES)
    (step,) = told.steps
    for name, weight in weights_of(trained.learner).items():
        np.testing.assert_array_equal(step.weights[name], weight)
    np.testing.assert_allclose(step.example.advantages, N * exact(step.rewards, 1), rtol=1e-6)


def test_a_run_that_had_ended_goes_on_with_the_k_of_its_updates(tmp_path: Path) -> None:
    """Into the checkpoint that tunix makes when training ends, it does not write the step."""
    ended = cluster(max_steps=2, checkpoint_root_directory=str(tmp_path))
    ended.actor_trainer._train_steps = 2
    ended.close()
    resumed = cluster(max_steps=3, checkpoint_root_directory=str(tmp_path))
    estimator = register(resumed, k=SCHEDULE, address="local")
    GRPOLearner(resumed, configuration(), scored)
    assert resumed.global_steps == 0
    rewards = np.array([0.0, 1.0, 0.5, 2.0])
    np.testing.assert_allclose(estimator(rewards, 4), reference.advantages("loo", rewards, 1, scale="mean"), rtol=1e-14)


def test_a_service_that_is_away_ends_training_and_changes_nothing() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{nobody.getsockname()[1]}"
        told = run(cluster(max_steps=1), k=4, address=address, timeout=0.5)
        before = weights_of(told.learner)
        with pytest.raises(Unreachable):
            told.learner.train(BATCHES)
    for name, weight in weights_of(told.learner).items():
        np.testing.assert_array_equal(before[name], weight)


@pytest.mark.parametrize("loss_algo", ["grpo", "gspo-token"])
@pytest.mark.parametrize(
    "mode",
    [
        "seq-mean-token-sum",
        "sequence-mean-token-sum-norm",
        "sequence-mean-token-scale",
        "sequence-mean-token-mean",
        "token-mean",
    ],
)
def test_what_each_loss_makes_of_the_advantages(trained: Run, mode: str, loss_algo: str) -> None:
    """The page's table: the weight of each sample's log-probability, from A in scale "sum"."""
    step = trained.steps[0]
    lengths = np.array(step.example.completion_mask).sum(axis=1)
    assert len(set(lengths)) > 1
    assert lengths.min() > 0
    samples, longest = step.example.completion_ids.shape
    weight = {
        "seq-mean-token-sum": N / samples,
        "sequence-mean-token-sum-norm": N / samples,
        "sequence-mean-token-scale": N / (samples * longest),
        "sequence-mean-token-mean": N / (samples * lengths),
        "token-mean": N / lengths.sum(),
    }[mode] * exact(step.rewards, 4)
    algo_config = configuration(loss_agg_mode=mode, loss_algo=loss_algo)
    algo_config.temperature = 1.0

    def loss(model: Any) -> Any:
        return get_policy_loss_fn("grpo")(model, step.example, algo_config=algo_config, pad_id=0, eos_id=1)[0]

    model = Bigrams()
    assert_close(flat(nnx.grad(loss)(model)), gradient(model, step.example, weight))


def counter(steps: int = 0) -> Any:
    """What an estimator reads of a cluster that began anew."""
    return SimpleNamespace(
        global_steps=steps, actor_trainer=SimpleNamespace(train_steps=0, restored_global_step=lambda: 0)
    )


def test_groups_are_consecutive_and_k_follows_the_counter(server: LiveServer) -> None:
    steps = counter()
    estimator = register(steps, "of-this-test", k="3@0,1@5", estimate_k=2, address=server.address)
    rewards = np.array([0.0, 1.0, 0.5, 2.0, 2.0, 1.0])
    for step, k in ((0, 3), (4, 3), (5, 1), (1000, 1)):
        steps.global_steps = step
        found = estimator(rewards=rewards, num_generations=3)
        expected = np.concatenate(
            [reference.advantages("sloo_minus_one", group, k, scale="mean") for group in ([0, 1, 0.5], [2, 2, 1])]
        )
        np.testing.assert_allclose(found, expected, rtol=1e-14)
        assert estimator.metrics(prompts=[])["pkpo/k"][0] == k


@pytest.mark.parametrize(
    ("rewards", "says"),
    [
        (np.ones(7), r"rewards: has shape \(7,\); must be groups of 3 end to end"),
        (np.ones((2, 3)), r"rewards: has shape \(2, 3\)"),
        (np.array([1.0, np.nan, 0.0]), "rewards"),
    ],
)
def test_rewards_that_cannot_be_are_refused(server: LiveServer, rewards: np.ndarray, says: str) -> None:
    estimator = register(counter(), "of-this-test", k=2, address=server.address)
    with pytest.raises(InvalidArgument, match=says):
        estimator(rewards=rewards, num_generations=3)


def test_settings_that_cannot_be_are_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidArgument, match="k: is 'many'"):
        register(counter(), "of-this-test", k="many")
    monkeypatch.setenv("PKPO_K", "2")
    monkeypatch.setenv("PKPO_ADDRESS", "local")
    assert register(counter(), "of-this-test")([1.0, 0.0], 2).tolist() == [2.0, 0.0]


def test_the_page_does_what_it_says(server: LiveServer) -> None:
    """Its commands run; those that want a TPU are read by the program they are for."""
    namespace: dict[str, Any] = {"cluster": cluster(max_steps=1), "reward_fn": scored}
    ran = []
    for block in blocks(PAGE):
        if block.language == "python":
            run_python(block.text, namespace, server)
        elif block.language == "sh" and block.text.startswith("# needs a TPU"):
            for command in commands(block.text):
                program, *arguments = shlex.split(command)
                assert program in {"python", "pip", "export"}, command
                if program == "python":
                    assert parser().parse_args(arguments[1:]).size == "2b-it"
                    ran.append(arguments[0])
        elif block.language == "sh":
            for command in commands(block.text):
                ran.append(command)
                if command.startswith("python "):
                    assert "pkpo/max@8" in trained_tiny(command, server)
                else:
                    run_command(command, server)
    assert ran.count("examples/tunix_gemma2.py") >= 1
    assert any(command.startswith("python ") for command in ran)
    assert "estimator" in namespace


def trained_tiny(command: str, server: LiveServer) -> str:
    done = subprocess.run(
        [sys.executable, *shlex.split(command.replace("localhost:50051", server.address))[1:]],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
