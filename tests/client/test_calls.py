"""One API, three clients: the same results bit for bit, and those of the mathematics."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import pkpo_core
from live_server import LiveServer
from pkpo.v1 import reward_transform_pb2 as pb
from pkpo_client import Client, GroupStatus, InvalidArgument, LocalClient, options

RNG = np.random.default_rng(7)
ROWS = RNG.normal(size=(6, 8))
BINARY = (RNG.random((6, 8)) < 0.4).astype(float)


def same(one: Any, other: Any) -> None:
    np.testing.assert_array_equal(one.advantages, other.advantages, strict=True)
    np.testing.assert_array_equal(one.group_statuses, other.group_statuses, strict=True)
    assert len(one.estimates) == len(other.estimates)
    for ours, theirs in zip(one.estimates, other.estimates, strict=True):
        assert ours.k == theirs.k
        np.testing.assert_array_equal(ours.values, theirs.values, strict=True)
        np.testing.assert_array_equal(ours.standard_errors, theirs.standard_errors, strict=True)


@pytest.mark.parametrize("variant", sorted(options.VARIANTS))
@pytest.mark.parametrize("scale", ["sum", "mean"])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_every_client_gives_the_bits_of_the_mathematics(
    flavour: Any, server: LiveServer, local: LocalClient, variant: str, scale: str, dtype: Any
) -> None:
    rewards = (BINARY if variant == "binary" else ROWS).astype(dtype)
    k = None if variant in options.WITHOUT_K else 4
    asked: dict[str, Any] = {"variant": variant, "scale": scale, "estimate_k": [1, 3, 8, 9], "seed": 3}
    here = local.transform_detailed(rewards, k, **asked)
    same(flavour.call(server.address, "transform_detailed", rewards, k, **asked), here)
    core = pkpo_core.transform(
        rewards,
        k if k or variant != "tzsm" else 0,
        variant=pkpo_core.Variant(variant),
        scale=pkpo_core.Scale(scale),
        estimate_k=(1, 3, 8, 9),
        seed=3,
    )
    np.testing.assert_array_equal(here.advantages, core.advantages, strict=True)
    np.testing.assert_array_equal(here.group_statuses, core.group_statuses, strict=True)
    assert here.group_ids == range(6)


def test_transform_is_the_advantages_of_transform_detailed(client: Client) -> None:
    np.testing.assert_array_equal(client.transform(ROWS, 4), client.transform_detailed(ROWS, 4).advantages, strict=True)


def test_estimates_alone(flavour: Any, server: LiveServer, local: LocalClient) -> None:
    ids = np.repeat([4, 2, 9], [3, 5, 1])
    flat = RNG.normal(size=9)
    found = flavour.call(server.address, "estimate", flat, [1, 2, 5], group_ids=ids)
    for ours, theirs in zip(found, local.estimate(flat, k=(1, 2, 5), group_ids=ids), strict=True):
        np.testing.assert_array_equal(ours.values, theirs.values)
        np.testing.assert_array_equal(ours.standard_errors, theirs.standard_errors)
    assert [each.k for each in found] == [1, 2, 5]
    assert np.isnan(found[1].values).tolist() == [False, False, True]
    np.testing.assert_allclose(found[0].values, [flat[:3].mean(), flat[3:8].mean(), flat[8]])


def test_one_k_as_an_integer_estimates_too(local: LocalClient) -> None:
    assert [each.k for each in local.estimate(ROWS, k=np.int32(2))] == [2]
    assert [each.k for each in local.transform_detailed(ROWS, 2, estimate_k=3).estimates] == [3]


def test_server_info(flavour: Any, server: LiveServer, local: LocalClient) -> None:
    info = flavour.call(server.address, "server_info")
    assert {each.name for each in info.variants} == set(options.VARIANTS)
    assert info.variants == local.server_info().variants
    assert info.default_variant == local.server_info().default_variant == "sloo_minus_one"
    assert info.version == local.server_info().version
    assert info.limits.max_message_bytes == 64 * 2**20


def test_defaults_of_the_client_hold_where_a_call_says_nothing(server: LiveServer) -> None:
    with Client(server.address, variant="grpo", scale="mean", k_policy="clamp", run_id="a/b", timeout=20) as ours:
        same(ours.transform_detailed(ROWS), ours.transform_detailed(ROWS, variant="grpo", scale="mean"))
        strict_or_not = ours.transform_detailed(ROWS, 99, variant="s")
        assert set(strict_or_not.group_statuses) == {GroupStatus.K_CLAMPED}


def test_one_k_per_group_goes_by_first_appearance(client: Client, local: LocalClient) -> None:
    ids = ["b", "a", "b", "a", "a", "b"]
    flat = RNG.normal(size=6)
    both = client.transform(flat, k=[2, 3], group_ids=ids)
    where = np.array(ids) == "b"
    np.testing.assert_array_equal(both[where], local.transform(flat[where][None], k=2)[0])
    np.testing.assert_array_equal(both[~where], local.transform(flat[~where][None], k=3)[0])
    for ks in (np.array([2, 3], dtype=np.uint8), (2, 3), np.array([2, 3])):
        np.testing.assert_array_equal(client.transform(flat, k=ks, group_ids=ids), both)


@pytest.mark.parametrize("kind", ["remote", "local"])
def test_no_group_at_all_is_answered_without_a_call(kind: str) -> None:
    made = Client("127.0.0.1:1", timeout=0.1) if kind == "remote" else LocalClient()
    with made:
        nothing = made.transform_detailed(np.zeros((0, 5)), k=2, estimate_k=[1, 2])
        assert nothing.advantages.shape == (0, 5)
        assert nothing.group_statuses.shape == nothing.estimates[1].values.shape == (0,)
        assert len(nothing.group_ids) == 0
        assert made.transform(np.zeros(0, dtype=np.float32), 2, group_ids=[]).dtype == np.float32
        masked = made.transform_detailed(np.full((2, 3), np.nan), k=2, estimate_k=1, mask=np.zeros((2, 3), dtype=bool))
        assert masked.advantages.tolist() == [[0] * 3] * 2
        assert masked.group_statuses.tolist() == [GroupStatus.TOO_SMALL] * 2
        assert np.isnan(masked.estimates[0].values).tolist() == [True, True]
        assert np.isnan(made.estimate(np.ones((2, 0)), 1)[0].values).all()


def test_bad_arguments_of_an_empty_batch_are_still_refused(local: LocalClient) -> None:
    with pytest.raises(InvalidArgument, match="variant"):
        local.transform(np.zeros((0, 5)), k=2, variant="nonsense")


def test_statuses_are_the_numbers_of_the_wire_and_of_the_mathematics() -> None:
    assert {each.name: int(each) for each in GroupStatus} == {each.name: int(each) for each in pkpo_core.GroupStatus}
    for each in GroupStatus:
        name = "GROUP_STATUS_UNSPECIFIED" if each is GroupStatus.FINE else f"GROUP_STATUS_{each.name}"
        assert pb.GroupStatus.Value(name) == each


def test_names_are_those_of_the_mathematics() -> None:
    assert set(options.VARIANTS) == {each.value for each in pkpo_core.Variant}
    assert set(options.SCALES) == {each.value for each in pkpo_core.Scale}
    assert set(options.K_POLICIES) == {each.value for each in pkpo_core.KPolicy}


def test_the_version_of_the_server_is_known_after_a_call(client: Client, local: LocalClient) -> None:
    assert client.server_version is None
    client.transform(ROWS, 2)
    assert client.server_version == local.server_version


def test_a_timeout_may_be_endless(client: Client, local: LocalClient) -> None:
    np.testing.assert_array_equal(client.transform(ROWS, 2, timeout=math.inf), local.transform(ROWS, 2))


class Step:
    """A training step: an integer that changes in place, as a tensor of one does."""

    number = 0

    def __index__(self) -> int:
        return self.number


def test_a_seed_that_changes_in_place_is_read_each_time() -> None:
    step, rewards = Step(), np.random.default_rng(0).normal(size=(8, 16))
    with LocalClient(variant="passk_bootstrap") as local:
        first = local.transform(rewards, 3, seed=step)
        step.number = 1
        second = local.transform(rewards, 3, seed=step)
        assert np.array_equal(second, local.transform(rewards, 3, seed=1))
        assert not np.array_equal(first, second)
