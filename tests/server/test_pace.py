"""How long work takes, as it has turned out so far."""

from __future__ import annotations

import pytest

from pkpo_server.pace import Pace

VARIANT = "SLOO_MINUS_ONE"


def test_it_learns() -> None:
    pace = Pace()
    guess = pace.seconds(VARIANT, 10**6)
    for _ in range(50):
        pace.measured(VARIANT, 10**6, 0.05, 0.05, finished=True)
    assert guess != pace.seconds(VARIANT, 10**6) == pytest.approx(0.05)
    assert pace.seconds(VARIANT, 10**7) == pytest.approx(0.5)
    assert pace.seconds("GRPO", 10**6) == guess, "each variant has its own"


def test_nothing_is_known_to_be_slow_before_it_was_tried() -> None:
    assert Pace().least_seconds(VARIANT, 10**12) == 0.0


def test_at_least_it_takes_less_than_the_best_so_far() -> None:
    pace = Pace()
    for seconds in (0.5, 0.1, 10.0):
        pace.measured(VARIANT, 10**6, seconds, seconds, finished=True)
    assert 0.01 < pace.least_seconds(VARIANT, 10**6) < 0.1


def test_time_of_a_processor_is_known_apart() -> None:
    pace = Pace()
    for _ in range(50):
        pace.measured(VARIANT, 10**6, 0.04, 0.01, finished=True)
    assert pace.processor_seconds(VARIANT, 10**6) == pytest.approx(0.01)
    assert pace.seconds(VARIANT, 10**6) == pytest.approx(0.04)


def test_what_was_cut_tells_something_too() -> None:
    pace = Pace()
    pace.measured(VARIANT, 10**6, 5.0, 5.0, finished=False)
    assert 1.0 <= pace.least_seconds(VARIANT, 10**6) < 5.0


def test_a_process_that_was_stopped_meanwhile_is_believed_only_so_long() -> None:
    pace = Pace()
    pace.measured(VARIANT, 10**6, 1000.0, 1000.0, finished=True)
    refused = 0
    while pace.least_seconds(VARIANT, 10**6) > 1.0:
        pace.doubt(VARIANT)
        refused += 1
    assert 0 < refused < 100
    pace.measured(VARIANT, 10**6, 0.01, 0.01, finished=True)
    assert pace.least_seconds(VARIANT, 10**6) < 0.01


def test_what_is_short_says_nothing() -> None:
    pace = Pace()
    pace.measured(VARIANT, 10, 1e-4, 1e-4, finished=True)
    pace.measured(VARIANT, 0, 1.0, 1.0, finished=True)
    assert pace.least_seconds(VARIANT, 10**6) == 0.0
