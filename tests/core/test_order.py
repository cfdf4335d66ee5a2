"""The order of groups, whichever way they are sorted, and that no way shows in the answer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.samples import JIT, bits, properties
from pkpo_core import RewardGroups, Variant, transform
from pkpo_core.gap import STANDARDISED
from pkpo_core.layout import Layout
from pkpo_core.maxima import VARIANTS as OF_MAXIMA
from pkpo_core.order import sorting_order

IN_GAP_FORM = [v for v in Variant if v not in OF_MAXIMA and v not in STANDARDISED]
SPECIAL = [0.0, -0.0, 1.0, -1.0, 5e-324, -5e-324, 1e100, -1e100, np.nextafter(1.0, 2.0), np.nextafter(-1.0, 0.0)]
LARGEST = 300 if JIT else 40

rewards = st.one_of(
    st.sampled_from(SPECIAL),
    st.floats(-1e100, 1e100),
    st.integers(0, 2000).map(lambda ulps: 1.0 + ulps * 2.0**-52),  # which differ where a key has its index
)


def assert_sorts(sizes: Any, values: Any) -> None:
    layout = Layout(values.size, sizes)
    order = sorting_order(layout, values, layout.groups)
    for start, stop in zip(layout.offsets[:-1].tolist(), layout.offsets[1:].tolist(), strict=True):
        indices = order[start:stop].astype(np.int64)
        np.testing.assert_array_equal(np.sort(indices), np.arange(stop - start))
        np.testing.assert_array_equal(values[start:stop][indices], np.sort(values[start:stop]))


@properties
@given(data=st.data())
def test_groups_of_any_sizes(data: Any) -> None:
    sizes = np.array(data.draw(st.lists(st.integers(1, 12), min_size=1, max_size=80)))
    values = np.array(data.draw(st.lists(rewards, min_size=int(sizes.sum()), max_size=int(sizes.sum()))))
    assert_sorts(sizes, values)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 100, 255, 256, 257])
@pytest.mark.parametrize("step", [1.0, 0.0, 2.0**-52], ids=["apart", "equal", "near"])
def test_groups_of_one_size(n: int, step: float) -> None:
    rng = np.random.default_rng(n)
    number = 130 if n <= 64 and JIT else 3
    values = 1.0 + step * rng.permuted(np.tile(np.arange(n), (number, 1)), axis=1)
    assert_sorts(n, values.reshape(-1))
    assert_sorts(n, -values.reshape(-1))


@pytest.mark.parametrize("seed", range(8))
def test_batches_of_mixed_sizes(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = np.exp(rng.uniform(0, np.log(LARGEST), 150 if JIT else 10)).astype(np.int64)
    values = rng.standard_normal(sizes.sum())
    near = rng.random(values.size) < 0.3
    values[near] = 1.0 + rng.integers(0, 64, near.sum()) * 2.0**-52
    assert_sorts(sizes, values)


def test_only_the_groups_that_are_asked_for() -> None:
    rng = np.random.default_rng(5)
    for layout in (Layout(80 * 6, 6), Layout(6 * 100, 100), Layout(6 * 80, np.full(6, 80))):
        values = rng.standard_normal(layout.total)
        groups = np.array([1, 3, 4], np.uint64)
        order = sorting_order(layout, values, groups)
        for group in groups.tolist():
            start, stop = int(layout.offsets[group]), int(layout.offsets[group + 1])
            np.testing.assert_array_equal(order[start:stop], np.argsort(values[start:stop]))


@pytest.mark.parametrize("variant", IN_GAP_FORM, ids=lambda variant: variant.value)
@pytest.mark.parametrize("kind", ["two values", "one value", "some of each", "near"])
def test_no_way_shows_in_the_bits(variant: Variant, kind: str) -> None:
    """With estimates wanted every group is sorted; without, many need not be."""
    rng = np.random.default_rng(3)
    sizes = rng.integers(2, 90, 120 if JIT else 8)
    values = rng.standard_normal(sizes.sum())
    for part in np.split(values, np.cumsum(sizes)[:-1]):
        choice = {"two values": 2, "one value": 1, "near": 0}.get(kind, int(rng.integers(4)))
        if variant is Variant.BINARY:
            part[:] = rng.integers(0, 2 if choice == 2 else 1, part.size)
        elif choice in (1, 2):
            part[:] = rng.choice(rng.standard_normal(choice), part.size)
        elif kind == "near":
            part[:] = 1.0 + rng.integers(0, 64, part.size) * 2.0**-52
    k = np.minimum(sizes - 1, rng.integers(1, 9, sizes.size)) if variant is not Variant.TZSM else sizes
    groups = RewardGroups(values, sizes)
    without = transform(groups, k, variant=variant)
    sorted_first = transform(groups, k, variant=variant, estimate_k=1)
    assert bits(without.advantages) == bits(sorted_first.advantages)
    np.testing.assert_array_equal(without.group_statuses, sorted_first.group_statuses)
