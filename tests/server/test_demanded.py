"""Who floods, and who does not."""

from __future__ import annotations

import pytest

from pkpo_server.demanded import FADING_SECONDS, MOST_TENANTS, Demanded


def test_one_alone_is_not_light() -> None:
    demanded = Demanded()
    demanded.ask("one", 1.0, 10.0)
    assert not demanded.is_light("one")


def test_half_of_the_average_is_where_light_begins() -> None:
    demanded = Demanded()
    demanded.ask("flood", 4.0, 10.0)
    demanded.ask("small", 1.3, 10.0)
    assert demanded.is_light("small")
    assert demanded.is_light("who has not asked")
    assert not demanded.is_light("flood")
    demanded.ask("small", 0.1, 10.0)
    assert not demanded.is_light("small")


def test_who_invents_a_tenant_for_each_call_has_none_that_is_light() -> None:
    demanded = Demanded()
    for number in range(20_000):
        now = 10.0 + 0.001 * number
        demanded.ask(f"invented {number % 1000}", 0.003, now)
        if number % 30 == 0:
            demanded.ask("honest", 0.003, now)
        if number > 2000:
            assert not demanded.is_light(f"invented {number % 1000}")


@pytest.mark.parametrize("start", [0.0, 1e9])
def test_what_was_asked_for_fades(start: float) -> None:
    demanded = Demanded()
    demanded.ask("flood", 100.0, start)
    demanded.ask("small", 1.0, start + 3 * FADING_SECONDS)
    assert demanded.is_light("small"), "of 100, 100 / e ** 3 = 5 are left"
    demanded.ask("small", 1.0, start + 5 * FADING_SECONDS)
    assert not demanded.is_light("small"), "of 100, less than 1 is left"


def test_steady_rates_are_told_apart_for_as_long_as_they_last() -> None:
    demanded = Demanded()
    for number in range(100_000):
        now = 0.03 * number
        demanded.ask("flood", 0.03, now)
        if number % 10 == 0:
            demanded.ask("small", 0.03, now)
            assert number < 100 or demanded.is_light("small")
    assert not demanded.is_light("flood")


def test_tenants_that_are_invented_take_no_room_and_the_flood_stays_known() -> None:
    demanded = Demanded()
    demanded.ask("flood", 1000.0, 0.0)
    for number in range(3 * MOST_TENANTS):
        demanded.ask(f"invented {number}", 0.001, 1e-3)
        assert len(demanded._sums) <= MOST_TENANTS
    assert not demanded.is_light("flood")
    assert demanded.is_light("another")
