"""docs/integrations/recipes.md: its code is executed against stand-ins, of the shape that the page says it read."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

import reference
from live_server import LiveServer
from pages import ROOT, blocks, run_python

PAGE = ROOT / "docs" / "integrations" / "recipes.md"
GROUPS = [[1.0, 0.0, 0.0, 1.0, 0.0, 0.0], [0.0, 0.25, 0.5, 0.5, 1.0, 0.0]]
K = 4
N = 6


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    with LiveServer() as live:
        yield live


def exact(variant: str, groups: list[list[float]] = GROUPS, k: int = K) -> list[list[float]]:
    return [
        reference.advantages(variant, group, reference.clamped(variant, len(group), k) or 0, scale="mean")
        for group in groups
    ]


def recipe(heading: str, server: LiveServer, monkeypatch: pytest.MonkeyPatch, **modules: Any) -> dict[str, Any]:
    """The names that the block under a heading defines, with modules of these names (`__` for dots) to import."""
    for name, attributes in modules.items():
        module = ModuleType(name)
        vars(module).update(attributes)
        path = name.replace("__", ".")
        for parent in [path[: match.start()] for match in re.finditer(r"\.", path)]:
            if parent not in sys.modules:
                monkeypatch.setitem(sys.modules, parent, ModuleType(parent))
        monkeypatch.setitem(sys.modules, path, module)
    line = PAGE.read_text().split(f"\n## {heading}\n")[0].count("\n")
    block = next(block for block in blocks(PAGE) if block.line > line and block.language == "python")
    namespace: dict[str, Any] = {"__name__": "recipe"}
    run_python(block.text, namespace, server)
    return namespace


def test_every_block_is_one_of_these() -> None:
    assert sum(block.language == "python" for block in blocks(PAGE)) == 4


def test_openrlhf(server: LiveServer, monkeypatch: pytest.MonkeyPatch) -> None:
    class RemoteExperienceMaker:
        args = SimpleNamespace(rollout=SimpleNamespace(n_samples_per_prompt=N))

        def compute_advantages_and_returns(self, experiences: list[Any]) -> list[Any]:
            """As with dr_grpo."""
            order = [i for experience in experiences for i in experience.index]
            rewards = np.empty(len(order))
            rewards[order] = np.concatenate([np.asarray(experience.rewards) for experience in experiences])
            groups = rewards.reshape(-1, N)
            shaped = (groups - groups.mean(axis=1, keepdims=True)).ravel()
            for experience in experiences:
                experience.advantages = shaped[experience.index]
            return experiences

    modules: dict[str, Any] = {
        "openrlhf__trainer__ppo_utils__experience_maker": {"RemoteExperienceMaker": RemoteExperienceMaker}
    }
    if find_spec("torch") is None:
        modules["torch"] = {"cat": np.concatenate, "tensor": np.array, "float32": np.float32, "Tensor": type(None)}
    made = recipe("OpenRLHF", server, monkeypatch, **modules)
    torch = made["torch"]
    # Micro-batches hold the samples in another order than the prompts have.
    indices = [[7, 0, 3], [11, 1, 2, 4], [5, 6, 8, 9, 10]]
    flat = np.array(GROUPS).ravel()
    raw = [torch.tensor([flat[i] for i in index], dtype=torch.float32) for index in indices]
    experiences = [SimpleNamespace(index=index, rewards=rewards) for index, rewards in zip(indices, raw, strict=True)]
    maker = made["PassAtKExperienceMaker"]()
    answered = maker.compute_advantages_and_returns(experiences)
    wanted = np.ravel(exact("centered"))
    for experience, rewards in zip(answered, raw, strict=True):
        np.testing.assert_allclose(experience.advantages, wanted[experience.index], atol=1e-6)
        assert experience.rewards is rewards


@pytest.mark.parametrize("numbered", [True, False])
def test_nemo_rl(numbered: bool, server: LiveServer, monkeypatch: pytest.MonkeyPatch) -> None:
    grpo = SimpleNamespace(_create_advantage_estimator=None)
    recipe("NeMo-RL", server, monkeypatch, nemo_rl__algorithms={"grpo": grpo})
    estimator = grpo._create_advantage_estimator({"grpo": {}})
    prompts = np.array([0, 1] * N) if numbered else np.array([[7, 7], [7, 8]] * N)
    interleaved = np.array(GROUPS).T.ravel()
    mask = np.ones((2 * N, 3))
    mask[:, 2] = 0
    answered = estimator.compute_advantage(prompts, interleaved, mask, repeated_batch={}, logprobs_policy=None)
    wanted = np.array(exact("sloo_minus_one")).T.ravel()
    np.testing.assert_allclose(answered, wanted[:, None] * mask, atol=1e-12)

    valid = np.ones(2 * N)
    valid[-1] = 0  # the last of the second group
    answered = estimator.compute_advantage(prompts, interleaved, mask, valid_mask=valid)
    np.testing.assert_allclose(answered[1::2, 0], [*exact("sloo_minus_one", [GROUPS[1][:-1]])[0], 0.0], atol=1e-12)


def test_skyrl(server: LiveServer, monkeypatch: pytest.MonkeyPatch) -> None:
    registered: dict[str, Any] = {}

    def register_advantage_estimator(name: str) -> Any:
        return lambda function: registered.setdefault(name, function)

    recipe("SkyRL", server, monkeypatch, skyrl__train__entrypoints={"main_base": None},
           skyrl__backends__skyrl_train__utils__ppo_utils={
               "register_advantage_estimator": register_advantage_estimator})  # fmt: skip
    uids = [*["a7"] * N, *["b9"] * N, "pad0", "pad1"]
    rewards = np.zeros((2 * N + 2, 5))
    rewards[: 2 * N, 4] = np.ravel(GROUPS)
    rewards[2 * N :, 4] = GROUPS[0][0]
    mask = np.ones_like(rewards)
    mask[3, 2:] = 0
    advantages, returns = registered["passk"](
        token_level_rewards=rewards, response_mask=mask, index=uids, values=None, grpo_norm_by_std=True,
        gamma=1.0, lambd=1.0, config=None)  # fmt: skip
    wanted = np.array([*np.ravel(exact("sloo_minus_one")), 0.0, 0.0])
    np.testing.assert_allclose(advantages, wanted[:, None] * mask, atol=1e-12)
    assert returns is advantages


def test_rllm(server: LiveServer, monkeypatch: pytest.MonkeyPatch) -> None:
    registered: dict[str, Any] = {}

    def register_rllm_adv_estimator(name: str) -> Any:
        return lambda function: registered.setdefault(name, function)

    recipe("rLLM", server, monkeypatch, rllm__trainer__algorithms__advantage={
        "register_rllm_adv_estimator": register_rllm_adv_estimator})  # fmt: skip
    groups = [GROUPS[0], GROUPS[1][:3], [1.0], GROUPS[1][2:]]
    advantages, returns = registered["passk"](
        rewards=[np.array(group) for group in groups], algorithm_config=None, traj_groups=[]
    )
    for answered, group in zip(advantages, groups, strict=True):
        wanted = exact("sloo_minus_one", [group])[0] if len(group) > 1 else [0.0]
        np.testing.assert_allclose(answered, wanted, atol=1e-12)
    assert returns is advantages


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", PAGE.read_text()):
        assert target.startswith("https://") or (PAGE.parent / target).exists(), target
