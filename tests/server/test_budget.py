"""A bound that leaves room for those who hold little."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pkpo_server.budget import Budget

LIMIT = 1000


def test_what_is_held_is_bounded() -> None:
    budget = Budget(LIMIT)
    budget.take("a", 600)
    assert budget.fits("a", 400)
    assert not budget.fits("a", 401)
    budget.give_back("a", 600)
    assert budget.held == 0
    assert budget.fits("a", 401)


def test_one_tenant_cannot_take_what_is_kept_for_those_who_hold_little() -> None:
    budget = Budget(LIMIT)
    budget.take("a", LIMIT)
    assert not budget.fits("a", 1)
    assert budget.fits("b", 125)
    assert not budget.fits("b", 126)
    budget.take("b", 125)
    assert not budget.fits("b", 1)
    budget.take("c", 125)
    assert not budget.fits("d", 1), "a quarter more, and no further"


@pytest.mark.parametrize("amount", [LIMIT, 10 * LIMIT])
def test_whoever_is_alone_is_let_in(amount: int) -> None:
    assert Budget(LIMIT).fits("a", amount)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 400), st.booleans()), max_size=60))
def test_the_sum_is_what_is_held(steps: list[tuple[str, int, bool]]) -> None:
    budget = Budget(LIMIT)
    held: list[tuple[str, int]] = []
    for tenant, amount, leaves in steps:
        if leaves and held:
            budget.give_back(*held.pop(0))
        elif budget.fits(tenant, amount):
            budget.take(tenant, amount)
            held.append((tenant, amount))
        assert budget.held == sum(each for _, each in held) <= 1.25 * LIMIT
    for each in held:
        budget.give_back(*each)
    assert budget.held == 0
    assert not budget._held_by, "no tenant is remembered who holds nothing"
