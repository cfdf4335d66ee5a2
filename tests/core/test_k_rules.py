"""Which k is legal, what CLAMP makes of the others, and what a group's status says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import reference
from core.samples import BLOCKWISE, IGNORES_K, JIT, NOT_FROM_DIFFERENCES, bits
from pkpo_core import VARIANTS, GroupStatus, InvalidArgument, KPolicy, RewardGroups, Variant, transform

every = pytest.mark.parametrize("variant", Variant, ids=lambda variant: variant.value)
takes_k = pytest.mark.parametrize("variant", [v for v in Variant if v not in IGNORES_K], ids=lambda v: v.value)
LARGEST = 13


def zeros_and_one(n: int) -> Any:
    return np.arange(n)[None, :] == n - 1 if n > 1 else np.ones((1, 1))


def asked(variant: Variant, n: int, k: Any, policy: KPolicy = KPolicy.STRICT) -> Any:
    return transform(zeros_and_one(n).astype(float), k, variant=variant, k_policy=policy)


def refusal(*arguments: Any, **options: Any) -> list[str]:
    """The fields a call is refused for."""
    with pytest.raises(InvalidArgument) as caught:
        transform(*arguments, **options)
    return [violation.field for violation in caught.value.violations]


@takes_k
def test_strict_takes_every_legal_k_and_refuses_every_other(variant: Variant) -> None:
    for n in range(1, LARGEST):
        for k in range(1, 2 * LARGEST):
            if reference.legal(variant.value, n, k):
                assert asked(variant, n, k).group_statuses[0] in (GroupStatus.FINE, GroupStatus.NO_SIGNAL)
            else:
                with pytest.raises(InvalidArgument) as caught:
                    asked(variant, n, k)
                (violation,) = caught.value.violations
                if reference.legal_ks(variant.value, n):
                    assert violation.field == "k[0]"
                    assert str(k) in violation.description
                else:
                    assert violation.field == "groups.group_size"
                assert str(n) in violation.description


@takes_k
def test_clamp_lowers_k_to_the_largest_legal_one(variant: Variant) -> None:
    for n in range(1, LARGEST):
        for k in range(1, 2 * LARGEST):
            if variant is Variant.TZSM and k < n:
                continue
            answer = asked(variant, n, k, KPolicy.CLAMP)
            used = reference.clamped(variant.value, n, k)
            if used is None:
                assert not answer.advantages.any()
                assert answer.group_statuses.tolist() == [GroupStatus.TOO_SMALL]
                continue
            assert bits(answer.advantages) == bits(asked(variant, n, used).advantages)
            if n == 1 or not answer.advantages.any():
                assert answer.group_statuses.tolist() == [GroupStatus.NO_SIGNAL]
            else:
                assert answer.group_statuses.tolist() == [GroupStatus.FINE if used == k else GroupStatus.K_CLAMPED]


@pytest.mark.parametrize("policy", KPolicy)
@takes_k
def test_k_of_0_is_refused_but_by_tzsm(variant: Variant, policy: KPolicy) -> None:
    groups = zeros_and_one(6).astype(float)
    if variant is Variant.TZSM:
        assert transform(groups, 0, variant=variant, k_policy=policy).advantages.any()
    else:
        assert refusal(groups, 0, variant=variant, k_policy=policy) == ["k[0]"]


@pytest.mark.parametrize("policy", KPolicy)
@every
def test_a_negative_k_is_refused(variant: Variant, policy: KPolicy) -> None:
    if variant not in IGNORES_K:
        assert refusal(zeros_and_one(6).astype(float), -1, variant=variant, k_policy=policy) == ["k[0]"]


@pytest.mark.parametrize("policy", KPolicy)
def test_tzsm_refuses_a_k_between_0_and_n(policy: KPolicy) -> None:
    for k in range(1, 6):
        assert refusal(np.zeros((1, 6)), k, variant=Variant.TZSM, k_policy=policy) == ["k[0]"]


def test_tzsm_clamps_a_k_above_n() -> None:
    answer = asked(Variant.TZSM, 6, 7, KPolicy.CLAMP)
    assert bits(answer.advantages) == bits(asked(Variant.TZSM, 6, 6).advantages)
    assert answer.group_statuses.tolist() == [GroupStatus.K_CLAMPED]


@pytest.mark.parametrize("policy", KPolicy)
@pytest.mark.parametrize("variant", [Variant.LOO, Variant.GRPO], ids=lambda v: v.value)
def test_variants_without_k_take_any_or_none(variant: Variant, policy: KPolicy) -> None:
    rewards = np.random.default_rng(1).normal(size=(3, 4))
    answers = [transform(rewards, k, variant=variant, k_policy=policy) for k in (None, [], 1, 4, 99, [1, 2, 3])]
    assert len({bits(answer.advantages) for answer in answers}) == 1
    assert not any(answer.group_statuses.any() for answer in answers)


@every
def test_a_group_too_small_for_any_k(variant: Variant) -> None:
    """A group of one among others: refused when strict, zeros and said so when not, unless one sample is enough."""
    rewards, sizes = np.array([0.0, 1.0, 1.0, 0.0, 1.0]), np.array([2, 1, 2])
    ks = [reference.legal_ks(variant.value, 2)[0]] * 3
    ks[1] = 1
    if reference.legal_ks(variant.value, 1):
        answer = transform(RewardGroups(rewards, sizes), ks, variant=variant)
        assert answer.group_statuses[1] == GroupStatus.NO_SIGNAL
        return
    assert refusal(RewardGroups(rewards, sizes), ks, variant=variant) == ["groups.group_sizes[1]"]
    answer = transform(RewardGroups(rewards, sizes), ks, variant=variant, k_policy=KPolicy.CLAMP)
    assert answer.group_statuses[1] == GroupStatus.TOO_SMALL
    assert answer.advantages[2] == 0
    assert GroupStatus.TOO_SMALL not in answer.group_statuses[[0, 2]]


@every
def test_the_worst_status_wins(variant: Variant) -> None:
    """All rewards equal is NO_SIGNAL, whether or not k was lowered and whatever the advantages are."""
    answer = transform(np.ones((2, 12)), 50, variant=variant, k_policy=KPolicy.CLAMP)
    assert answer.group_statuses.tolist() == [GroupStatus.NO_SIGNAL] * 2
    assert answer.advantages.any() == (variant in NOT_FROM_DIFFERENCES)


def test_every_group_of_a_batch_has_a_status_of_its_own() -> None:
    groups = {
        (0.0, 1.0, 2.0): GroupStatus.FINE,
        (0.0, 1.0): GroupStatus.K_CLAMPED,
        (1.0, 1.0, 1.0): GroupStatus.NO_SIGNAL,
        (1.0, 1.0): GroupStatus.NO_SIGNAL,
        (1.0,): GroupStatus.TOO_SMALL,
    }
    batch = RewardGroups(np.array([reward for group in groups for reward in group]), np.array([*map(len, groups)]))
    for ks, offenders in ((3, ["k[0]"]), ([3] * 5, ["k[1]", "k[3]"])):
        statuses = transform(batch, ks, k_policy=KPolicy.CLAMP).group_statuses
        assert statuses.dtype == np.uint8
        assert statuses.tolist() == list(groups.values())
        assert refusal(batch, ks) == [*offenders, "groups.group_sizes[4]"]


def test_advantages_that_are_all_0_are_no_signal_too() -> None:
    """Rewards differ, but no k-subset's maximum does."""
    answer = transform(np.array([[0.0, 1.0, 1.0, 1.0]]), 3, variant=Variant.PASSK_ANALYTIC)
    assert not answer.advantages.any()
    assert answer.group_statuses.tolist() == [GroupStatus.NO_SIGNAL]
    answer = transform(np.array([[0.0, 1.0, 2.0, 2.0]]), 4, variant=Variant.SLOO_MINUS_ONE)
    assert answer.group_statuses.tolist() == [GroupStatus.NO_SIGNAL]


@takes_k
def test_one_k_for_all_or_one_per_group(variant: Variant) -> None:
    n = 12
    rewards = (np.random.default_rng(2).random((4, n)) < 0.5).astype(float)
    ks = (reference.legal_ks(variant.value, n) * 4)[:4]
    one_by_one = [
        transform(rewards[i : i + 1], k, variant=variant, first_group=i).advantages[0] for i, k in enumerate(ks)
    ]
    for form in (ks, tuple(ks), np.array(ks, np.uint8), np.array(ks, np.int64)):
        assert bits(transform(rewards, form, variant=variant).advantages) == bits(np.array(one_by_one))
    assert bits(transform(rewards, [ks[0]], variant=variant).advantages) == bits(
        transform(rewards, ks[0], variant=variant).advantages
    )


@takes_k
@pytest.mark.parametrize("count", [0, 2, 5])
def test_another_number_of_ks_is_refused(variant: Variant, count: int) -> None:
    if variant is Variant.TZSM and count == 0:
        return  # no k stands for n
    assert refusal(np.zeros((4, 6)), [6] * count, variant=variant) == ["k"]


def test_clamping_of_blocks_takes_the_largest_divisor_that_is_legal() -> None:
    expected = {
        Variant.PASSK_FULL: 12,
        Variant.NAIVE_PARTITIONED: 12,
        Variant.NAIVE_PARTITIONED_BASELINED: 6,
        Variant.LOO_MINUS_ONE_PARTITIONED: 12,
    }
    assert expected.keys() == BLOCKWISE
    for variant, largest in expected.items():
        assert reference.clamped(variant.value, 12, 99) == largest


@pytest.mark.skipif(not JIT, reason="needs the compiler: 16 million draws take too long interpreted")
def test_the_bootstraps_draws_are_bounded() -> None:
    n = 2**12 + 1
    rewards = np.random.default_rng(3).normal(size=(1, n))
    assert refusal(rewards, 2**12, variant=Variant.PASSK_BOOTSTRAP) == ["k[0]"]
    answer = transform(rewards, 2**12, variant=Variant.PASSK_BOOTSTRAP, k_policy=KPolicy.CLAMP)
    assert answer.group_statuses.tolist() == [GroupStatus.K_CLAMPED]
    used = reference.BOOTSTRAP_LIMIT // n
    assert bits(answer.advantages) == bits(transform(rewards, used, variant=Variant.PASSK_BOOTSTRAP).advantages)


def test_every_variant_is_described() -> None:
    assert set(VARIANTS) == set(Variant)
    for variant, info in VARIANTS.items():
        assert info.variant is variant
        assert info.source
        assert info.k_range
        assert info.needs_seed == (variant is Variant.PASSK_BOOTSTRAP)
