"""Streams: many messages in flight, each answered once under its number, none hurt by another, memory bounded."""

from __future__ import annotations

import queue
import random
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest

import pkpo_core
from live_server import LiveServer, poll
from pkpo import packed
from pkpo.v1 import reward_transform_pb2 as pb
from pkpo.v1 import reward_transform_pb2_grpc as pb_grpc
from pkpo_core import RewardGroups

METHOD = "/pkpo.v1.RewardTransformService/TransformStream"
RNG = np.random.default_rng(11)


def request(rewards: np.ndarray, size: int = 8, k: int = 4, **fields: Any) -> pb.TransformRequest:
    message = pb.TransformRequest(k=[k], **fields)
    message.groups.f64.CopyFrom(packed.double_values(rewards))
    message.groups.group_size = size
    return message


def numbered(sequence: int, message: pb.TransformRequest) -> pb.TransformStreamRequest:
    return pb.TransformStreamRequest(sequence=sequence, request=message)


class Sender:
    """A stream's requests, sent when the test says so."""

    def __init__(self) -> None:
        self._queue: queue.Queue[Any] = queue.Queue()
        self.sent = 0

    def send(self, message: Any) -> None:
        self._queue.put(message)

    def done(self) -> None:
        self._queue.put(None)

    def __iter__(self) -> Iterator[Any]:
        while (message := self._queue.get()) is not None:
            self.sent += 1
            yield message


@pytest.fixture
def own(server: LiveServer) -> Iterator[Any]:
    """A stub on a connection of its own."""
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", 64 * 2**20)]
    with grpc.insecure_channel(server.address, options=options) as channel:
        yield pb_grpc.RewardTransformServiceStub(channel)


def test_every_message_is_answered_once_under_its_number(own: Any) -> None:
    batches = {i * 977: RNG.normal(size=8 * RNG.integers(1, 9_000)) for i in range(40)}
    answers = list(own.TransformStream(numbered(i, request(rewards)) for i, rewards in batches.items()))
    assert sorted(a.sequence for a in answers) == sorted(batches)
    for answer in answers:
        expected = pkpo_core.transform(RewardGroups(batches[answer.sequence], 8), 4)
        assert packed.array(answer.response.f64.values, np.float64).tobytes() == expected.advantages.tobytes()


def test_numbers_are_echoed_and_not_interpreted(own: Any) -> None:
    numbers = [2**64 - 1, 0, 7, 7, 2**63]
    answers = list(own.TransformStream(iter([numbered(n, request(np.arange(8.0))) for n in numbers])))
    assert sorted(a.sequence for a in answers) == sorted(numbers)


def test_statuses_and_estimates_come_with_the_answer(own: Any) -> None:
    message = request(np.ones(16), estimate_k=[1, 8])
    (answer,) = own.TransformStream(iter([numbered(3, message)]))
    assert list(answer.response.group_statuses) == [pb.GROUP_STATUS_NO_SIGNAL] * 2
    assert [list(e.values) for e in answer.response.estimates] == [[1.0, 1.0], [1.0, 1.0]]


def test_bad_messages_hurt_no_other(own: Any) -> None:
    shuffled = random.Random(5)
    good = {i: RNG.normal(size=8 * shuffled.choice([1, 20, 6000])) for i in range(0, 60, 2)}
    bad = {
        1: (request(np.arange(8.0), k=9), "k[0]"),
        3: (request(np.array([0, np.nan]), size=2, k=1), "groups.rewards[1]"),
        5: (request(np.arange(8.0), size=3), "groups.group_size"),
        7: (pb.TransformRequest(), "groups.rewards"),
        9: (request(np.arange(8.0), variant=99), "variant"),
        11: (request(np.append(np.arange(79_999.0), np.inf)), "groups.rewards[79999]"),
    }
    messages = [numbered(i, request(rewards)) for i, rewards in good.items()]
    messages += [numbered(i, message) for i, (message, _) in bad.items()]
    shuffled.shuffle(messages)
    answers = {a.sequence: a for a in own.TransformStream(iter(messages))}
    assert set(answers) == set(good) | set(bad)
    for i, rewards in good.items():
        expected = pkpo_core.transform(RewardGroups(rewards, 8), 4).advantages
        assert packed.array(answers[i].response.f64.values, np.float64).tobytes() == expected.tobytes()
    for i, (_, field) in bad.items():
        error = answers[i].error
        assert error.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
        assert field in error.message
        assert error.violations[0].field == field
        assert error.violations[0].description
        assert error.retry_after_ms == 0


def test_errors_are_bounded(own: Any) -> None:
    message = request(np.full(80_000, np.nan))
    (answer,) = own.TransformStream(iter([numbered(1, message)]))
    assert len(answer.error.violations) == 8
    assert answer.ByteSize() < 2048


def test_a_message_without_request_is_refused_under_its_number(own: Any) -> None:
    messages = [pb.TransformStreamRequest(sequence=4), numbered(5, request(np.arange(8.0)))]
    answers = {a.sequence: a for a in own.TransformStream(iter(messages))}
    assert answers[4].error.violations[0].field == "request"
    assert len(answers[5].response.f64.values) == 8


def raw_stream(server: LiveServer, messages: Any) -> Any:
    channel = grpc.insecure_channel(server.address)
    call = channel.stream_stream(METHOD, response_deserializer=pb.TransformStreamResponse.FromString)
    return channel, call(messages)


def test_a_request_that_is_none_is_refused_under_its_number(server: LiveServer) -> None:
    broken = b"\x08\x2a\x12\x04\x0a\x7fab"  # sequence 42, and a request cut short inside
    good = numbered(43, request(np.arange(8.0))).SerializeToString()
    channel, call = raw_stream(server, iter([broken, good]))
    with channel:
        answers = {a.sequence: a for a in call}
    assert answers[42].error.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert answers[42].error.violations[0].field == "message"
    assert answers[43].HasField("response")


def test_bytes_without_a_number_end_the_stream_after_the_others_are_answered(server: LiveServer) -> None:
    good = numbered(1, request(np.arange(80_000.0))).SerializeToString()
    channel, call = raw_stream(server, iter([good, b"\xff\xff"]))
    with channel:
        assert next(call).sequence == 1
        with pytest.raises(grpc.RpcError) as caught:
            next(call)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_answers_come_while_the_caller_still_sends(own: Any) -> None:
    sender = Sender()
    call = own.TransformStream(iter(sender))
    for i in range(5):
        sender.send(numbered(i, request(RNG.normal(size=8))))
        assert next(call).sequence == i
    sender.done()
    assert list(call) == []
    assert call.code() == grpc.StatusCode.OK


def test_an_empty_stream_is_fine(own: Any) -> None:
    call = own.TransformStream(iter([]))
    assert list(call) == []
    assert call.code() == grpc.StatusCode.OK
    assert dict(call.initial_metadata())["pkpo-server-version"]


def test_small_batches_overtake_a_big_one(own: Any) -> None:
    sender = Sender()
    call = own.TransformStream(iter(sender))
    sender.send(
        numbered(
            1, request(RNG.integers(0, 2, 4096 * 12).astype(float), 4096, 1024, variant=pb.VARIANT_PASSK_BOOTSTRAP)
        )
    )
    sender.send(numbered(2, request(np.arange(8.0))))
    sender.done()
    assert [a.sequence for a in call] == [2, 1]


def test_a_caller_that_does_not_read_stops_being_read(server: LiveServer) -> None:
    """What is in flight is bounded by the setting, what is buffered by the transport's windows."""
    size, messages = 2**17, 400
    payload = request(RNG.normal(size=size), size=16)
    sender = Sender()
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", 64 * 2**20)]
    with grpc.insecure_channel(server.address, options=options) as channel:
        call = pb_grpc.RewardTransformServiceStub(channel).TransformStream(iter(sender))
        for i in range(messages):
            sender.send(numbered(i, payload))
        sender.done()
        seen = -1
        in_flight = 0.0

        def stalled() -> bool:
            nonlocal seen, in_flight
            before, seen = seen, sender.sent
            in_flight = server.metrics()['pkpo_in_flight{method="TransformStream"}']
            assert in_flight <= 16
            return seen == before and seen > 16

        poll(stalled, "stall")
        assert sender.sent < messages / 2
        assert {a.sequence for a in call} == set(range(messages))
    poll(lambda: server.metrics()["pkpo_open_streams"] == 0, "end of the stream")


def test_cancelling_stops_the_work_and_leaves_nothing_behind(server: LiveServer, own: Any) -> None:
    before = server.metrics()[
        'pkpo_requests_total{code="CANCELLED",method="TransformStream",variant="PASSK_BOOTSTRAP"}'
    ]
    heavy = request(RNG.integers(0, 2, 2**20).astype(float), 2**12, 2**11, variant=pb.VARIANT_PASSK_BOOTSTRAP)
    sender = Sender()
    call = own.TransformStream(iter(sender))
    for i in range(6):
        sender.send(numbered(i, heavy))
    poll(lambda: server.metrics()['pkpo_in_flight{method="TransformStream"}'] == 6, "work in flight")
    call.cancel()
    sender.done()

    def over() -> bool:
        samples = server.metrics()
        cancelled = samples['pkpo_requests_total{code="CANCELLED",method="TransformStream",variant="PASSK_BOOTSTRAP"}']
        unknown = samples['pkpo_requests_total{code="CANCELLED",method="TransformStream",variant="unknown"}']
        idle = samples['pkpo_in_flight{method="TransformStream"}'] == samples["pkpo_open_streams"] == 0
        return idle and cancelled + unknown >= before + 6

    poll(over, "end of the cancelled work")
