"""Batches over the limits of a request are split and joined unseen."""

from __future__ import annotations

from collections import deque
from typing import Any

import grpc
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from live_server import LiveServer
from pkpo.v1 import reward_transform_pb2 as pb
from pkpo_client import Client, InvalidArgument, Limits, LocalClient, codec
from pkpo_client.grouping import grouped
from pkpo_client.splitting import parts
from pkpo_client.work import Batch

LIMITS = Limits(max_message_bytes=4096, max_rewards=300, max_group_size=200, max_groups=40, max_estimate_k=32)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(1, 200), min_size=1, max_size=80),
    st.sampled_from([np.float32, np.float64]),
    st.integers(0, 8),
    st.booleans(),
)
def test_parts_are_whole_groups_in_order_and_fit(
    sizes: list[int], dtype: Any, estimates: int, one_k_per_group: bool
) -> None:
    ids = np.repeat(np.arange(len(sizes)), sizes)
    batch = grouped(np.zeros(len(ids), dtype=dtype), ids)
    found = list(parts(batch, LIMITS, estimates))

    assert [part.groups.start for part in found] == [0, *(part.groups.stop for part in found[:-1])]
    assert found[-1].groups.stop == len(sizes)
    assert found[-1].rewards.stop == sum(sizes)
    for part in found:
        groups, rewards = part.groups.stop - part.groups.start, part.rewards.stop - part.rewards.start
        assert rewards == sum(sizes[part.groups])
        assert groups <= LIMITS.max_groups
        assert rewards <= LIMITS.max_rewards
        work = Batch(
            timeout=1.0,
            rewards=batch.rewards[part.rewards],
            group_sizes=np.array(sizes[part.groups], dtype=np.int64),
            number_of_groups=groups,
            variant="sloo_minus_one",
            scale="sum",
            k_policy="strict",
            k=np.full(groups, 2**32 - 1) if one_k_per_group else 1,
            estimate_k=(2**32 - 1,) * estimates,
            seed=2**64 - 1,
            run_id="x" * 128,
            first_group=2**64 - 1,
        )
        request = codec.stream_request(2**64 - 1, work)
        assert len(request) <= LIMITS.max_message_bytes
        response = pb.TransformResponse(group_statuses=[pb.GROUP_STATUS_TOO_SMALL] * groups)
        getattr(response, "f32" if dtype == np.float32 else "f64").values.extend([1.0] * rewards)
        for _ in range(estimates):
            response.estimates.add(k=2**32 - 1, values=[1.0] * groups, standard_errors=[1.0] * groups)
        answer = pb.TransformStreamResponse(sequence=2**64 - 1, response=response)
        assert answer.ByteSize() <= LIMITS.max_message_bytes


def test_a_batch_that_fits_is_one_part() -> None:
    assert len(list(parts(grouped(np.zeros((40, 7))), LIMITS, 0))) == 1


@pytest.fixture(scope="module")
def small(small_server: LiveServer) -> Any:
    with Client(small_server.address) as made:
        yield made


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(["sloo_minus_one", "passk_bootstrap", "grpo"]), st.booleans())
def test_a_split_batch_has_the_bits_of_the_whole(
    small: Client, local: LocalClient, seed: int, variant: str, single: bool
) -> None:
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, 900, size=20_000)
    flat = rng.normal(size=20_000).astype(np.float32 if single else np.float64)
    mask = rng.random(20_000) < 0.9
    ks = rng.integers(1, 6, size=len(np.unique(ids)))
    asked: dict[str, Any] = {
        "group_ids": ids,
        "mask": mask,
        "variant": variant,
        "k_policy": "clamp",
        "estimate_k": [1, 2, 4, 8],
        "seed": seed,
    }
    split = small.transform_detailed(flat, ks, **asked)
    whole = local.transform_detailed(flat, ks, **asked)
    np.testing.assert_array_equal(split.advantages, whole.advantages, strict=True)
    np.testing.assert_array_equal(split.group_statuses, whole.group_statuses, strict=True)
    assert split.group_ids == whole.group_ids
    for ours, theirs in zip(split.estimates, whole.estimates, strict=True):
        np.testing.assert_array_equal(ours.values, theirs.values)
        np.testing.assert_array_equal(ours.standard_errors, theirs.standard_errors)


def test_estimates_and_streams_are_split_too(flavour: Any, small_server: LiveServer, local: LocalClient) -> None:
    rows = np.random.default_rng(0).random((3000, 16))
    for ours, theirs in zip(
        flavour.call(small_server.address, "estimate", rows, [1, 2, 3]), local.estimate(rows, [1, 2, 3]), strict=True
    ):
        np.testing.assert_array_equal(ours.values, theirs.values)
    results = flavour.stream(small_server.address, [rows, rows[:3], rows * 2], 4)
    for result, batch in zip(results, [rows, rows[:3], rows * 2], strict=True):
        np.testing.assert_array_equal(result.advantages, local.transform(batch, 4))


def test_violations_of_a_split_batch_are_numbered_as_the_whole(small: Client) -> None:
    rows = np.zeros((3000, 16))
    rows[2500, 3] = np.nan
    with pytest.raises(InvalidArgument) as caught:
        small.transform(rows, 2)
    assert caught.value.violations[0].field == f"groups.rewards[{2500 * 16 + 3}]"
    assert caught.value.violations[0].where == "rewards[2500, 3]"
    ks = np.full(3000, 4)
    ks[2999] = 17
    with pytest.raises(InvalidArgument) as caught:
        small.transform(np.zeros((3000, 16)), ks)
    assert (caught.value.violations[0].field, caught.value.violations[0].where) == ("k[2999]", "row 2999")


def test_one_group_over_the_limits_is_refused_and_named(small: Client) -> None:
    for flat, most in [(np.zeros(7_001), 7_000), (np.zeros(8_200), 7_000)]:
        with pytest.raises(InvalidArgument) as caught:
            small.transform(flat, 2, group_ids=["x"] * len(flat))
        (violation,) = caught.value.violations
        assert violation.field == "groups.group_sizes[0]"
        assert violation.where == "group 'x'"
        assert f"is {len(flat)}" in violation.description
        assert str(most) in violation.description
        assert "max_rewards" in violation.description


def test_the_limit_that_a_group_is_over_is_named() -> None:
    named = pytest.raises(InvalidArgument, match=r"is 65; must be at most 64, .*max_group_size")
    with LiveServer("--max-group-size", "64") as live, Client(live.address) as client, named:
        client.transform(np.zeros((1, 65)), 2)


def test_the_largest_group_that_fits_is_served(small: Client, local: LocalClient) -> None:
    one = np.random.default_rng(1).random((1, 7_000))
    np.testing.assert_array_equal(small.transform(one, 100), local.transform(one, 100))


def test_the_limits_are_asked_once(proxy: Any) -> None:
    with Client(proxy.address) as made:
        for _ in range(3):
            made.transform(np.ones((2, 3)), 2)
    assert proxy.calls["GetServerInfo"] == 1
    assert proxy.calls["Transform"] == 3


@pytest.mark.parametrize("code", ["UNIMPLEMENTED", "PERMISSION_DENIED", "UNAUTHENTICATED"])
def test_where_the_limits_are_not_said_the_documented_ones_hold(flavour: Any, proxy: Any, code: str) -> None:
    proxy.faults["GetServerInfo"] = deque([lambda context: context.abort(grpc.StatusCode[code], "no")] * 9)
    assert flavour.call(proxy.address, "transform", np.ones((2, 3)), 2).shape == (2, 3)
    assert proxy.calls == {"GetServerInfo": 1, "Transform": 1}
