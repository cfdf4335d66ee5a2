"""The window of a stream against everything that can happen to it, in any order, without a channel or a clock."""

from __future__ import annotations

import random
from typing import Any

import hypothesis.strategies as st
import numpy as np
from hypothesis import given, settings

from pkpo.v1 import reward_transform_pb2 as pb
from pkpo_client import PermissionDenied, Unavailable
from pkpo_client.window import Clock, Window
from pkpo_client.work import Batch, Operation

BATCHES, SIZE = 9, 3


class ByHand(Clock):
    time = 0.0

    def now(self) -> float:
        return self.time


def operation(number: int, parts: int) -> Operation[Any]:
    got = []
    for part in range(parts):
        reward = np.array([number + part / 10])
        answer = yield Batch(1e9, reward, 1, 1, "grpo", "sum", "strict", None, (), 0, "", part)
        got.append(float(answer.values[0]))
    return got


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
