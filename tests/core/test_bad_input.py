"""Bad input is refused, naming the field, the value and the bound; never passed on, never made a zero."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pkpo_core import (
    CoreError,
    InvalidArgument,
    KPolicy,
    RewardGroups,
    Scale,
    Variant,
    Violation,
    estimate,
    transform,
)

MOST_VIOLATIONS = 8


def violations(function: Any, *arguments: Any, **options: Any) -> tuple[Violation, ...]:
    with pytest.raises(InvalidArgument) as caught:
        function(*arguments, **options)
    assert isinstance(caught.value, CoreError)
    assert isinstance(caught.value, ValueError)
    assert 1 <= len(caught.value.violations) <= MOST_VIOLATIONS
    for violation in caught.value.violations:
        assert violation.field in str(caught.value)
    return caught.value.violations


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_rewards_that_are_no_numbers(value: float, dtype: Any) -> None:
    rewards = np.zeros(24, dtype)
    rewards[17] = value
    (violation,) = violations(RewardGroups, rewards, 8)
    assert violation.field == "groups.rewards[17]"
    assert str(value) in violation.description


@pytest.mark.parametrize("value", [1.0000001e100, -1e300, 1.7e308])
def test_rewards_out_of_bounds(value: float) -> None:
    rewards = np.zeros((3, 8))
    rewards[2, 1] = value
    for function in (transform, estimate):
        (violation,) = violations(function, rewards, 2)
        assert violation.field == "groups.rewards[17]"
        assert str(value) in violation.description
        assert "1e+100" in violation.description or "1e100" in violation.description


@pytest.mark.parametrize("variant", Variant, ids=lambda variant: variant.value)
def test_the_largest_rewards_give_numbers(variant: Variant) -> None:
    if variant is not Variant.BINARY:
        rewards = np.array([[1e100, -1e100, 1e100, 0.0, -1e100, 5e-324, -0.0, 1e100]])
        k = {Variant.TZSM: 8}.get(variant, 2)
        for scale in Scale:
            assert np.isfinite(transform(rewards, k, variant=variant, scale=scale).advantages).all()


def test_offenders_are_named_up_to_a_bound() -> None:
    found = violations(RewardGroups, np.full(100_000, np.nan), 100)
    assert len(found) == MOST_VIOLATIONS
    assert [violation.field for violation in found[:2]] == ["groups.rewards[0]", "groups.rewards[1]"]
    assert sum(len(violation.field) + len(violation.description) for violation in found) < 1000
    found = violations(transform, np.zeros((1000, 4)), [9] * 1000)
    assert len(found) == MOST_VIOLATIONS
    assert found[0].field == "k[0]"


@pytest.mark.parametrize(
    ("rewards", "sizes", "fields"),
    [
        (np.zeros(0), 4, {"groups.rewards", "groups"}),
        (np.zeros(0), np.zeros(0, int), {"groups.rewards", "groups"}),
        (np.zeros(7), 4, {"groups.group_size"}),
        (np.zeros(4), 5, {"groups.group_size"}),
        (np.zeros(4), 0, {"groups.group_size"}),
        (np.zeros(4), -4, {"groups.group_size"}),
        (np.zeros(4), np.array([2, 3]), {"groups.group_sizes"}),
        (np.zeros(4), np.array([2, 1]), {"groups.group_sizes"}),
        (np.zeros(4), np.array([2, 0, 2]), {"groups.group_sizes[1]"}),
        (np.zeros(4), np.array([4, -1]), {"groups.group_sizes[1]"}),
        (np.zeros(4), np.array([2**63, 2**63 + 4], np.uint64), {"groups.group_sizes", "groups.group_sizes[0]"}),
        (np.zeros(4), np.array([2**62, 2**62, 2**62, 2**62 + 4]), {"groups.group_sizes", "groups.group_sizes[0]"}),
    ],
)
def test_shapes_that_do_not_add_up(rewards: Any, sizes: Any, fields: set[str]) -> None:
    assert violations(RewardGroups, rewards, sizes)[0].field in fields


@pytest.mark.parametrize(
    ("rewards", "sizes"),
    [
        (np.zeros(4, int), 2),
        (np.zeros(4, bool), 2),
        (np.zeros(4, complex), 2),
        (np.zeros(4, np.float16), 2),
        (np.zeros(4, object), 2),
        (np.array(list("abcd")), 2),
        (np.zeros((2, 2)), 2),
        (np.float64(1), 1),
        (np.zeros(4), np.array([2.0, 2.0])),
        (np.zeros(4), np.array([[2, 2]])),
        (np.zeros(4), 2.0),
        (np.zeros(4), np.array([True, True])),
        (np.zeros(4), True),
        (np.zeros(4), "2"),
    ],
    ids=repr,
)
def test_wrong_types_and_dimensions(rewards: Any, sizes: Any) -> None:
    with pytest.raises((InvalidArgument, TypeError), match=r"groups\.(rewards|group_size)"):
        RewardGroups(rewards, sizes)


@pytest.mark.parametrize("rewards", [np.zeros(4), np.zeros((2, 2, 2)), np.zeros((2, 0)), np.zeros((0, 2))], ids=str)
def test_arrays_that_are_no_rows_of_groups(rewards: Any) -> None:
    violations(transform, rewards, 1)
    violations(estimate, rewards, 1)


@pytest.mark.parametrize("k", [1.5, "2", [1.0, 2.0], [[1, 2]], [None, 1]], ids=str)
def test_ks_that_are_no_integers(k: Any) -> None:
    assert violations(transform, np.zeros((2, 4)), k)[0].field.startswith("k")


@pytest.mark.parametrize("k", [2**31, 2**32 - 1, 2**63 - 1, 2**64, -(2**63) - 1])
def test_ks_beyond_any_integer_type(k: int) -> None:
    assert violations(transform, np.zeros((2, 4)), k)[0].field in ("k[0]", "k")
    if 0 < k < 2**32:
        transform(np.zeros((2, 4)), k, k_policy=KPolicy.CLAMP)


def test_estimate_ks_of_0_or_less() -> None:
    for estimate_k in ([1, 0], [1, -3]):
        (violation,) = violations(transform, np.zeros((2, 4)), 1, estimate_k=estimate_k)
        assert violation.field == "estimate_k[1]"
        (violation,) = violations(estimate, np.zeros((2, 4)), estimate_k)
        assert violation.field == "k[1]"


@pytest.mark.parametrize("field", ["seed", "first_group"])
@pytest.mark.parametrize("value", [-1, 2**64])
def test_seeds_that_are_no_unsigned_64_bits(field: str, value: int) -> None:
    (violation,) = violations(transform, np.zeros((2, 4)), 1, **{field: value})
    assert violation.field == field
    assert str(value) in violation.description


@pytest.mark.parametrize("argument", ["seed", "first_group"])
@pytest.mark.parametrize("value", [1.5, "1", None])
def test_seeds_that_are_no_integers(argument: str, value: Any) -> None:
    with pytest.raises((InvalidArgument, TypeError), match=argument):
        transform(np.zeros((2, 4)), 1, **{argument: value})


def test_binary_takes_0_and_1_only() -> None:
    rewards = np.array([[0.0, 1.0, -0.0, 0.5], [1.0, 2.0, 0.0, 1.0]])
    first, second = violations(transform, rewards, 2, variant=Variant.BINARY)
    assert (first.field, second.field) == ("groups.rewards[3]", "groups.rewards[5]")
    assert "0.5" in first.description
    assert "2" in second.description


def test_advantages_that_do_not_fit_float32() -> None:
    rewards = np.array([[0, 1, 0, 1], [3e38, -3e38, -3e38, 3e38]], np.float32)
    assert np.isfinite(transform(rewards, 1).advantages).all()
    found = violations(transform, rewards, 1, scale=Scale.MEAN)
    assert [violation.field for violation in found] == [f"groups.rewards[{i}]" for i in range(4, 8)]
    transform(rewards.astype(np.float64), 1, scale=Scale.MEAN)


@pytest.mark.parametrize("option", ["variant", "scale", "k_policy"])
@pytest.mark.parametrize("value", ["s", "sum", 1, None])
def test_what_is_no_member_of_an_enumeration_is_not_taken_for_one(option: str, value: Any) -> None:
    with pytest.raises((InvalidArgument, TypeError), match=option):
        transform(np.zeros((2, 4)), 1, **{option: value})


def test_a_refused_array_is_left_alone() -> None:
    rewards = np.array([[2.0, np.nan, 1.0, 2e100]])
    before = rewards.copy()
    violations(transform, rewards, 1)
    np.testing.assert_array_equal(rewards, before)
