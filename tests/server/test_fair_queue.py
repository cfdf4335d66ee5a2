"""Each tenant has the same share of what is done, whatever it queues."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pkpo_server.fair_queue import FairQueue


def queue_of(*work: tuple[str, float]) -> FairQueue[tuple[str, float]]:
    queue: FairQueue[tuple[str, float]] = FairQueue()
    for tenant, seconds in work:
        queue.push(tenant, seconds, (tenant, seconds))
    return queue


def order(queue: FairQueue[tuple[str, float]]) -> str:
    return "".join(queue.pop()[0] for _ in range(len(queue)))


def test_one_tenant_is_served_in_order() -> None:
    queue: FairQueue[int] = FairQueue()
    for number in range(20):
        queue.push("a", 1.0, number)
    assert [queue.pop() for _ in range(20)] == list(range(20))
    assert len(queue) == 0
    with pytest.raises(IndexError):
        queue.pop()


def test_a_flood_waits_for_itself() -> None:
    queue = queue_of(*[("a", 1.0)] * 100, ("b", 1.0), ("b", 1.0))
    assert order(queue)[:5].count("b") == 2


def test_shares_are_of_time_not_of_numbers() -> None:
    queue = queue_of(*[("a", 10.0)] * 10, *[("b", 1.0)] * 100)
    begun = Counter(order(queue)[:55])
    assert begun["a"] in (5, 6)


def test_a_tenant_that_comes_later_owes_nothing_for_before() -> None:
    queue = queue_of(*[("a", 1.0)] * 50)
    for _ in range(40):
        queue.pop()
    for _ in range(10):
        queue.push("b", 1.0, ("b", 1.0))
    assert "".join(queue.pop()[0] for _ in range(10)) in ("ab" * 5, "ba" * 5)


def test_long_work_is_remembered_while_others_wait() -> None:
    queue = queue_of(("a", 10.0), *[("b", 1.0)] * 20)
    assert queue.pop()[0] == "a"
    queue.push("a", 10.0, ("a", 10.0))
    assert order(queue)[:9] == "b" * 9


def test_what_is_removed_is_not_served() -> None:
    queue: FairQueue[str] = FairQueue()
    places = [queue.push("a", 1.0, name) for name in "xyz"]
    assert queue.remove(places[1])
    assert not queue.remove(places[1])
    assert len(queue) == 2
    assert [queue.pop(), queue.pop()] == ["x", "z"]
    assert not queue.remove(places[0])


@pytest.mark.parametrize(
    ("tenant", "seconds", "wait"),
    [
        ("a", 1.0, 30.0 + 2.0),  # its own, and of the other's as much as of its own and this
        ("b", 1.0, 2.0 + 3.0),
        ("c", 1.0, 1.0 + 1.0),
        ("c", 100.0, 30.0 + 2.0),
    ],
)
def test_how_long_work_would_wait(tenant: str, seconds: float, wait: float) -> None:
    queue = queue_of(*[("a", 1.0)] * 30, ("b", 2.0))
    assert queue.wait(tenant, seconds, 1e9) == wait


def test_ever_new_tenants_do_not_keep_others_from_their_turn() -> None:
    queue: FairQueue[str] = FairQueue()
    for number in range(5):
        queue.push(f"new {number}", 1.0, "new")
    served = Counter[str]()
    queue.push("old", 1.0, "old")
    for number in range(5, 605):
        who = queue.pop()
        served[who] += 1
        if who == "old":
            queue.push("old", 1.0, "old")
        else:
            queue.push(f"new {number}", 1.0, "new")
    assert 80 <= served["old"] <= 120, "a sixth: six wait at any time"


def test_what_waits_long_is_not_added_up() -> None:
    queue = queue_of(*[(f"tenant {i}", 1.0) for i in range(1000)])
    assert 10.0 < queue.wait("another", 1.0, 10.0) <= 11.0


@given(
    st.lists(
        st.one_of(
            st.tuples(st.sampled_from("abcd"), st.floats(1e-3, 10.0)),
            st.just("pop"),
            st.integers(0, 50),
        ),
        max_size=100,
    )
)
def test_nothing_is_lost_or_served_twice(steps: list[tuple[str, float] | str | int]) -> None:
    queue: FairQueue[int] = FairQueue()
    places = {}
    waiting: set[int] = set()
    for number, step in enumerate(steps):
        if isinstance(step, tuple):
            places[number] = queue.push(*step, number)
            waiting.add(number)
        elif step == "pop":
            if waiting:
                waiting.remove(queue.pop())
        elif step in places:
            assert queue.remove(places[step]) == (step in waiting)
            waiting.discard(step)
        assert len(queue) == len(waiting)
    assert {queue.pop() for _ in range(len(queue))} == waiting
    assert not queue._tenants, "nobody is remembered once nothing waits"


@pytest.mark.parametrize("left", [0, 1])
def test_what_is_taken_out_counts_for_nothing(left: int) -> None:
    queue = queue_of(*[("a", 1.0)] * 3)
    places = [queue.push("b", 1.0, ("b", 1.0)) for _ in range(100 + left)]
    for place in places[:100]:
        assert queue.remove(place)
    if not left:
        queue.push("b", 1.0, ("b", 1.0))
    assert order(queue) == "abaa"


class Model:
    """Start-time fair queueing as it is defined: all that waits, looked through for each that is served."""

    def __init__(self) -> None:
        self.waiting: list[tuple[int, str, float, float]] = []
        self.ends: dict[str, float] = {}
        self.now = 0.0

    def push(self, tenant: str, seconds: float, number: int) -> None:
        self.waiting.append((number, tenant, seconds, self.now))

    def pop(self) -> int:
        first = {tenant: (came, number, seconds) for number, tenant, seconds, came in reversed(self.waiting)}
        starts = {(max(came, self.ends.get(name, 0.0)), number): name for name, (came, number, _) in first.items()}
        start, number = min(starts)
        tenant = starts[start, number]
        seconds = first[tenant][2]
        self.now = max(self.now, start) + seconds / len(first)
        self.ends[tenant] = start + seconds
        self.remove(number)
        return number

    def remove(self, number: int) -> None:
        self.waiting = [each for each in self.waiting if each[0] != number]
        if not self.waiting:
            self.ends.clear()


@given(
    st.lists(
        st.one_of(
            st.tuples(st.sampled_from("abcd"), st.sampled_from([0.5, 1.0, 2.0, 8.0])),
            st.just("pop"),
            st.integers(0, 60),
        ),
        max_size=120,
    )
)
def test_the_order_is_that_of_start_time_fair_queueing(steps: list[tuple[str, float] | str | int]) -> None:
    queue: FairQueue[int] = FairQueue()
    model = Model()
    places = {}
    for number, step in enumerate(steps):
        if isinstance(step, tuple):
            places[number] = queue.push(*step, number)
            model.push(*step, number)
        elif step == "pop":
            if len(queue):
                assert queue.pop() == model.pop()
        elif step in places and queue.remove(places[step]):
            model.remove(step)
        assert len(queue) == len(model.waiting)
    while len(queue):
        assert queue.pop() == model.pop()


def test_tenants_whose_work_was_taken_out_are_forgotten() -> None:
    queue: FairQueue[int] = FairQueue()
    queue.push("always", 1.0, 0)
    for number in range(10_000):
        queue.remove(queue.push(f"tenant {number}", 1.0, number))
    assert len(queue._tenants) == 1
    assert len(queue._turns) < 200
    last = [queue.push("always", 1.0, number) for number in range(10_000)][-1]
    for place in tuple(queue._tenants["always"].places)[1:-1]:
        queue.remove(place)
    assert len(queue._tenants["always"].places) < 200
    assert queue.remove(last)


def test_tenants_that_are_served_are_forgotten() -> None:
    queue: FairQueue[int] = FairQueue()
    queue.push("always", 1e6, 0)
    for number in range(10_000):
        queue.push(f"tenant {number}", 1.0, number)
        queue.pop()
    assert len(queue._tenants) < 200
    assert len(queue._turns) < 200
