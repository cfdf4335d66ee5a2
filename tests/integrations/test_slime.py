"""slime: what its hooks get and give, with samples of the shape of its own. slime itself is not installed here."""

from __future__ import annotations

import logging
import math
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import numpy as np
import pytest

import reference
from live_server import LiveServer, sample_key
from pages import ROOT, blocks, check_page
from pkpo_client import InvalidArgument, Unreachable
from pkpo_client.integrations import slime

PAGE = ROOT / "docs" / "integrations" / "slime.md"
SIZES = (4, 3, 5)


class Status(Enum):
    COMPLETED = "completed"
    TRUNCATED = "truncated"
    ABORTED = "aborted"


@dataclass
class Sample:
    """The attributes of slime.utils.types.Sample that the hook of slime's own reads, and those of this one."""

    group_index: int | None = None
    index: int | None = None
    rollout_id: int | None = None
    response_length: int = 3
    reward: float | dict[str, Any] | None = None
    loss_mask: list[int] | None = None
    remove_sample: bool = False
    status: Status = Status.COMPLETED
    metadata: dict[str, Any] = field(default_factory=dict)

    def get_reward_value(self, args: Namespace) -> Any:
        return self.reward[args.reward_key] if args.reward_key else self.reward  # type: ignore[index]


def arguments(**settings: Any) -> Namespace:
    """slime's arguments, with what --custom-config-path puts there."""
    return Namespace(
        advantage_estimator="grpo",
        normalize_advantages=False,
        n_samples_per_prompt=4,
        reward_key=None,
        pkpo={"address": "local", **settings},
    )


def rollout(sizes: tuple[int, ...] = SIZES, seed: int = 0) -> list[Sample]:
    """Samples of groups of these sizes, groups end to end, numbered on from an earlier step."""
    rewards = np.random.default_rng(seed).random(sum(sizes)).round(3)
    groups = [group for group, size in enumerate(sizes) for _ in range(size)]
    return [Sample(40 + group, 160 + i, reward=float(rewards[i])) for i, group in enumerate(groups)]


def exact(rewards: list[float], groups: list[Any], k: int, variant: str = "sloo_minus_one") -> list[float]:
    answer = [0.0] * len(rewards)
    for group in dict.fromkeys(groups):
        members = [i for i, each in enumerate(groups) if each == group]
        of_group = reference.advantages(variant, [rewards[i] for i in members], k, scale="mean")
        for i, advantage in zip(members, of_group, strict=True):
            answer[i] = advantage
    return answer


def exact_of(samples: list[Sample], k: int) -> list[float]:
    return exact([sample.reward for sample in samples], [sample.group_index for sample in samples], k)  # type: ignore[misc]


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    with LiveServer() as live:
        yield live


@pytest.fixture(autouse=True)
def _no_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slime, "_step", None)


# --- groups ----------------------------------------------------------------------------------------------------------


def test_uneven_groups_in_any_order_are_exact(server: LiveServer) -> None:
    samples = rollout()
    np.random.default_rng(1).shuffle(samples)  # type: ignore[arg-type]
    raw, advantages = slime.passk_rewards(arguments(k=2, address=server.address, run_id="from-slime"), samples)
    assert raw == [sample.reward for sample in samples]
    np.testing.assert_allclose(advantages, exact_of(samples, 2), rtol=1e-13)
    assert all(type(each) is float for each in (*raw, *advantages))
    asked = {"variant": "SLOO_MINUS_ONE", "run": "from-slime"}
    assert server.metrics()[sample_key("pkpo_groups_total", asked)] == len(SIZES)


def test_groups_without_a_number_are_told_by_the_samples_numbers() -> None:
    samples = rollout((4, 4))
    expected = exact_of(samples, 2)
    for sample in samples:
        sample.group_index = None
    del samples[5]  # cut off, or never finished: what is left of its group stays a group
    _, advantages = slime.passk_rewards(arguments(k=2), samples)
    np.testing.assert_allclose(advantages[:4], expected[:4], rtol=1e-13)
    np.testing.assert_allclose(
        advantages[4:],
        exact([sample.reward for sample in samples[4:]], [0] * 3, 2),
        rtol=1e-13,  # type: ignore[misc]
    )


def test_a_sample_without_any_number_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="group_index: is None, and so is index, for sample 1"):
        slime.passk_rewards(arguments(k=1), [Sample(0, 0, reward=1.0), Sample(None, None, reward=0.0)])


def test_pieces_of_one_rollout_count_once_and_share_its_advantage() -> None:
    rewards, pieces = [1.0, 0.0, 0.5, 0.25], [3, 1, 2, 1]
    samples = [
        Sample(7, index, rollout_id=index, reward=rewards[index]) for index in range(4) for _ in range(pieces[index])
    ]
    _, advantages = slime.passk_rewards(arguments(k=3), samples)
    expected = exact(rewards, [7] * 4, 3)
    np.testing.assert_allclose(advantages, np.repeat(expected, pieces), rtol=1e-13)
    samples[1].reward = 0.5
    with pytest.raises(InvalidArgument, match=r"reward: is 0\.5 and 1\.0 for pieces of rollout 0; must be one"):
        slime.passk_rewards(arguments(k=3), samples)


# --- rewards ---------------------------------------------------------------------------------------------------------


def test_a_reward_of_several_is_taken_by_its_key() -> None:
    samples = rollout((4,))
    expected = exact_of(samples, 2)
    for sample in samples:
        sample.reward = {"score": sample.reward, "format": 1.0}
    args = arguments(k=2)
    args.reward_key = "score"
    np.testing.assert_allclose(slime.passk_rewards(args, samples)[1], expected, rtol=1e-13)


@pytest.mark.parametrize(
    "lost",
    [
        {"reward": None, "status": Status.ABORTED},
        {"reward": math.nan},
        {"response_length": 0, "status": Status.ABORTED},
        {"loss_mask": [0, 0, 0]},
    ],
    ids=["unscored", "nan", "empty", "masked"],
)
def test_what_has_no_reward_or_no_token_to_train_on_counts_nowhere(lost: dict[str, Any]) -> None:
    samples = rollout((4, 4))
    for name, value in lost.items():
        setattr(samples[2], name, value)
    kept = [samples[i] for i in (0, 1, 3)]
    for k in (2, 4):  # more than are left: lowered
        raw, advantages = slime.passk_rewards(arguments(k=k), samples)
        assert advantages[2] == 0
        np.testing.assert_allclose([advantages[i] for i in (0, 1, 3)], exact_of(kept, min(k, 3)), rtol=1e-13)
        np.testing.assert_allclose(advantages[4:], exact_of(samples[4:], k), rtol=1e-13)
        assert math.isnan(raw[2]) == ("reward" in lost)


def test_a_removed_sample_and_a_truncated_one_count() -> None:
    samples = rollout((4,))
    samples[0].remove_sample, samples[1].status, samples[3].loss_mask = True, Status.TRUNCATED, [0, 0, 1]
    np.testing.assert_allclose(slime.passk_rewards(arguments(k=2), samples)[1], exact_of(samples, 2), rtol=1e-13)


def test_a_batch_without_any_reward_is_answered_without_a_call() -> None:
    samples = [Sample(0, i) for i in range(4)]
    raw, advantages = slime.passk_rewards(arguments(k=2, address="127.0.0.1:1", timeout=0.5), samples)
    assert advantages == [0.0] * 4
    assert all(math.isnan(each) for each in raw)


def test_an_infinite_reward_is_refused() -> None:
    samples = rollout((4,))
    samples[1].reward = math.inf
    with pytest.raises(InvalidArgument, match=r"rewards\[1\]: is inf"):
        slime.passk_rewards(arguments(k=2), samples)


# --- settings --------------------------------------------------------------------------------------------------------


def test_without_a_section_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PKPO_K", "3")
    monkeypatch.setenv("PKPO_ADDRESS", "local")
    args = arguments()
    del args.pkpo
    samples = rollout()
    np.testing.assert_allclose(slime.passk_rewards(args, samples)[1], exact_of(samples, 3), rtol=1e-13)


def test_k_above_a_group_is_refused_where_every_sample_counts() -> None:
    with pytest.raises(InvalidArgument, match=r"is 4 for group 1 of n = 3"):
        slime.passk_rewards(arguments(k=4), rollout())


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("normalize_advantages", True, "normalize_advantages: is set; must not be"),
        ("advantage_estimator", "ppo", "advantage_estimator: is 'ppo'; must be one of grpo, gspo, cispo"),
        ("advantage_estimator", "reinforce_plus_plus_baseline", "must be one of grpo, gspo, cispo"),
    ],
)
def test_arguments_that_would_change_the_advantages_are_refused(name: str, value: Any, says: str) -> None:
    args = arguments(k=2)
    setattr(args, name, value)
    with pytest.raises(InvalidArgument, match=says):
        slime.passk_rewards(args, rollout())


# --- k over the course of training -----------------------------------------------------------------------------------


def test_k_follows_the_rollout_that_slime_logged_last() -> None:
    samples = rollout((4, 4))
    args = arguments(k="4@0,2@10,1@11")
    for rollout_id, k in ((0, 4), (9, 4), (10, 2), (11, 1)):  # also where a run resumes at 10
        assert slime.note_step(rollout_id, args, samples, {}, 1.5) is False
        np.testing.assert_allclose(slime.passk_rewards(args, samples)[1], exact_of(samples, k), rtol=1e-12)


@pytest.mark.parametrize("settings", [{"k": "4@0,2@10"}, {"k": 2, "variant": "passk_bootstrap"}])
def test_where_nothing_says_the_step_what_needs_it_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument, match="where the training step is not known"):
        slime.passk_rewards(arguments(**settings), rollout((4, 4)))


# --- the service is away ---------------------------------------------------------------------------------------------


def test_without_a_service_training_stops_unless_told_otherwise() -> None:
    nobody = {"k": 2, "address": "127.0.0.1:1", "timeout": 0.5}
    with pytest.raises(Unreachable, match=r"127\.0\.0\.1:1"):
        slime.passk_rewards(arguments(**nobody), rollout())
    here = slime.passk_rewards(arguments(**nobody, fallback="local"), rollout())
    assert here == slime.passk_rewards(arguments(k=2), rollout())


def test_figures_go_to_pythons_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "pkpo_client.integrations.slime"):
        slime.passk_rewards(arguments(k=2, estimate_k=1), rollout())
    assert "'pkpo/k': 2.0" in caplog.text
    assert "'pkpo/max@1'" in caplog.text


# --- the page --------------------------------------------------------------------------------------------------------


def test_the_pages_commands_and_configuration_are_understood(server: LiveServer) -> None:
    check_page(PAGE, server)
    flags = "".join(block.text for block in blocks(PAGE) if block.language == "text")
    for name in (slime.passk_rewards.__name__, slime.note_step.__name__):
        assert f"pkpo_client.integrations.slime.{name}" in flags
    (configuration,) = [block.text for block in blocks(PAGE) if block.language == "yaml"]
    settings = dict(line.strip().split(": ", 1) for line in configuration.splitlines()[1:])
    args = arguments(**{name: value.strip('"') for name, value in settings.items()} | {"address": server.address})
    slime.note_step(1500, args, [], None, 0.0)
    samples = rollout((16,))
    np.testing.assert_allclose(slime.passk_rewards(args, samples)[1], exact_of(samples, 1), rtol=1e-12)
