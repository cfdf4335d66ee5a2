"""What holds bit for bit, whatever the rewards."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import reference
from core.samples import (
    EXACT,
    ORDER_FREE,
    THRESHOLDS,
    ZERO_WHERE_EQUAL,
    bits,
    groups_of,
    of_one_group,
    properties,
    ragged,
    rewards_of,
    sizes_for,
)
from pkpo_core import GroupStatus, RewardGroups, Scale, Variant, transform

every = pytest.mark.parametrize("variant", Variant, ids=lambda variant: variant.value)
order_free = pytest.mark.parametrize("variant", ORDER_FREE, ids=lambda variant: variant.value)
FROM_GAPS = [v for v in ORDER_FREE if v in ZERO_WHERE_EQUAL]
SCALE_FREE = {Variant.PASSK_ANALYTIC, Variant.PASSK_BOOTSTRAP, Variant.PASSK_FULL}


def legal_k(data: Any, variant: Variant, n: int, least: int = 1) -> int:
    return int(data.draw(st.sampled_from([k for k in reference.legal_ks(variant.value, n) if k >= least])))


@pytest.mark.parametrize("variant", ZERO_WHERE_EQUAL, ids=lambda variant: variant.value)
@properties
@given(data=st.data())
def test_equal_rewards_give_exactly_0(variant: Variant, data: Any) -> None:
    n = data.draw(st.sampled_from(sizes_for(variant)))
    rewards = np.full(n, data.draw(st.floats(-1e100, 1e100)))
    answer = transform(rewards[None, :], legal_k(data, variant, n), variant=variant, scale=data.draw(scales))
    assert not answer.advantages.any()
    assert answer.group_statuses.tolist() == [GroupStatus.NO_SIGNAL]


scales = st.sampled_from(Scale)


@order_free
@properties
@given(data=st.data())
def test_tied_rewards_get_the_same_bits(variant: Variant, data: Any) -> None:
    pool = data.draw(st.lists(rewards_of(variant), min_size=1, max_size=5, unique=True))
    rewards = np.array(data.draw(st.lists(st.sampled_from(pool), min_size=2, max_size=70)))
    k = legal_k(data, variant, len(rewards))
    advantages = of_one_group(rewards, k, variant, scale=data.draw(scales))
    for reward in pool:
        assert len({a.tobytes() for a in advantages[rewards == reward] + 0.0}) <= 1


@order_free
@properties
@given(data=st.data())
def test_the_order_of_samples_does_not_matter(variant: Variant, data: Any) -> None:
    rewards = np.array(data.draw(groups_of(variant, max_size=70)))
    k = legal_k(data, variant, len(rewards))
    order = data.draw(st.permutations(range(len(rewards))))
    np.testing.assert_array_equal(
        of_one_group(rewards, k, variant)[order], of_one_group(rewards[order], k, variant), strict=True
    )


@every
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_a_ragged_batch_equals_its_groups_one_by_one(variant: Variant, dtype: Any) -> None:
    rng = np.random.default_rng(21)
    for sizes in (sizes_for(variant), rng.permutation(sizes_for(variant) * 3).tolist()):
        groups, ks = ragged(variant, rng, sizes)
        rewards = groups.rewards.astype(dtype)
        batch = transform(RewardGroups(rewards, groups.sizes), ks, variant=variant, seed=9, first_group=100)
        parts = np.split(rewards, groups.offsets[1:-1])
        for i, (part, advantages) in enumerate(
            zip(parts, np.split(batch.advantages, groups.offsets[1:-1]), strict=True)
        ):
            alone = transform(part[None, :], ks[i], variant=variant, seed=9, first_group=100 + i)
            assert bits(alone.advantages.ravel()) == bits(advantages)
            assert alone.group_statuses[0] == batch.group_statuses[i]


@every
def test_a_uniform_batch_equals_its_groups_one_by_one(variant: Variant) -> None:
    rng = np.random.default_rng(22)
    for n in sizes_for(variant):
        for number in (1, 2, 3, 8, 9, 33):
            groups, ks = ragged(variant, rng, [n] * number)
            rewards = groups.rewards.reshape(number, n)
            one_k = transform(rewards, ks[0], variant=variant, seed=1)
            same_k = transform(RewardGroups(groups.rewards, n), [ks[0]] * number, variant=variant, seed=1)
            assert bits(one_k.advantages.ravel()) == bits(same_k.advantages)
            for scale in Scale:
                batch = transform(rewards, ks, variant=variant, scale=scale, seed=1).advantages
                alone = [
                    of_one_group(rewards[i], ks[i], variant, scale=scale, seed=1, first_group=i) for i in range(number)
                ]
                assert bits(batch) == bits(np.array(alone))


@every
def test_groups_may_come_as_rows_or_end_to_end_or_as_strided_views(variant: Variant) -> None:
    groups, ks = ragged(variant, np.random.default_rng(23), [16] * 6)
    rows = groups.rewards.reshape(6, 16)
    every_third: Any = np.repeat(groups.rewards, 3)[::3]
    forms: list[Any] = [
        rows,
        np.asfortranarray(rows),
        np.repeat(rows, 2, axis=1)[:, ::2],
        RewardGroups(groups.rewards, 16),
        RewardGroups(groups.rewards, np.full(6, 16, np.uint32)),
        RewardGroups(every_third, 16),
    ]
    answers = [transform(form, ks, variant=variant).advantages for form in forms]
    assert {answer.shape for answer in answers} == {(6, 16), (96,)}
    assert len({answer.tobytes() for answer in answers}) == 1


@every
def test_float32_is_computed_in_float64_and_rounded_once(variant: Variant) -> None:
    groups, ks = ragged(variant, np.random.default_rng(24), sizes_for(variant))
    narrow = groups.rewards.astype(np.float32)
    for scale in Scale:
        measured, wide = (
            transform(RewardGroups(rewards, groups.sizes), ks, variant=variant, scale=scale).advantages
            for rewards in (narrow, narrow.astype(np.float64))
        )
        assert bits(measured) == bits(wide.astype(np.float32))


@every
def test_the_callers_rewards_are_left_alone(variant: Variant) -> None:
    for dtype in (np.float64, np.float32):
        groups, ks = ragged(variant, np.random.default_rng(25), sizes_for(variant))
        rewards = groups.rewards.astype(dtype)
        before = rewards.copy()
        rewards.setflags(write=False)
        advantages = transform(RewardGroups(rewards, groups.sizes), ks, variant=variant, estimate_k=[2]).advantages
        assert bits(rewards) == bits(before)
        assert not np.shares_memory(advantages, rewards)
        assert advantages.flags.writeable


@properties
@given(data=st.data())
def test_the_default_variant_is_never_negative_and_0_on_the_smallest_reward(data: Any) -> None:
    rewards = np.array(data.draw(groups_of(Variant.SLOO_MINUS_ONE, max_size=70)))
    k = legal_k(data, Variant.SLOO_MINUS_ONE, len(rewards), least=2)
    advantages = of_one_group(rewards, k, Variant.SLOO_MINUS_ONE, scale=data.draw(scales))
    assert (advantages >= 0).all()
    assert not advantages[rewards == rewards.min()].any()
    assert (np.diff(advantages[np.argsort(rewards)]) >= 0).all()


@pytest.mark.parametrize("variant", FROM_GAPS, ids=lambda variant: variant.value)
@properties
@given(data=st.data())
def test_a_shift_that_loses_nothing_changes_nothing(variant: Variant, data: Any) -> None:
    rewards = np.array(data.draw(st.lists(st.integers(-(2**40), 2**40), min_size=2, max_size=40)), float)
    shift = float(data.draw(st.integers(-(2**50), 2**50)))
    k = legal_k(data, variant, len(rewards))
    assert bits(of_one_group(rewards, k, variant)) == bits(of_one_group(rewards + shift, k, variant))


@pytest.mark.parametrize(
    "variant", [v for v in Variant if v not in (Variant.BINARY, Variant.GRPO)], ids=lambda v: v.value
)
@properties
@given(data=st.data())
def test_scaling_by_a_power_of_two_scales_every_bit(variant: Variant, data: Any) -> None:
    n = data.draw(st.sampled_from([n for n in sizes_for(variant) if n <= 33]))
    rewards = np.array(data.draw(st.lists(st.floats(-100, 100, width=32), min_size=n, max_size=n)))
    power = 2.0 ** data.draw(st.integers(-300, 300))
    k = legal_k(data, variant, n)
    once, scaled = of_one_group(rewards, k, variant), of_one_group(rewards * power, k, variant)
    if variant not in SCALE_FREE:
        once = once * power
    np.testing.assert_array_equal(scaled, once)


@every
@properties
@given(data=st.data())
def test_mean_is_n_times_sum(variant: Variant, data: Any) -> None:
    n = data.draw(st.sampled_from([n for n in sizes_for(variant) if n <= 33]))
    rewards = data.draw(groups_of(variant, n, n))
    k = legal_k(data, variant, n)
    in_sum, in_mean = (of_one_group(rewards, k, variant, scale=scale) for scale in (Scale.SUM, Scale.MEAN))
    np.testing.assert_allclose(in_mean, n * in_sum, rtol=0, atol=EXACT * n * np.abs(in_sum).max())


@pytest.mark.parametrize("n", THRESHOLDS)
def test_variants_that_meet_at_a_k_agree(n: int) -> None:
    rng = np.random.default_rng(n)
    rewards = rng.normal(size=(20, n))
    zeros_and_ones = (rng.random((20, n)) < 0.4).astype(float)

    def advantages(variant: Variant, k: int | None, rewards: Any = rewards) -> Any:
        return transform(rewards, k, variant=variant).advantages

    assert bits(advantages(Variant.TZSM, n)) == bits(advantages(Variant.SLOO_MINUS_ONE, n))
    assert bits(advantages(Variant.TZSM, 0)) == bits(advantages(Variant.TZSM, n))
    assert bits(advantages(Variant.LOO, None)) == bits(advantages(Variant.SLOO_MINUS_ONE, 1))
    np.testing.assert_allclose(advantages(Variant.CENTERED, 1), advantages(Variant.LOO, 1), rtol=0, atol=1e-15)
    for k in range(1, n + 1, max(1, n // 9)):
        s, binary = (advantages(variant, k, zeros_and_ones) for variant in (Variant.S, Variant.BINARY))
        np.testing.assert_allclose(binary, s, rtol=0, atol=EXACT * k / n)
        if k < n:
            s, centered = advantages(Variant.S, k), advantages(Variant.CENTERED, k)
            from_s = n / (n - k) * (s - s.mean(axis=1, keepdims=True))
            np.testing.assert_allclose(centered, from_s, rtol=0, atol=1e-12 * n)


@properties
@given(data=st.data())
def test_centered_sums_to_0(data: Any) -> None:
    rewards = data.draw(groups_of(Variant.CENTERED, max_size=70))
    advantages = of_one_group(rewards, legal_k(data, Variant.CENTERED, len(rewards)), Variant.CENTERED)
    assert abs(advantages.sum()) <= EXACT * np.abs(advantages).sum()
