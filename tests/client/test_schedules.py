"""k as a function of the training step."""

from __future__ import annotations

import pickle
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from pkpo_client import InvalidArgument, schedules


def test_constant() -> None:
    assert [schedules.constant(4)(step) for step in (0, 1, 10**9)] == [4, 4, 4]


def test_step() -> None:
    k = schedules.step({0: 8, 1500: 1})
    assert [k(step) for step in (0, 1499, 1500, 10**9)] == [8, 8, 1, 1]
    assert schedules.step({10: 2, 0: 4})(10) == 2


def test_linear() -> None:
    assert [schedules.linear(8, 1, 7)(step) for step in range(10)] == [8, 7, 6, 5, 4, 3, 2, 1, 1, 1]
    assert [schedules.linear(1, 2, 4)(step) for step in range(5)] == [1, 1, 2, 2, 2]


def test_cosine() -> None:
    assert [schedules.cosine(9, 1, 8)(step) for step in range(10)] == [9, 9, 8, 7, 5, 3, 2, 1, 1, 1]


@given(st.integers(1, 2**20), st.integers(1, 2**20), st.integers(1, 10**6), st.integers(0, 2 * 10**6))
def test_slopes_start_and_end_where_they_say_and_never_turn(start: int, end: int, steps: int, step: int) -> None:
    for slope in (schedules.linear(start, end, steps), schedules.cosine(start, end, steps)):
        assert slope(0) == start
        assert slope(steps) == slope(steps + step) == end
        now, later = slope(step), slope(step + 1)
        assert type(now) is int
        assert min(start, end) <= now <= max(start, end)
        assert (later - now) * (end - start) >= 0


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("8", schedules.constant(8)),
        ("8@0", schedules.constant(8)),
        ("8@0,1@1500", schedules.step({0: 8, 1500: 1})),
        (" 1@1500 , 8@0 ", schedules.step({0: 8, 1500: 1})),
    ],
)
def test_from_string(text: str, same: schedules.Schedule) -> None:
    assert schedules.from_string(text) == same
    assert hash(schedules.from_string(text)) == hash(same)


@pytest.mark.parametrize("made", [schedules.constant(2), schedules.linear(8, 1, 9), schedules.cosine(8, 1, 9)])
def test_schedules_pickle_and_take_numpy_steps(made: schedules.Schedule) -> None:
    assert pickle.loads(pickle.dumps(made)) == made
    assert made(np.int64(3)) == made(3)


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: schedules.constant(0), "k: is 0; must be at least 1"),
        (lambda: schedules.constant(2.0), "k: is 2.0; must be an integer"),  # type: ignore[arg-type]
        (lambda: schedules.linear(8, 1, 0), "steps: is 0"),
        (lambda: schedules.cosine(0, 1, 5), "start: is 0"),
        (lambda: schedules.step({}), "step 0"),
        (lambda: schedules.step({5: 1}), "step 0"),
        (lambda: schedules.step({0: 8, -1: 3}), "is -1"),
        (lambda: schedules.step({0: 0}), "is 0"),
        (lambda: schedules.step([8, 1]), "must map"),  # type: ignore[arg-type]
        (lambda: schedules.from_string(""), "k@step"),
        (lambda: schedules.from_string("8@0,"), "k@step"),
        (lambda: schedules.from_string("8,1@5"), "k@step"),
        (lambda: schedules.from_string("8@0;1@5"), "k@step"),
        (lambda: schedules.from_string("-8@0"), "k@step"),
        (lambda: schedules.from_string("8@5"), "step 0"),
        (lambda: schedules.from_string("8@0,4@0"), "one k"),
        (lambda: schedules.from_string("0@0"), "is 0"),
        (lambda: schedules.from_string(8), "string"),  # type: ignore[arg-type]
        (lambda: schedules.constant(8)(-1), "training_step: is -1"),
        (lambda: schedules.constant(8)(1.5), "training_step"),  # type: ignore[arg-type]
    ],
)
def test_what_is_no_schedule_is_refused(make: Any, word: str) -> None:
    with pytest.raises(InvalidArgument, match=word):
        make()
