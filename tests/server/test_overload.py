"""More work than there is time or room for: who is refused, how it is told, and who goes on being served."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.message import Message
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from live_server import LiveServer, poll
from pkpo import packed
from pkpo.v1 import reward_transform_pb2 as pb
from pkpo.v1 import reward_transform_pb2_grpc as pb_grpc
from pkpo_server.budget import Hold
from pkpo_server.codec import Limits
from pkpo_server.computation import Computation, Demand, Patience
from pkpo_server.exchange import ESTIMATE, STREAM_MESSAGE, TRANSFORM, Kind, Request
from pkpo_server.refusal import DeadlinePassed, Hopeless, Overloaded
from pkpo_server.settings import InvalidSettings, Settings

PUSHBACK = "grpc-retry-pushback-ms"
WAITING, HELD = "pkpo_waiting", "pkpo_held_bytes"


def long_request(groups: int, run_id: str = "") -> pb.TransformRequest:
    """About 0.05 s of work for each group."""
    request = pb.TransformRequest(variant=pb.VARIANT_PASSK_BOOTSTRAP, k=[2**10], run_id=run_id)
    request.groups.f64.CopyFrom(packed.double_values(np.random.default_rng(3).integers(0, 2, groups * 2**12)))
    request.groups.group_size = 2**12
    return request


@pytest.fixture
def single() -> Iterator[LiveServer]:
    """A server that computes one batch at a time, and knows how long that takes."""
    with LiveServer("--threads", "1") as live:
        with grpc.insecure_channel(live.address) as channel:
            pb_grpc.RewardTransformServiceStub(channel).Transform(long_request(1), timeout=60)
        yield live


@pytest.fixture
def busy() -> Iterator[threading.Event]:
    """What a thread may wait for; also where a test has failed, since Python does not end before its threads."""
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture
def stub(single: LiveServer) -> Iterator[Any]:
    with grpc.insecure_channel(single.address, options=[("grpc.enable_retries", 0)]) as channel:
        yield pb_grpc.RewardTransformServiceStub(channel)


def refused(server: LiveServer, reason: str) -> float:
    return server.metrics()[f'pkpo_refused_total{{reason="{reason}"}}']


def test_what_cannot_be_ready_in_time_is_refused_at_once_and_for_good(single: LiveServer, stub: Any) -> None:
    before = refused(single, "deadline")
    with pytest.raises(grpc.RpcError) as caught:
        stub.Transform(long_request(1800), timeout=10)
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "of the deadline are left" in caught.value.details()
    assert dict(caught.value.trailing_metadata())[PUSHBACK] == "-1", "clients are told not to try again"
    assert refused(single, "deadline") == before + 1
    assert single.metrics()[WAITING] == 0
    stub.Transform(long_request(1), timeout=60)


@pytest.mark.parametrize("policy", [pb.K_POLICY_CLAMP, pb.K_POLICY_STRICT])
def test_a_k_beyond_its_group_is_no_work(single: LiveServer, stub: Any, policy: pb.KPolicy) -> None:
    request = pb.TransformRequest(variant=pb.VARIANT_PASSK_BOOTSTRAP, k=[2**32 - 1], k_policy=policy)
    request.groups.f64.CopyFrom(packed.double_values(np.arange(16)))
    request.groups.group_size = 16
    request.estimate_k.extend([1] * 20)
    if policy == pb.K_POLICY_CLAMP:
        assert len(stub.Transform(request, timeout=10).f64.values) == 16
    else:
        with pytest.raises(grpc.RpcError) as caught:
            stub.Transform(request, timeout=10)
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_what_is_refused_for_good_moves_no_bound(busy: threading.Event) -> None:
    async def run() -> None:
        computation = Computation(1, most_bytes=2**30, most_rewards=2**30)
        small, giant = (Demand("a", "V", visits, 1, 1) for visits in (10**6, 10**12))
        for _ in range(5):
            _, hold = await computation.in_thread(small, Patience(None), lambda: time.sleep(0.01))
            hold.end()
        for _ in range(50):
            with pytest.raises(Hopeless):
                await computation.in_thread(giant, Patience(time.monotonic() + 1), int)
        calls = [asyncio.create_task(computation.in_thread(small, Patience(None), busy.wait)) for _ in range(400)]
        while not (refused := [call for call in calls if call.done()]):
            await asyncio.sleep(0.01)
        busy.set()
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert refused
        assert 100 < sum(isinstance(outcome, Overloaded) for outcome in outcomes) < 400
        computation.stop()

    asyncio.run(run())


def test_threads_that_compute_give_way_to_the_event_loop() -> None:
    """By ten, which leaves them a tenth of a processor that is short: enough is left for refusals to come in time."""

    def niceness() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    async def run() -> None:
        computation = Computation(1, most_bytes=2**20, most_rewards=2**20)
        computing, hold = await computation.in_thread(Demand("a", "V", 1, 1, 1), Patience(None), niceness)
        hold.end()
        assert computing == min(niceness() + 10, 19), "19 is the nicest there is"
        computation.stop()

    asyncio.run(run())


def test_work_whose_caller_is_gone_when_its_turn_comes_stops_nobody(busy: threading.Event) -> None:
    async def run() -> None:
        computation = Computation(1, most_bytes=2**20, most_rewards=2**20)
        demand = Demand("a", "V", 10, 10, 10)
        first = asyncio.create_task(computation.in_thread(demand, Patience(None), busy.wait))
        await asyncio.sleep(0)
        late = asyncio.create_task(computation.in_thread(demand, Patience(time.monotonic() + 0.3), int))
        last = asyncio.create_task(computation.in_thread(demand, Patience(None), lambda: "served"))
        await asyncio.sleep(0)
        assert computation.waiting == 2
        await asyncio.sleep(0.4)
        late.cancel()
        # The cancellation reaches its task only after the loop has heard of the thread, as it may happen.
        busy.set()
        time.sleep(0.2)
        (_, hold), (served, other) = await first, await last
        assert served == "served"
        hold.end()
        other.end()
        with pytest.raises((asyncio.CancelledError, DeadlinePassed)):
            await late
        assert computation.waiting == computation.held_bytes == 0
        computation.stop()

    asyncio.run(run())


def test_who_takes_no_answers_is_refused_and_others_are_not() -> None:
    async def run() -> None:
        computation = Computation(1, most_bytes=800, most_rewards=2**20)
        for _ in range(8):
            computation.answer_at_once("hog")
            computation.unread("hog", 100)
        last = computation.unread("hog", 1)
        with pytest.raises(Overloaded, match=r"801 bytes are worked out or wait .* max_bytes_in_flight = 800"):
            computation.answer_at_once("hog")
        for other in "b", "c":
            computation.answer_at_once(other)
            computation.unread(other, 100)
        with pytest.raises(Overloaded):
            computation.answer_at_once("d")  # a quarter more, and no further
        last.end()
        computation.answer_at_once("d")
        computation.stop()

    asyncio.run(run())


def test_streams_wait_in_turn_until_answers_are_taken() -> None:
    async def run() -> None:
        computation = Computation(1, most_bytes=800, most_rewards=2**20)

        async def answered(caller: str) -> Hold:
            await computation.taken(caller)
            return computation.unread(caller, 100)

        unread = [computation.unread("hog", 400) for _ in range(3)]
        waiting = [asyncio.create_task(answered("hog")) for _ in range(4)]
        await asyncio.sleep(0.01)
        other = asyncio.create_task(answered("b"))
        await asyncio.sleep(0.01)
        assert not any(task.done() for task in (*waiting, other))
        unread[0].end()
        # Who was let in and goes away at once lets the next one in.
        waiting[0].cancel()
        await asyncio.sleep(0.1)
        assert [task.done() for task in waiting] == [True, False, False, False]
        assert other.done(), "callers take turns"
        other.result().end()
        await asyncio.sleep(0.1)
        assert [task.done() for task in waiting] == [True, True, False, False]
        unread[1].end()
        await asyncio.sleep(0.1)
        assert all(task.done() for task in waiting)
        unread[2].end()
        computation.stop()

    asyncio.run(run())


def test_a_crowd_that_takes_nothing_does_not_keep_another_waiting() -> None:
    async def run() -> None:
        computation = Computation(1, most_bytes=800, most_rewards=2**20)
        computation.unread("hog", 801)
        own = computation.unread("b", 150)
        crowd = [asyncio.create_task(computation.taken("hog")) for _ in range(100)]
        await asyncio.sleep(0)
        other = asyncio.create_task(computation.taken("b"))
        await asyncio.sleep(0)
        own.end()
        await asyncio.wait_for(other, 10)
        assert not any(task.done() for task in crowd)
        for task in crowd:
            task.cancel()
        computation.stop()

    asyncio.run(run())


def test_who_is_let_in_and_says_nothing_holds_nobody_back() -> None:
    async def run() -> None:
        computation = Computation(1, most_bytes=800, most_rewards=2**20)
        hold = computation.arrived("a", 801)
        waiting = [asyncio.create_task(computation.room(tenant, 10)) for tenant in ("a", "a", "b", "c")]
        await asyncio.sleep(0.01)
        hold.end()
        await asyncio.wait_for(asyncio.gather(*waiting), 10)
        computation.stop()

    asyncio.run(run())


def test_answers_are_counted_before_they_are_there(busy: threading.Event) -> None:
    async def run() -> None:
        computation = Computation(1, most_bytes=800, most_rewards=2**20)

        def call(caller: str, queues: bool = False) -> asyncio.Task[Any]:
            demand = Demand(caller, "V", 1, 1, 1, caller, 300, queues)
            return asyncio.create_task(computation.in_thread(demand, Patience(None), busy.wait))

        calls = [call("hog") for _ in range(10)]
        waiting = [call("hog", queues=True) for _ in range(10)]
        await asyncio.sleep(0.1)
        assert [task.done() for task in calls] == [False] * 2 + [True] * 8
        assert not any(task.done() for task in waiting)
        computation.answer_at_once("other")
        for task in calls[2:]:
            with pytest.raises(Overloaded, match=r"600 bytes .*; 300 more exceed max_bytes_in_flight = 800"):
                await task
        # One who gives up while it waits leaves nothing behind.
        waiting[0].cancel()
        busy.set()
        for task in calls[:2]:
            (await task)[1].end()
        for task in waiting[1:]:
            (await task)[1].end()
        assert computation.waiting == computation.held_bytes == 0
        computation.stop()

    asyncio.run(run())


def test_who_takes_its_answers_is_not_refused_for_those_that_are_worked_out(busy: threading.Event) -> None:
    async def run() -> None:
        computation = Computation(1, most_bytes=800, most_rewards=2**20)
        demand = Demand("a", "V", 1, 1, 1, "a", 400)
        calls = [asyncio.create_task(computation.in_thread(demand, Patience(None), busy.wait)) for _ in range(2)]
        await asyncio.sleep(0.1)
        small = [computation.unread("a", 10) for _ in range(10)]
        computation.answer_at_once("a")
        unread = computation.unread("a", 1)
        with pytest.raises(Overloaded):
            computation.answer_at_once("a")
        unread.end()
        computation.answer_at_once("a")
        busy.set()
        holds = [(await call)[1] for call in calls]
        there = computation.ready("a", 400)
        with pytest.raises(Overloaded):
            computation.answer_at_once("a")
        for hold in (there, *holds, *small):
            hold.end()
        assert computation.held_bytes == 0
        computation.stop()

    asyncio.run(run())


def test_what_is_small_tells_nothing_of_its_variant() -> None:
    async def run() -> None:
        computation = Computation(1, most_bytes=2**20, most_rewards=2**20)
        expected = computation._pace.seconds("V", 10**6)
        for _ in range(20):
            demand = Demand("a", "V", 10, 1, 1)
            _, hold = await computation.in_thread(demand, Patience(None), lambda: time.sleep(1e-3))
            hold.end()
        assert computation._pace.seconds("V", 10**6) == expected
        computation.stop()

    asyncio.run(run())


@pytest.mark.parametrize("sizes", [1, 100])
def test_tenants_are_let_in_by_turns_whatever_they_ask_for(sizes: int) -> None:
    async def run() -> None:
        computation = Computation(1, most_bytes=800, most_rewards=2**20)
        hold = computation.arrived("hog", 801)
        order: list[str] = []

        async def let_in(tenant: str, size: int) -> None:
            await computation.room(tenant, size)
            order.append(tenant)

        crowd = [asyncio.create_task(let_in("hog", 1 + number % sizes)) for number in range(100)]
        await asyncio.sleep(0.01)
        other = asyncio.create_task(let_in("other", 1))
        await asyncio.sleep(0.01)
        hold.end()
        await asyncio.gather(*crowd, other)
        assert order.index("other") < 3
        computation.stop()

    asyncio.run(run())


def test_a_flood_waits_for_itself_and_another_is_let_in_beside_it(busy: threading.Event) -> None:
    async def run() -> None:
        computation = Computation(1, most_bytes=2**20, most_rewards=2**20)
        # What the work takes is told, not measured: how quick this machine is just now decides nothing here.
        computation._pace.measured("V", 100, 0.01, 0.01, finished=True)
        served: list[str] = []

        def call(tenant: str, work: Callable[[], Any]) -> asyncio.Task[Any]:
            return asyncio.create_task(computation.in_thread(Demand(tenant, "V", 100, 1, 1), Patience(None), work))

        async def outcome(task: asyncio.Task[Any]) -> bool:
            try:
                _, hold = await task
            except Overloaded:
                return False
            hold.end()
            return True

        calls = [call("flood", busy.wait)]
        calls += [call("flood", partial(served.append, "flood")) for _ in range(400)]
        await asyncio.sleep(0)
        assert 5 <= computation.waiting < 400
        assert not await outcome(call("flood", int)), "there is no turn left for more of the flood"
        other = call("other", partial(served.append, "other"))
        busy.set()
        assert await outcome(other), "and one for whoever else comes"
        accepted = sum([await outcome(each) for each in calls])
        assert 5 <= served.count("flood") == accepted - 1 < 400
        assert served.index("other") <= 1, "which does not come after what the flood has waiting"
        assert computation.waiting == computation.held_bytes == 0
        computation.stop()

    asyncio.run(run())


def test_a_flood_is_refused_in_part_and_holds_nobody_else_up(single: LiveServer, stub: Any) -> None:
    flood = [stub.Transform.future(long_request(2, "flood"), timeout=120) for _ in range(100)]
    poll(lambda: any(call.done() for call in flood), "a first answer or refusal")
    other = stub.Transform.future(long_request(2, "other"), timeout=120)
    assert other.code() is grpc.StatusCode.OK
    turned_away = [call for call in flood if call.code() is not grpc.StatusCode.OK]
    assert 0 < len(turned_away) < 100
    for call in turned_away:
        assert call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        info = error_details_pb2.RetryInfo()
        assert rpc_status.from_call(call).details[0].Unpack(info)
        assert 50 <= info.retry_delay.ToMilliseconds() == int(dict(call.trailing_metadata())[PUSHBACK]) <= 15_000
    poll(lambda: single.metrics()[WAITING] == single.metrics()[HELD] == 0, "an end of the work")
    assert refused(single, "queue") == len(turned_away)


def test_messages_of_a_stream_wait_instead(single: LiveServer, stub: Any) -> None:
    answers = list(
        stub.TransformStream(
            pb.TransformStreamRequest(sequence=i, request=long_request(1 + 9 * (i == 0), "stream")) for i in range(40)
        )
    )
    assert sorted(answer.sequence for answer in answers) == list(range(40))
    assert all(answer.WhichOneof("result") == "response" for answer in answers)


def test_messages_of_a_stream_wait_for_room_for_their_rewards() -> None:
    flags = ("--threads", "1", "--max-rewards", str(2**12), "--max-rewards-in-flight", str(2**13))
    with LiveServer(*flags) as live, grpc.insecure_channel(live.address) as channel:
        requests = (pb.TransformStreamRequest(sequence=i, request=long_request(1)) for i in range(20))
        answers = list(pb_grpc.RewardTransformServiceStub(channel).TransformStream(requests))
        assert sorted(answer.sequence for answer in answers) == list(range(20))
        assert all(answer.WhichOneof("result") == "response" for answer in answers)
        assert live.metrics()[HELD] == 0


GROUPS = {
    "one size": pb.RewardGroups(f64=pb.DoubleValues(values=[1.0, 0.0] * 6), group_size=4),
    "sizes": pb.RewardGroups(f32=pb.FloatValues(values=[1.0, 0.0] * 6), group_sizes=pb.GroupSizes(sizes=[1, 4, 7])),
    "one group": pb.RewardGroups(f64=pb.DoubleValues(values=[0.5] * 2**12), group_size=2**12),
}


@pytest.mark.parametrize("groups", GROUPS.values(), ids=GROUPS)
@pytest.mark.parametrize("estimate_k", [[], [1], range(1, 65)], ids=["none", "one", "many"])
def test_no_answer_is_larger_than_it_was_counted(groups: pb.RewardGroups, estimate_k: Sequence[int]) -> None:
    transform = pb.TransformRequest(k=[4], k_policy=pb.K_POLICY_CLAMP, estimate_k=estimate_k, groups=groups)
    asked: list[tuple[Kind, Message]] = [
        (TRANSFORM, transform),
        (STREAM_MESSAGE, pb.TransformStreamRequest(sequence=2**63, request=transform)),
    ]
    if estimate_k:
        asked.append((ESTIMATE, pb.EstimateRequest(k=estimate_k, groups=groups)))
    for kind, message in asked:
        request = Request("V")
        parsed = kind.parse(message.SerializeToString(), request)
        most = kind.answer_bytes(parsed)
        work = kind.work(parsed, Limits(2**26, 2**20, 2**16, 2**16, 2**12))
        answer = kind.encode(work.run(lambda: None), request)
        assert len(answer) <= most <= 2 * len(answer) + 128


def test_a_caller_that_gave_up_waiting_takes_no_turn(single: LiveServer, stub: Any) -> None:
    first = stub.Transform.future(long_request(20), timeout=120)
    poll(lambda: single.metrics()[HELD] > 0, "work in the only thread")
    others = [stub.Transform.future(long_request(20), timeout=120) for _ in range(2)]
    poll(lambda: single.metrics()[WAITING] == 2, "a queue")  # more may be refused, so soon after a flood
    for call in others:
        call.cancel()
    poll(lambda: single.metrics()[WAITING] == 0, "an empty queue")
    assert not first.done()
    first.cancel()
    poll(lambda: single.metrics()[HELD] == 0, "an end of the work")


def test_what_is_held_is_bounded_in_bytes_and_in_rewards() -> None:
    message = long_request(2, "greedy").ByteSize()
    two = 2 * (message + 2**8)  # or two answers, which are a little longer
    for limit, flags in (
        (message, ("--max-message-bytes", str(2 * message), "--max-bytes-in-flight", str(two))),
        (2 * 2**12, ("--max-rewards", str(2**13), "--max-rewards-in-flight", str(2**14 + 1))),
    ):
        with (
            LiveServer("--threads", "1", *flags) as live,
            grpc.insecure_channel(live.address, options=[("grpc.enable_retries", 0)]) as channel,
        ):
            stub = pb_grpc.RewardTransformServiceStub(channel)
            calls = [stub.Transform.future(long_request(2, "greedy"), timeout=120) for _ in range(6)]
            codes = [call.code() for call in calls]
            assert codes.count(grpc.StatusCode.OK) >= 2
            assert refused(live, "memory") == codes.count(grpc.StatusCode.RESOURCE_EXHAUSTED) > 0
            assert any(str(limit) in call.details() for call in calls if call.code() is not grpc.StatusCode.OK)
            assert live.metrics()[HELD] == 0


def test_a_server_that_has_grown_reads_no_more_until_calls_have_ended() -> None:
    with (
        LiveServer("--max-memory-bytes", "1") as live,
        grpc.insecure_channel(live.address, options=[("grpc.enable_retries", 0)]) as channel,
    ):
        stub = pb_grpc.RewardTransformServiceStub(channel)
        small = pb.TransformRequest(k=[2])
        small.groups.f64.values.extend([0.0, 1.0])
        small.groups.group_size = 2
        stub.Transform(small, timeout=60)
        held = threading.Event()

        def messages() -> Iterator[pb.TransformStreamRequest]:
            yield pb.TransformStreamRequest(sequence=1, request=small)
            held.wait(60)

        stream = stub.TransformStream(messages())
        assert next(stream).sequence == 1
        with pytest.raises(grpc.RpcError) as caught:
            stub.Transform(small, timeout=60)
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "max_memory_bytes" in caught.value.details()
        assert int(dict(caught.value.trailing_metadata())[PUSHBACK]) >= 50
        assert refused(live, "memory") == 1
        held.set()
        assert list(stream) == []
        poll(lambda: live.metrics()["pkpo_open_calls"] == 0, "an end of the stream")
        stub.Transform(small, timeout=60)


@pytest.mark.parametrize(
    "values",
    [
        {"max_bytes_in_flight": 2**20},
        {"max_rewards_in_flight": 100},
    ],
)
def test_what_is_held_is_no_less_than_one_request(values: dict[str, Any]) -> None:
    with pytest.raises(InvalidSettings, match="must be at least"):
        Settings(**values)
    Settings(max_message_bytes=2**20, max_rewards=100, **values)
