"""Groups in any order, of any sizes, with masks: each group is as if it were alone."""

from __future__ import annotations

import uuid
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

import pkpo_core
from pkpo_client import Client, GroupStatus, LocalClient
from pkpo_client.grouping import grouped, numbered

NAMES = ["a", "b", ("c", 1), 7, "z", frozenset({1}), None, -3.5]


@st.composite
def samples(draw: st.DrawFn) -> tuple[list[float], list[Any], list[bool]]:
    size = draw(st.integers(0, 40))
    numbers = st.one_of(st.floats(-10, 10, width=32), st.sampled_from([0.0, 1.0]))
    return (
        draw(st.lists(numbers, min_size=size, max_size=size)),
        draw(st.lists(st.sampled_from(NAMES), min_size=size, max_size=size)),
        draw(st.lists(st.booleans(), min_size=size, max_size=size)),
    )


@settings(max_examples=60, deadline=None)
@given(samples(), st.integers(1, 4), st.booleans())
def test_each_group_is_as_if_it_were_alone(
    local: LocalClient, given_samples: tuple[list[float], list[Any], list[bool]], k: int, masks: bool
) -> None:
    values, ids, keep = given_samples
    mask = keep if masks else None
    rewards = np.array([v if not masks or kept else np.nan for v, kept in zip(values, keep, strict=True)])
    result = local.transform_detailed(rewards, k, group_ids=ids, mask=mask, k_policy="clamp", estimate_k=[1, 2])

    assert list(result.group_ids) == list(dict.fromkeys(ids))
    expected = np.zeros(len(values))
    for number, name in enumerate(result.group_ids):
        where = [i for i, each in enumerate(ids) if each == name and (not masks or keep[i])]
        status, estimates = GroupStatus.TOO_SMALL, [np.nan, np.nan]
        if where:
            alone = pkpo_core.transform(
                pkpo_core.RewardGroups(rewards[where], len(where)),
                k,
                k_policy=pkpo_core.KPolicy.CLAMP,
                estimate_k=(1, 2),
            )
            expected[where] = alone.advantages
            status = GroupStatus(int(alone.group_statuses[0]))
            estimates = [each.values[0] for each in alone.estimates]
        assert result.group_statuses[number] == status
        np.testing.assert_array_equal([each.values[number] for each in result.estimates], estimates)
    np.testing.assert_array_equal(result.advantages, expected)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 5), st.integers(1, 6), st.data())
def test_rows_with_a_mask_are_groups_with_ids(local: LocalClient, groups: int, size: int, data: st.DataObject) -> None:
    rewards = np.random.default_rng(groups * 10 + size).normal(size=(groups, size))
    bits = data.draw(st.lists(st.booleans(), min_size=groups * size, max_size=groups * size))
    mask = np.array(bits, dtype=bool).reshape(groups, size)
    by_rows = local.transform_detailed(rewards, 2, mask=mask, k_policy="clamp")
    by_ids = local.transform_detailed(
        rewards.ravel(), 2, group_ids=np.repeat(np.arange(groups), size), mask=mask.ravel(), k_policy="clamp"
    )
    np.testing.assert_array_equal(by_rows.advantages.ravel(), by_ids.advantages)
    np.testing.assert_array_equal(by_rows.group_statuses, by_ids.group_statuses)
    assert not by_rows.advantages[~mask].any()


def test_a_group_that_is_wholly_masked_is_too_small_and_the_others_keep_their_places(client: Client) -> None:
    rewards = np.array([[np.nan, np.nan, np.nan], [1.0, 0.0, 0.0], [2.0, np.nan, 5.0]])
    mask = ~np.isnan(rewards)
    result = client.transform_detailed(rewards, k=[99, 2, 1], mask=mask, estimate_k=[1])
    assert result.group_statuses.tolist() == [GroupStatus.TOO_SMALL, GroupStatus.FINE, GroupStatus.FINE]
    np.testing.assert_array_equal(result.estimates[0].values, [np.nan, rewards[1].mean(), 3.5])
    assert not result.advantages[0].any()
    assert result.advantages[2, 1] == 0
    assert result.advantages[2, 2] == 1.5


@pytest.mark.parametrize(
    "ids",
    [
        np.array([5, 2, 5, 9, 2]),
        np.array([5, 2, 5, 9, 2], dtype=np.uint8),
        np.array(["5", "2", "5", "9", "2"]),
        np.array([5.5, 2.5, 5.5, 9.0, 2.5]),
        np.array([5, 2, 5, 9, 2], dtype=object),
        ["prompt 5", "prompt 2", "prompt 5", "prompt 9", "prompt 2"],
        (b"5", b"2", b"5", b"9", b"2"),
    ],
    ids=lambda ids: str(getattr(ids, "dtype", type(ids).__name__)),
)
def test_ids_of_many_kinds(local: LocalClient, ids: Any) -> None:
    numbers, names = numbered(ids)
    assert numbers.tolist() == [0, 1, 0, 2, 1]
    assert list(names) == [ids[0], ids[1], ids[3]]
    result = local.transform_detailed(np.arange(5.0), 1, group_ids=ids, k_policy="clamp")
    assert result.group_ids == names
    assert result.advantages.tolist() == [-1.0, -1.5, 1.0, 0.0, 1.5]


@given(
    st.lists(st.one_of(st.integers(-20, 20), st.sampled_from([2**62, -(2**63), 10**6])), max_size=40),
    st.sampled_from([np.int64, np.int32, np.int8]),
)
def test_integers_are_numbered_as_any_ids_are(ids: list[int], dtype: Any) -> None:
    array = np.array(ids, dtype=np.int64).astype(dtype)
    numbers, names = numbered(array)
    expected, distinct = numbered(array.tolist())
    assert numbers.tolist() == expected.tolist()
    assert names == distinct


def test_ids_can_be_any_hashables(local: LocalClient) -> None:
    one, other = uuid.UUID(int=1), uuid.UUID(int=2)
    result = local.transform_detailed([1.0, 2.0, 3.0, 4.0], 1, group_ids=[one, other, one, other])
    assert result.group_ids == (one, other)
    assert result.advantages.tolist() == [-1.0, -1.0, 1.0, 1.0]


def test_the_order_within_a_group_is_kept_for_the_variants_that_go_by_it(local: LocalClient) -> None:
    ids = [1, 0, 1, 0, 1, 1, 0, 0]
    flat = np.array([3.0, 1.0, 2.0, 5.0, 9.0, 1.0, 0.0, 2.0])
    mixed = local.transform(flat, 2, group_ids=ids, variant="naive_partitioned")
    rows = local.transform([[3.0, 2.0, 9.0, 1.0], [1.0, 5.0, 0.0, 2.0]], 2, variant="naive_partitioned")
    np.testing.assert_array_equal(mixed[np.array(ids) == 1], rows[0])
    np.testing.assert_array_equal(mixed[np.array(ids) == 0], rows[1])


def test_equal_sizes_travel_as_one_number() -> None:
    assert grouped(np.zeros(6), [1, 2, 1, 2, 1, 2]).group_sizes == 3
    assert grouped(np.zeros((2, 3)), mask=[[1, 1, 0], [1, 0, 1]]).group_sizes == 2
    assert isinstance(grouped(np.zeros(3), [1, 2, 1]).group_sizes, np.ndarray)


def test_samples_already_in_order_are_not_moved() -> None:
    rewards = np.arange(6.0)
    assert grouped(rewards, [3, 3, 1, 1, 1, 2]).positions is None
    assert grouped(rewards, [3, 3, 1, 1, 1, 2], [True] * 6).positions is None
    assert np.shares_memory(grouped(rewards, [3, 3, 1, 1, 1, 2]).rewards, rewards)


@pytest.mark.parametrize("dtype", [bool, np.int64, np.uint8, np.float32])
def test_masks_of_ones_and_zeros(local: LocalClient, dtype: Any) -> None:
    rewards = np.array([[1.0, np.nan, 3.0]])
    assert local.transform(rewards, 1, mask=np.array([[1, 0, 1]], dtype=dtype)).tolist() == [[-1.0, 0.0, 1.0]]


def test_rewards_given_are_never_written_to(client: Client, local: LocalClient) -> None:
    rewards = np.array([[1.0, 2.0, 3.0]])
    rewards.setflags(write=False)
    for made in (client, local):
        given_back = made.transform(rewards, 2)
        assert given_back.flags.writeable
        assert not np.shares_memory(given_back, rewards)
