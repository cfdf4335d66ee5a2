"""How long work may wait for a thread."""

from __future__ import annotations

from math import inf

import pytest

from pkpo_server.wait_bound import FEWEST_USUAL_PIECES, LEAST_SECONDS, MOST_USUAL_PIECES, OWN_SHARE, WaitBound

USUAL = 0.01


def taught(bound: WaitBound, until: float = 100.0) -> WaitBound:
    """A bound that has seen usual work for long."""
    for now in range(int(until)):
        bound.seconds(USUAL, float(now), inf)
    return bound


def test_without_a_queue_it_is_long() -> None:
    assert taught(WaitBound()).seconds(USUAL, 100.0, inf) == pytest.approx(MOST_USUAL_PIECES * USUAL)


def test_a_queue_that_stands_shortens_it_and_one_that_was_empty_does_not() -> None:
    bound = taught(WaitBound())
    for step in range(100):
        now = 100.0 + step / 100
        assert bound.seconds(USUAL, now, now - 0.4) == pytest.approx(MOST_USUAL_PIECES * USUAL)
    for step in range(100):
        shortened = bound.seconds(USUAL, 101.0 + step / 100, 100.0)
    assert shortened == pytest.approx(FEWEST_USUAL_PIECES * USUAL)
    halfway = [bound.seconds(USUAL, 102.0 + step / 100, inf) for step in range(250)][-1]
    assert FEWEST_USUAL_PIECES * USUAL < halfway < MOST_USUAL_PIECES * USUAL
    assert [bound.seconds(USUAL, 104.5 + step / 100, inf) for step in range(500)][-1] == pytest.approx(
        MOST_USUAL_PIECES * USUAL
    )


def test_among_many_one_that_takes_long_moves_it_little_for_the_others() -> None:
    bound = taught(WaitBound())
    before = bound.seconds(USUAL, 100.0, inf)
    bound.seconds(100 * USUAL, 100.001, inf)
    assert bound.seconds(USUAL, 100.002, inf) < 1.1 * before


def test_what_takes_long_may_wait_for_half_as_many_of_its_like() -> None:
    bound = taught(WaitBound())
    assert bound.seconds(100 * USUAL, 99.001, inf) == pytest.approx(MOST_USUAL_PIECES * OWN_SHARE * 100 * USUAL)


def test_short_work_may_wait_a_moment() -> None:
    assert WaitBound().seconds(1e-6, 0.0, inf) == LEAST_SECONDS
