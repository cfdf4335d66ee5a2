"""The window of a stream against everything that can happen to it, in any order, without a channel or a clock."""

from __future__ import annotations

import random
from typing import Any

import grpc
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from pkpo.v1 import reward_transform_pb2 as pb
from pkpo_client import Overloaded, PermissionDenied, PkpoError, Unavailable
from pkpo_client.attempts import ATTEMPTS
from pkpo_client.window import Clock, Window
from pkpo_client.work import Batch, Operation

BATCHES, SIZE = 9, 3


class ByHand(Clock):
    time = 0.0

    def now(self) -> float:
        return self.time


def operation(number: int, parts: int, timeout: float = 1e9) -> Operation[Any]:
    got = []
    for part in range(parts):
        reward = np.array([number + part / 10])
        answer = yield Batch(timeout, reward, 1, 1, "grpo", "sum", "strict", None, (), 0, "", part)
        got.append(float(answer.values[0]))
    return got


class Failure(grpc.RpcError):
    """What gRPC says of a call that failed, and asks to be made again or not."""

    def __init__(self, *metadata: tuple[str, str]) -> None:
        self._metadata = metadata

    def trailing_metadata(self) -> Any:
        return self._metadata


NEVER = Failure(("grpc-retry-pushback-ms", "-1"))


def three_under_way(timeout: float = 10.0) -> tuple[Window, ByHand]:
    """A window with three batches, all in flight."""
    clock = ByHand()
    window = Window(SIZE, "there:1", clock)
    for number in range(SIZE):
        window.admit(operation(number, 2, timeout))
    send_all(window)
    return window, clock


def send_all(window: Window) -> list[pb.TransformStreamRequest]:
    sent = []
    while item := window.to_send():
        sent.append(pb.TransformStreamRequest.FromString(window.send(item)))
    return sent


def errors(window: Window) -> list[PkpoError]:
    """Of the first batches, as many as are done."""
    found = []
    while window.head_is_done:
        with pytest.raises(PkpoError) as caught:
            window.take_head()
        found.append(caught.value)
    return found


def test_after_a_failure_there_is_nothing_to_do_before_the_one_batch_that_goes_first_is_answered_or_overdue() -> None:
    window, clock = three_under_way()
    window.end(Unavailable("gone"))
    clock.time += window.seconds_to_wait() or 0.0
    assert len(send_all(window)) == 1
    assert window.seconds_to_wait() == 10.0 - clock.time
    window.end(Unavailable("gone"))
    assert 0 < (window.seconds_to_wait() or 0.0) < 1.0


def test_what_was_said_long_before_a_batch_could_be_sent_is_not_the_reason_for_it() -> None:
    window, clock = three_under_way()
    window.end(Unavailable("gone"))
    clock.time += window.seconds_to_wait() or 0.0
    send_all(window)
    clock.time = 10.0
    assert [window.reason(item) for item in window.overdue()] == [None] * SIZE


def test_what_was_said_a_moment_ago_is_the_reason_for_each_batch_in_an_error_of_its_own() -> None:
    window, clock = three_under_way()
    clock.time = 9.95
    window.end(Unavailable("gone"))
    clock.time = 10.0
    reasons = [window.reason(item) for item in window.overdue()]
    assert [str(each) for each in reasons] == ["gone"] * SIZE
    assert len(set(map(id, reasons))) == SIZE


def test_a_refused_stream_gives_each_batch_an_error_of_its_own() -> None:
    window, _ = three_under_way()
    refusal, cause = PermissionDenied("not you"), Failure()
    refusal.__cause__ = cause
    window.end(refusal)
    found = errors(window)
    assert [(type(each), str(each), each.__cause__) for each in found] == [(PermissionDenied, "not you", cause)] * SIZE
    assert len(set(map(id, found))) == SIZE


def test_attempts_used_up_by_one_batch_are_not_used_up_for_the_next() -> None:
    window, clock = three_under_way()
    for attempt in range(ATTEMPTS):
        assert not window.head_is_done, attempt
        window.end(Overloaded("no room"))
        clock.time += window.seconds_to_wait() or 0.0
        send_all(window)
    assert [str(each) for each in errors(window)] == ["no room"]
    window.end(Overloaded("no room"))
    assert not window.head_is_done
    assert (window.seconds_to_wait() or 0.0) > 0


def test_refusals_are_counted_apart_from_breaks() -> None:
    window, clock = three_under_way(timeout=1e9)
    for error in [Unavailable("gone")] * (ATTEMPTS + 1) + [Overloaded("no room")] * (ATTEMPTS - 1):
        window.end(error)
        clock.time += window.seconds_to_wait() or 0.0
        send_all(window)
    assert not window.head_is_done
    window.end(Overloaded("no room"))
    assert [type(each) for each in errors(window)] == [Overloaded]


@pytest.mark.parametrize("kind", [Unavailable, Overloaded])
def test_a_service_that_says_never_is_not_asked_again(kind: type[PkpoError]) -> None:
    window, _ = three_under_way()
    error = kind("never")
    error.__cause__ = NEVER
    window.end(error)
    assert [type(each) for each in errors(window)] == [kind] * SIZE


def test_who_starts_over_has_the_whole_time_again_for_every_part() -> None:
    window, clock = three_under_way()
    clock.time = 10.0
    assert len(window.overdue()) == SIZE
    window.start_over()
    assert window.overdue() == []
    assert window.seconds_to_wait() == 0.0
    (first, *_) = send_all(window)
    clock.time = 15.0
    response = pb.TransformResponse(f64=pb.DoubleValues(values=first.request.groups.f64.values))
    window.receive(pb.TransformStreamResponse(sequence=first.sequence, response=response))
    assert window.overdue() == []


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(1, 3), min_size=BATCHES, max_size=BATCHES), st.integers(0, 2**32))
def test_every_batch_comes_out_once_in_order_whatever_happens(parts: list[int], seed: int) -> None:
    chance = random.Random(seed)
    clock = ByHand()
    window = Window(SIZE, "there:1", clock)
    on_the_way: list[pb.TransformStreamRequest] = []
    stale: list[pb.TransformStreamResponse] = []
    admitted, out, refused = 0, [], set()

    def answer(message: pb.TransformStreamRequest) -> pb.TransformStreamResponse:
        rewards = message.request.groups.f64.values
        response = pb.TransformResponse(f64=pb.DoubleValues(values=rewards))
        return pb.TransformStreamResponse(sequence=message.sequence, response=response)

    for _ in range(2000):
        while window.head_is_done:
            number = len(out)
            try:
                out.append(window.take_head())
            except PermissionDenied:
                assert number in refused
                out.append(None)
        if len(out) == BATCHES:
            break
        assert len(window) <= SIZE
        assert len(on_the_way) <= SIZE
        event = chance.choice(["admit", "send", "send", "answer", "answer", "busy", "refuse", "break", "stale"])
        if event == "admit" and admitted < BATCHES and window.has_room:
            window.admit(operation(admitted, parts[admitted]))
            admitted += 1
        elif event == "send":
            clock.time += window.seconds_to_wait() or 0.0 if not on_the_way else 0.0
            item = window.to_send()
            if item is not None:
                on_the_way.append(pb.TransformStreamRequest.FromString(window.send(item)))
        elif event == "break":
            stale += [answer(message) for message in on_the_way]
            on_the_way.clear()
            window.end(chance.choice([None, Unavailable("gone")]))
        elif event == "stale" and stale:
            window.receive(stale.pop())
        elif event in ("answer", "busy", "refuse") and on_the_way:
            message = on_the_way.pop(chance.randrange(len(on_the_way)))
            reply = answer(message)
            if event == "busy":
                reply.error.CopyFrom(pb.TransformError(code=8, retry_after_ms=50))
            if event == "refuse":
                refused.add(int(message.request.groups.f64.values[0]))
                reply.error.CopyFrom(pb.TransformError(code=7, message="not you"))
            window.receive(reply)
    assert len(out) == BATCHES
    for number, result in enumerate(out):
        assert number in refused if result is None else result == [number + part / 10 for part in range(parts[number])]
