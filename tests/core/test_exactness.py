"""Advantages and estimates against exact rational arithmetic."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import reference
from core.samples import EXACT, SIZES, groups_of, kinds, of_one_group, properties
from pkpo_core import Scale, Variant, estimate, transform

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "vectors.json").read_text())
WITHOUT_DRAWING = [variant for variant in Variant if variant is not Variant.PASSK_BOOTSTRAP]


def test_every_vector_is_there() -> None:
    assert (len(VECTORS["transform"]), len(VECTORS["estimate"])) == (638, 42)


@pytest.mark.parametrize("scale", Scale, ids=lambda scale: scale.value)
@pytest.mark.parametrize("variant", sorted({case["variant"] for case in VECTORS["transform"]}))
def test_given_vectors(variant: str, scale: Scale) -> None:
    for case in (case for case in VECTORS["transform"] if case["variant"] == variant):
        rewards, k = np.array(case["rewards"]), case["k"]
        exact = np.array(case["sum_scale_advantages"])
        measured = of_one_group(rewards, k, Variant(variant), scale=scale)
        if scale is Scale.MEAN:
            measured = measured / len(rewards)
        largest = np.abs(exact).max()
        if variant in ("s", "sloo", "binary"):
            largest = max(largest, k / len(rewards) * np.abs(rewards).max())
        assert np.abs(measured - exact).max() <= EXACT * largest, case


def test_given_estimates() -> None:
    for case in VECTORS["estimate"]:
        (measured,) = estimate(np.array([case["rewards"]]), case["k"])
        assert abs(measured.values[0] - case["max_at_k"]) <= EXACT * np.abs(case["rewards"]).max(), case


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("variant", WITHOUT_DRAWING, ids=lambda variant: variant.value)
def test_every_legal_k_of_every_kind_of_rewards(variant: Variant, n: int) -> None:
    ks = reference.legal_ks(variant.value, n)
    if not ks:
        return
    rng = np.random.default_rng([n, *variant.value.encode()])
    for kind, sample in kinds(variant).items():
        rewards = np.array([sample(rng, n) for _ in ks])
        for scale in Scale:
            measured = transform(rewards, ks, variant=variant, scale=scale).advantages
            for group, k, advantages in zip(rewards.tolist(), ks, measured, strict=True):
                error = reference.error(variant.value, group, k, advantages, scale=scale.value)
                assert error < EXACT, (kind, k, scale, group)


@pytest.mark.parametrize("variant", WITHOUT_DRAWING, ids=lambda variant: variant.value)
@properties
@given(data=st.data())
def test_rewards_meant_to_cause_trouble(variant: Variant, data: Any) -> None:
    rewards = data.draw(groups_of(variant))
    ks = reference.legal_ks(variant.value, len(rewards))
    if ks:
        k = data.draw(st.sampled_from(ks))
        assert reference.error(variant.value, rewards, k, of_one_group(rewards, k, variant)) < EXACT


@pytest.mark.parametrize("variant", [v for v in Variant if v is not Variant.BINARY], ids=lambda variant: variant.value)
@properties
@given(data=st.data())
def test_any_rewards_at_all_give_numbers(variant: Variant, data: Any) -> None:
    """Subnormal ones too, whose differences have lost the digits that exactness would need."""
    rewards = data.draw(st.lists(st.floats(-1e100, 1e100) | st.floats(-1e-305, 1e-305), min_size=2, max_size=40))
    k = data.draw(st.sampled_from(reference.legal_ks(variant.value, len(rewards)) or [0]))
    if k:
        assert np.isfinite(of_one_group(rewards, k, variant)).all()


def test_the_group_worked_by_hand() -> None:
    advantages = of_one_group([1.0, 1.0, 0.0, 0.0], 2, Variant.S)
    np.testing.assert_allclose(advantages, [1 / 2, 1 / 2, 1 / 3, 1 / 3], rtol=EXACT)
