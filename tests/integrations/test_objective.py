"""What the integrations share: a run's settings, read from anywhere, and the call they come to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import reference
from live_identity import TOKEN, asking_server
from live_server import LiveServer
from pkpo_client import InvalidArgument, Unreachable
from pkpo_client.integrations.objective import Objective

REWARDS = np.array([[1.0, 0.0, 0.0, 1.0], [0.5, 0.25, 0.0, 1.0]])


def exact(rewards: np.ndarray, k: int, scale: str) -> np.ndarray:
    return np.array([reference.advantages("sloo_minus_one", row.tolist(), k, scale=scale) for row in rewards])


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    with LiveServer() as live:
        yield live


def test_configuration_wins_over_the_environment_and_that_over_what_is_usual() -> None:
    environment = {"PKPO_K": "4", "PKPO_VARIANT": "s", "PKPO_SEED": "7", "PKPO_RUN_ID": "", "PKPO_ESTIMATE_K": "1, 2"}
    made = Objective.from_settings(
        {"k": 2, "variant": None, "timeout": "5"}, environment=environment, scale="mean", seed=1
    )
    assert made == Objective(k="2", variant="s", scale="mean", seed=7, timeout=5.0, estimate_k=(1, 2))


def test_estimate_k_may_be_a_list_one_number_or_text() -> None:
    for given in ([1, 8], (1, 8), "1,8"):
        assert Objective.from_settings({"k": 8, "estimate_k": given}, environment={}).estimate_k == (1, 8)
    assert Objective.from_settings({"k": 8, "estimate_k": 8}, environment={}).estimate_k == (8,)


@pytest.mark.parametrize(
    ("settings", "field", "says"),
    [
        (8, "pkpo", "is 8; must be settings by name"),
        ({"kay": 8}, "kay", "must be one of address, ca_file"),
        ({}, "k", "must be an integer of at least 1, or k@step"),
        ({"k": 0}, "k", "is '0'"),
        ({"k": "8@5"}, "k", "is '8@5'"),
        ({"k": 8, "variant": "best"}, "variant", "must be one of "),
        ({"k": 8, "scale": "total"}, "scale", "must be one of sum, mean"),
        ({"k": 8, "k_policy": "lenient"}, "k_policy", "must be one of strict, clamp"),
        ({"k": 8, "fallback": "zero"}, "fallback", "must be none or local"),
        ({"k": 8, "seed": -1}, "seed", "must be from 0 to 4294967295"),
        ({"k": 8, "seed": "x"}, "seed", "must be an integer"),
        ({"k": 8, "seed": 7.9}, "seed", "must be an integer"),
        ({"k": 8, "estimate_k": "1,x"}, "estimate_k", "must be an integer"),
        ({"k": 8, "estimate_k": [1.5]}, "estimate_k", "must be an integer"),
        ({"k": 8, "timeout": "soon"}, "timeout", "must be a number of seconds above 0"),
        ({"k": 8, "timeout": 0}, "timeout", "must be a number of seconds above 0"),
        ({"k": 8, "run_id": "a b"}, "run_id", "must be up to 128 of"),
    ],
)
def test_what_cannot_be_is_refused_by_its_name(settings: Any, field: str, says: str) -> None:
    with pytest.raises(InvalidArgument) as refusal:
        Objective.from_settings(settings, environment={})
    (violation,) = refusal.value.violations
    assert violation.field == field
    assert says in violation.description


@pytest.mark.parametrize("name", ["token_file", "ca_file", "certificate_file", "key_file"])
def test_a_file_that_is_not_there_is_named(name: str, tmp_path: Path) -> None:
    missing = str(tmp_path / "nothing")
    present = tmp_path / "something"
    present.touch()
    files = dict.fromkeys(("certificate_file", "key_file"), str(present)) | {name: missing}
    with pytest.raises(InvalidArgument, match=rf"{name}: is '{missing}'; must be a file"):
        Objective.from_settings({"k": 1, **files}, environment={}).transform(REWARDS, 0)


@pytest.mark.parametrize("name", ["certificate_file", "key_file"])
def test_a_certificate_and_its_key_come_together(name: str, tmp_path: Path) -> None:
    alone = tmp_path / "pem"
    alone.write_text("never read further")
    with pytest.raises(InvalidArgument, match="key_file: is given without certificate_file, or the other way round"):
        Objective.from_settings({"k": 1, name: alone}, environment={}).transform(REWARDS, 0)


def test_an_objective_may_be_made_without_a_configuration() -> None:
    made: Any = Objective
    assert made(k="2", estimate_k=[1, 2]) == Objective(k="2", estimate_k=(1, 2))
    assert hash(made(k="2", estimate_k=[1, 2])) == hash(Objective(k="2", estimate_k=(1, 2)))
    with pytest.raises(InvalidArgument, match="k: is 8; must be a string such as '8' or '8@0,1@1500'"):
        made(k=8)


def test_a_schedule_has_nothing_to_say_of_a_batch_without_samples() -> None:
    objective = Objective(k="8@0,1@10", address="local")
    assert len(objective.transform(np.zeros(0), 0, group_ids=[]).advantages) == 0


@pytest.mark.parametrize("scale", ["sum", "mean"])
def test_k_follows_the_training_step(server: LiveServer, scale: str) -> None:
    for address in (server.address, "local"):
        objective = Objective(k="4@0,2@10,1@20", scale=scale, address=address)
        for step, k in ((0, 4), (9, 4), (10, 2), (25, 1)):
            advantages = objective.transform(REWARDS, step).advantages
            np.testing.assert_allclose(advantages, exact(REWARDS, k, scale), rtol=1e-14)


@pytest.mark.parametrize(
    ("group_ids", "largest"), [(None, 4), (["a"] * 3 + ["b"] * 5, 5), (np.array([1] * 6 + [2] * 2), 6)]
)
def test_a_schedule_is_refused_at_the_first_step_for_a_k_of_the_last(
    server: LiveServer, group_ids: Any, largest: int
) -> None:
    objective = Objective(k="2@0,7@1000000", address=server.address)
    rewards = REWARDS if group_ids is None else REWARDS.ravel()
    said = rf"k: is '2@0,7@1000000', not all of it legal for groups of {largest}: k\[1\]"
    with pytest.raises(InvalidArgument, match=said):
        objective.transform(rewards, 0, group_ids=group_ids)
    lowered = replace(objective, k_policy="clamp")
    assert lowered.transform(rewards, 0, group_ids=group_ids).advantages.any()


def test_random_subsets_are_drawn_anew_at_every_step() -> None:
    objective = Objective(k="2", variant="passk_bootstrap", seed=3, address="local")
    rewards = np.random.default_rng(0).random((4, 16))
    first, again, other = (objective.transform(rewards, step).advantages for step in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()


def test_a_step_that_nobody_knows_is_refused_where_it_matters() -> None:
    assert Objective(k="4@0,2@10").known_step(7) == 7
    assert [Objective(k="4").known_step(None), Objective(variant="loo").known_step(None)] == [0, 0]
    for name, objective in (("k", Objective(k="4@0,2@10")), ("variant", Objective(k="4", variant="passk_bootstrap"))):
        with pytest.raises(InvalidArgument, match=f"^{name}: .* where the training step is not known"):
            objective.known_step(None)


def test_variants_without_k_need_none() -> None:
    objective = Objective(variant="loo", address="local")
    result = objective.transform(REWARDS, 0)
    assert "pkpo/k" not in objective.measured(result, 0)


def test_what_is_logged_is_what_the_groups_are() -> None:
    objective = Objective(k="3", k_policy="clamp", estimate_k=(1, 2, 8), address="local")
    rewards = np.array([1.0, 0.0, 0.0, 1.0, 0.0, 1.0, 1.0, 1.0])
    # A whole group, one that is too small for k = 3, one of a single sample, and one in which all are right.
    result = objective.transform(rewards, 0, group_ids=["a", "a", "a", "b", "b", "c", "c", "c"])
    assert objective.measured(result, 0) == {
        "pkpo/k": 3.0,
        "pkpo/groups_no_signal": 1 / 3,
        "pkpo/groups_k_clamped": 1 / 3,
        "pkpo/groups_too_small": 0.0,
        "pkpo/max@1": pytest.approx((1 / 3 + 1 / 2 + 1) / 3),
        "pkpo/max@2": pytest.approx((2 / 3 + 1 + 1) / 3),
    }


def test_without_a_service_training_stops_unless_told_otherwise() -> None:
    nobody = {"k": 2, "address": "127.0.0.1:1", "timeout": 0.3}
    with pytest.raises(Unreachable):
        Objective.from_settings(nobody, environment={}).transform(REWARDS, 0)
    alone = Objective.from_settings({**nobody, "fallback": "local"}, environment={})
    np.testing.assert_allclose(alone.transform(REWARDS, 0).advantages, exact(REWARDS, 2, "sum"), rtol=1e-14)


def test_tls_and_a_token_come_from_files(tmp_path: Path) -> None:
    with asking_server(tmp_path) as (address, files):
        objective = Objective.from_settings({"k": 2, "address": address, **files}, environment={})
        assert TOKEN not in repr(objective)
        np.testing.assert_allclose(objective.transform(REWARDS, 0).advantages, exact(REWARDS, 2, "sum"), rtol=1e-14)
