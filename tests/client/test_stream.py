"""Streams: pipelined, back in order, errors at their turn, and nothing lost or left behind."""

from __future__ import annotations

import asyncio
import gc
import itertools
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from live_server import LiveServer, poll
from pkpo.v1 import reward_transform_pb2 as pb
from pkpo_client import (
    AsyncClient,
    Client,
    ClientClosed,
    DeadlineExceeded,
    InvalidArgument,
    LocalClient,
    Overloaded,
    PermissionDenied,
    PkpoError,
    ServerError,
    Unavailable,
)
from pkpo_client.window import Window

RNG = np.random.default_rng(11)
ROWS = RNG.random((4, 8))


def batches(count: int) -> list[Any]:
    """Of many sizes, so that answers would come in another order if they could."""
    return [RNG.random((1 + (37 * i) % 200, 8)) for i in range(count)]


def first_rewards(message: Any) -> float:
    return float(message.request.groups.f64.values[0])


def check(results: list[Any], given: list[Any], local: LocalClient) -> None:
    assert len(results) == len(given)
    for result, rows in zip(results, given, strict=True):
        np.testing.assert_array_equal(result.advantages, local.transform(rows, 4))


def test_results_come_in_the_order_of_the_batches(flavour: Any, server: LiveServer, local: LocalClient) -> None:
    given = batches(60)
    check(flavour.stream(server.address, given, 4), given, local)


def test_batches_may_say_their_own_arguments(flavour: Any, server: LiveServer, local: LocalClient) -> None:
    ids = ["b", "a", "b", "a"]
    given = [
        {"rewards": ROWS[0, :4], "group_ids": ids, "k": 1},
        {"rewards": ROWS.astype(np.float32), "variant": "grpo", "mask": ROWS > 0.2},
        ROWS,
    ]
    first, second, third = flavour.stream(server.address, given, 4, estimate_k=[1, 2], run_id="run")
    assert first.group_ids == ("b", "a")
    np.testing.assert_array_equal(first.advantages, local.transform(ROWS[0, :4], 1, group_ids=ids))
    np.testing.assert_array_equal(
        second.advantages, local.transform(ROWS.astype(np.float32), variant="grpo", mask=ROWS > 0.2)
    )
    np.testing.assert_array_equal(third.estimates[1].values, local.estimate(ROWS, 2)[0].values)


def test_nothing_in_nothing_out(flavour: Any, server: LiveServer) -> None:
    assert flavour.stream(server.address, [], 4) == []
    (only,) = flavour.stream(server.address, [np.zeros((0, 4))], 4)
    assert only.advantages.shape == (0, 4)


def test_an_error_is_raised_at_its_turn_and_the_stream_goes_on(
    flavour: Any, server: LiveServer, local: LocalClient
) -> None:
    given: list[Any] = [ROWS, ROWS * np.nan, ROWS, {"k": 3}, ROWS, {"rewards": ROWS, "kk": 3}, ROWS[0], ROWS]
    gave = flavour.stream(server.address, given, 4)
    assert [isinstance(each, InvalidArgument) for each in gave] == [False, True, False, True, False, True, True, False]
    assert "rewards" in str(gave[3])
    assert "kk" in str(gave[5])
    check([each for each in gave if not isinstance(each, Exception)], [ROWS] * 4, local)


def test_an_error_of_the_callers_iterable_is_raised_after_what_came_before(
    flavour: Any, server: LiveServer, recording_error: type[Exception]
) -> None:
    def failing() -> Iterator[Any]:
        yield ROWS
        yield ROWS
        raise recording_error("of mine")

    gave = flavour.stream(server.address, failing(), 4)
    assert [type(each).__name__ for each in gave] == ["TransformResult", "TransformResult", "RecordingError"]


def test_local_streams_are_the_same(local: LocalClient) -> None:
    given: list[Any] = [ROWS, ROWS * np.nan, {"rewards": ROWS, "k": 2}]
    stream = local.stream(given, 4)
    np.testing.assert_array_equal(next(stream).advantages, local.transform(ROWS, 4))
    with pytest.raises(InvalidArgument):
        next(stream)
    np.testing.assert_array_equal(next(stream).advantages, local.transform(ROWS, 2))
    with pytest.raises(StopIteration):
        next(stream)
    with local.stream([ROWS] * 3, 4) as closed:
        next(closed)
    assert list(closed) == []


@pytest.mark.parametrize("in_flight", [1, 3])
def test_batches_are_pulled_only_as_far_as_needed(server: LiveServer, in_flight: int) -> None:
    pulled = 0

    def counted() -> Iterator[Any]:
        nonlocal pulled
        for _ in range(20):
            pulled += 1
            yield ROWS

    with Client(server.address) as client:
        for taken, _ in enumerate(client.stream(counted(), 4, in_flight=in_flight), start=1):
            assert pulled <= taken - 1 + in_flight
    assert pulled == 20


def test_several_batches_are_in_flight_at_once(flavour: Any, proxy: Any, local: LocalClient) -> None:
    """The proxy holds every answer back until four batches have arrived, and then answers in reverse order."""

    def reversing(requests: Iterator[Any], context: Any) -> Iterator[Any]:
        for _ in range(3):
            four = [next(requests) for _ in range(4)]
            yield from sorted(proxy.pass_on(iter(four), context), key=lambda each: -each.sequence)

    proxy.stream = reversing
    given = batches(12)
    check(flavour.stream(proxy.address, given, 4, in_flight=4), given, local)


def test_memory_of_a_batch_may_be_used_again_for_the_next(flavour: Any, proxy: Any, local: LocalClient) -> None:
    attempts = Counter[int]()

    def cut_once(requests: Iterator[Any], context: Any) -> Iterator[Any]:
        attempts["calls"] += 1
        if attempts["calls"] == 1:
            for _ in range(3):
                next(requests)
            context.abort(grpc.StatusCode.UNAVAILABLE, "cut")
        yield from proxy.pass_on(requests, context)

    proxy.stream = cut_once
    buffer = np.empty((4, 8))

    def reusing() -> Iterator[Any]:
        for i in range(6):
            buffer[:] = ROWS * (i + 1)
            yield buffer

    check(flavour.stream(proxy.address, reusing(), 4), [ROWS * (i + 1) for i in range(6)], local)


def test_a_broken_stream_is_opened_again_and_only_the_unanswered_is_sent_again(
    flavour: Any, proxy: Any, local: LocalClient
) -> None:
    received: list[list[float]] = []

    def cut_after_three(requests: Iterator[Any], context: Any) -> Iterator[Any]:
        mine: list[float] = []
        received.append(mine)

        def noted() -> Iterator[Any]:
            for request in requests:
                mine.append(first_rewards(request))
                yield request

        for count, answer in enumerate(proxy.pass_on(noted(), context), start=1):
            yield answer
            if count == 3 and len(received) < 4:
                context.abort(grpc.StatusCode.UNAVAILABLE, "cut")

    proxy.stream = cut_after_three
    given = [ROWS + i for i in range(20)]
    check(flavour.stream(proxy.address, given, 4), given, local)
    firsts = [float(each[0, 0]) for each in given]
    starts = [firsts.index(each[0]) for each in received]
    # Three were answered on each of the first three calls. asyncio's gRPC may lose the last of them to the break.
    assert starts[0] == 0
    for now, later in itertools.pairwise(starts):
        assert now + (1 if flavour.asynchronous else 3) <= later <= now + 3
    assert received[3] == firsts[starts[3] :]


@pytest.mark.parametrize("ending", ["OK", "CANCELLED"])
def test_a_stream_that_the_service_ends_early_goes_on_in_another(
    flavour: Any, proxy: Any, local: LocalClient, ending: str
) -> None:
    def one_each(requests: Iterator[Any], context: Any) -> Iterator[Any]:
        yield from proxy.pass_on(iter([next(requests)]), context)
        if ending == "CANCELLED" and proxy.calls["TransformStream"] < 4:
            context.abort(grpc.StatusCode.CANCELLED, "going away")

    proxy.stream = one_each
    given = batches(4)
    check(flavour.stream(proxy.address, given, 4), given, local)
    assert proxy.calls["TransformStream"] >= 4


def test_a_server_killed_and_started_again_loses_no_batch(flavour: Any, restartable: Any, local: LocalClient) -> None:
    given = [ROWS * (i + 1) for i in range(40)]
    starting = threading.Thread(target=restartable.start)

    def killing() -> Iterator[Any]:
        for i, rows in enumerate(given):
            if i == 15:
                restartable.kill()
                starting.start()
            yield rows

    check(flavour.stream(restartable.address, killing(), 4, timeout=60), given, local)
    starting.join()


def test_an_overloaded_service_is_tried_again_after_the_time_it_says(
    flavour: Any, proxy: Any, local: LocalClient
) -> None:
    refused = Counter[float]()

    def busy(requests: Iterator[Any], context: Any) -> Iterator[Any]:
        for request in requests:
            refused[first_rewards(request)] += 1
            if refused[first_rewards(request)] <= 2:
                error = pb.TransformError(code=8, message="busy", retry_after_ms=20)
                yield pb.TransformStreamResponse(sequence=request.sequence, error=error)
            else:
                yield from proxy.pass_on(iter([request]), context)

    proxy.stream = busy
    given = [ROWS + i for i in range(5)]
    check(flavour.stream(proxy.address, given, 4), given, local)
    assert set(refused.values()) == {3}


def test_a_whole_stream_refused_for_load_is_tried_again_after_the_time_it_says(
    flavour: Any, proxy: Any, local: LocalClient
) -> None:
    def busy_twice(requests: Iterator[Any], context: Any) -> Iterator[Any]:
        if proxy.calls["TransformStream"] <= 2:
            status = status_pb2.Status(code=8, message="busy")
            status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay={"nanos": 20_000_000}))
            refusal = rpc_status.to_status(status)
            context.set_trailing_metadata([*refusal.trailing_metadata, ("grpc-retry-pushback-ms", "20")])
            context.abort(refusal.code, refusal.details)
        yield from proxy.pass_on(requests, context)

    proxy.stream = busy_twice
    given = batches(5)
    check(flavour.stream(proxy.address, given, 4), given, local)
    assert proxy.calls["TransformStream"] == 3


@pytest.mark.parametrize("used", [False, True], ids=["new client", "used client"])
def test_a_stream_that_is_not_let_in_asks_at_growing_pauses_and_says_why_it_ended(flavour: Any, used: bool) -> None:
    with LiveServer("--max-concurrent-rpcs", "2") as live, Client(live.address) as one, Client(live.address) as other:

        def ended() -> PkpoError:
            with Client(live.address) as client:
                if used:
                    client.transform(ROWS, 4)
                fill()
                with pytest.raises(PkpoError) as caught:
                    next(client.stream(itertools.repeat(ROWS), 4, timeout=2.0))
            return caught.value

        async def ended_on_an_event_loop() -> PkpoError:
            async with AsyncClient(live.address) as client:
                if used:
                    await client.transform(ROWS, 4)
                fill()
                with pytest.raises(PkpoError) as caught:
                    await client.stream(itertools.repeat(ROWS), 4, timeout=2.0).__anext__()
            return caught.value

        held = []

        def fill() -> None:
            for each in (one, other):
                held.append(each.stream(itertools.repeat(ROWS), 4, in_flight=1))
                next(held[-1])

        error = asyncio.run(ended_on_an_event_loop()) if flavour.asynchronous else ended()
        assert type(error) is Overloaded
        assert error.retry_after is not None
        assert "max_concurrent_rpcs = 2" in str(error)
        refused = sum(
            count
            for sample, count in live.metrics().items()
            if sample.startswith('pkpo_requests_total{code="RESOURCE_EXHAUSTED"')
        )
        # Pauses of at least 0.08, 0.24 and 0.72 s, and then of 1.6 s, which is over the time.
        assert 2 <= refused <= 4
        for stream in held:
            stream.close()


def test_a_batch_refused_for_load_until_its_time_is_up_says_so_too(
    flavour: Any, proxy: Any, local: LocalClient
) -> None:
    refused = Counter[float]()

    def busy_for_two(requests: Iterator[Any], context: Any) -> Iterator[Any]:
        for request in requests:
            if first_rewards(request) == 2.0:
                refused[2.0] += 1
                error = pb.TransformError(code=8, message="busy", retry_after_ms=20)
                yield pb.TransformStreamResponse(sequence=request.sequence, error=error)
            else:
                yield from proxy.pass_on(iter([request]), context)

    proxy.stream = busy_for_two
    given = [np.full((1, 3), float(i)) for i in range(5)]
    gave = flavour.stream(proxy.address, given, 2, timeout=2.0)
    assert [type(each) is Overloaded for each in gave] == [False, False, True, False, False]
    assert gave[2].retry_after == 0.02
    assert 2 <= refused[2.0] <= 4


def test_a_stream_that_must_not_come_back_does_not(flavour: Any, proxy: Any) -> None:
    def refusing(requests: Iterator[Any], context: Any) -> Iterator[Any]:
        next(requests)
        context.set_trailing_metadata([("grpc-retry-pushback-ms", "-1")])
        context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "never")
        yield

    proxy.stream = refusing
    gave = flavour.stream(proxy.address, [ROWS], 4)
    assert [type(each) for each in gave] == [Overloaded]
    assert proxy.calls["TransformStream"] == 1


def test_a_batch_without_an_answer_fails_at_its_turn_and_the_others_do_not(
    flavour: Any, proxy: Any, local: LocalClient
) -> None:
    def swallowing(requests: Iterator[Any], context: Any) -> Iterator[Any]:
        yield from proxy.pass_on((each for each in requests if first_rewards(each) != 2.0), context)

    proxy.stream = swallowing
    given = [np.full((1, 3), float(i)) for i in range(5)]
    gave = flavour.stream(proxy.address, given, 2, timeout=1.0)
    assert [isinstance(each, DeadlineExceeded) for each in gave] == [False, False, True, False, False]


def test_a_stream_that_has_fallen_silent_is_given_up_with_the_batch_it_left_unanswered(
    flavour: Any, proxy: Any, local: LocalClient
) -> None:
    def silent_at_first(requests: Iterator[Any], context: Any) -> Iterator[Any]:
        if proxy.calls["TransformStream"] > 1:
            yield from proxy.pass_on(requests, context)
        for _ in requests:
            pass

    proxy.stream = silent_at_first
    given = batches(6)
    gave = flavour.stream(proxy.address, given, 4, in_flight=2, timeout=1.0)
    assert isinstance(gave[0], DeadlineExceeded)
    check(gave[2:], given[2:], local)
    assert proxy.calls["TransformStream"] == 2


def test_a_stream_sleeps_while_it_waits_for_a_service_that_fell_silent_after_a_break(
    flavour: Any, proxy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent_after_a_break(requests: Iterator[Any], context: Any) -> Iterator[Any]:
        for _ in requests:
            if proxy.calls["TransformStream"] == 1:
                context.abort(grpc.StatusCode.UNAVAILABLE, "cut")
        yield from ()

    wakings = 0
    to_send = Window.to_send

    def counted(window: Window) -> Any:
        nonlocal wakings
        wakings += 1
        return to_send(window)

    proxy.stream = silent_after_a_break
    monkeypatch.setattr(Window, "to_send", counted)
    gave = flavour.stream(proxy.address, batches(4), 4, in_flight=4, timeout=2.0)
    assert [isinstance(each, DeadlineExceeded) for each in gave] == [True] * 4
    assert proxy.calls["TransformStream"] >= 2
    assert wakings < 200  # else many thousands


@pytest.mark.parametrize("fallback", [None, "local"])
def test_a_stream_that_is_unavailable_for_good_is_not_asked_for_again(
    flavour: Any, proxy: Any, local: LocalClient, fallback: str | None
) -> None:
    """As a call is not; and who can compute here does."""

    def refusing(requests: Iterator[Any], context: Any) -> Iterator[Any]:
        next(requests)
        context.set_trailing_metadata([("grpc-retry-pushback-ms", "-1")])
        context.abort(grpc.StatusCode.UNAVAILABLE, "never")
        yield

    proxy.stream = refusing
    gave = flavour.stream(proxy.address, [ROWS], 4, of_client={"fallback": fallback})
    if fallback:
        check(gave, [ROWS], local)
    else:
        assert [type(each) for each in gave] == [Unavailable]
    assert proxy.calls["TransformStream"] == 1


def test_a_stream_reset_by_what_stands_between_goes_on_in_another(flavour: Any, proxy: Any, local: LocalClient) -> None:
    """As nginx and Envoy reset the streams of a server that died."""

    def reset_twice(requests: Iterator[Any], context: Any) -> Iterator[Any]:
        if proxy.calls["TransformStream"] <= 2:
            next(requests)
            context.abort(grpc.StatusCode.INTERNAL, "reset")
        yield from proxy.pass_on(requests, context)

    proxy.stream = reset_twice
    given = batches(5)
    check(flavour.stream(proxy.address, given, 4), given, local)


def test_a_batch_that_breaks_every_stream_fails_and_the_others_do_not(
    flavour: Any, proxy: Any, local: LocalClient
) -> None:
    def breaking(requests: Iterator[Any], context: Any) -> Iterator[Any]:
        for request in requests:
            if first_rewards(request) == 2.0:
                context.abort(grpc.StatusCode.INTERNAL, "a fault")
            yield from proxy.pass_on(iter([request]), context)

    proxy.stream = breaking
    given = [np.full((1, 3), float(i)) for i in range(5)]
    gave = flavour.stream(proxy.address, given, 2)
    assert [isinstance(each, ServerError) for each in gave] == [False, False, True, False, False]
    assert gave[2].code == "INTERNAL"


def test_time_in_which_nobody_waits_does_not_count(server: LiveServer) -> None:
    with Client(server.address) as client:
        client.transform(ROWS, 4)
        stream = client.stream([ROWS] * 6, 4, timeout=0.5, in_flight=6)
        next(stream)
        threading.Event().wait(0.7)
        assert len(list(stream)) == 5


def test_a_refused_stream_fails_each_batch_under_way(flavour: Any, proxy: Any) -> None:
    def refusing(requests: Iterator[Any], context: Any) -> Iterator[Any]:
        next(requests)
        context.abort(grpc.StatusCode.PERMISSION_DENIED, "not you")
        yield

    proxy.stream = refusing
    gave = flavour.stream(proxy.address, [ROWS] * 5, 4)
    assert len(gave) == 5
    assert all(isinstance(each, PermissionDenied) and "not you" in str(each) for each in gave)


def test_an_answer_that_does_not_fit_its_request_is_an_error(flavour: Any, proxy: Any) -> None:
    def shortening(requests: Iterator[Any], context: Any) -> Iterator[Any]:
        for answer in proxy.pass_on(requests, context):
            del answer.response.f64.values[-1]
            yield answer

    proxy.stream = shortening
    (gave,) = flavour.stream(proxy.address, [ROWS], 4)
    assert isinstance(gave, ServerError)
    assert gave.code == "DATA_LOSS"


def test_closing_early_cancels_the_call_and_leaves_no_thread(proxy: Any, threads_as_before: Any) -> None:
    with Client(proxy.address) as client:
        client.transform(ROWS, 4)
        with threads_as_before():
            with client.stream((ROWS for _ in range(100)), 4) as stream:
                next(stream)
            assert list(stream) == []
            stream.close()
        poll(proxy.ended[0].is_set, "end of the call")


def test_leaving_a_loop_early_does_the_same(proxy: Any, threads_as_before: Any) -> None:
    with Client(proxy.address) as client:
        client.transform(ROWS, 4)
        with threads_as_before():
            for _ in client.stream((ROWS for _ in range(100)), 4):
                break
            gc.collect()
        poll(proxy.ended[0].is_set, "end of the call")


def test_a_stream_that_ended_leaves_no_thread(server: LiveServer, threads_as_before: Any) -> None:
    with threads_as_before(), Client(server.address) as client:
        assert len(list(client.stream([ROWS] * 5, 4))) == 5


def test_a_program_may_end_in_the_middle_of_a_stream(server: LiveServer) -> None:
    script = (
        "import sys, numpy as np\n"
        "from pkpo_client import Client\n"
        "client = Client(sys.argv[1])\n"
        "stream = client.stream((np.ones((2, 3)) for _ in range(100)), 2)\n"
        "next(stream)\n"
    )
    subprocess.run([sys.executable, "-c", script, server.address], check=True, timeout=60)


def test_leaving_early_leaves_no_task(proxy: Any, as_async: Any) -> None:
    async def main() -> None:
        before = asyncio.all_tasks()
        async with AsyncClient(proxy.address) as client:
            async with client.stream(as_async((ROWS for _ in range(100)), 0.001), 4) as stream:
                await stream.__anext__()
            assert [each async for each in stream] == []
            await asyncio.to_thread(poll, proxy.ended[0].is_set, "end of the call")
            async for _ in client.stream([ROWS] * 100, 4):
                break
            gc.collect()
            await asyncio.to_thread(poll, proxy.ended[1].is_set, "end of the second call")
            async for _ in client.stream(as_async([ROWS] * 100, 0.001), 4):
                break
            gc.collect()
            await asyncio.to_thread(poll, proxy.ended[2].is_set, "end of the third call")
            while asyncio.all_tasks() - before:
                await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(main(), 60))


def test_asynchronous_batches(server: LiveServer, local: LocalClient, as_async: Any) -> None:
    given = batches(20)

    async def main() -> list[Any]:
        async with AsyncClient(server.address) as client:
            return [result async for result in client.stream(as_async(given, 0.001), 4)]

    check(asyncio.run(main()), given, local)


def test_a_task_cancelled_in_a_stream_can_go_on_with_it(proxy: Any, local: LocalClient) -> None:
    may_answer = threading.Event()

    def holding(requests: Iterator[Any], context: Any) -> Iterator[Any]:
        for answer in proxy.pass_on(requests, context):
            may_answer.wait(30)
            yield answer

    proxy.stream = holding
    given = batches(5)

    async def main() -> list[Any]:
        async with AsyncClient(proxy.address) as client:
            stream = client.stream(given, 4)
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(stream.__anext__(), 0.3)
            may_answer.set()
            return [result async for result in stream]

    check(asyncio.run(main()), given, local)


def test_closing_the_client_ends_its_streams(proxy: Any) -> None:
    client = Client(proxy.address)
    stream = client.stream((ROWS for _ in range(100)), 4)
    next(stream)
    client.close()
    with pytest.raises(ClientClosed):
        list(stream)
    with pytest.raises(ClientClosed):
        client.stream([ROWS], 4)
    poll(proxy.ended[0].is_set, "end of the call")


def test_what_is_no_iterable_is_refused_at_once(server: LiveServer, local: LocalClient, as_async: Any) -> None:
    with Client(server.address) as client:
        for made in (client, local):
            with pytest.raises(TypeError, match="AsyncClient"):
                made.stream(as_async([ROWS]), 4)
    with pytest.raises(TypeError, match="iterable"):
        AsyncClient(server.address).stream(7, 4)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match="in_flight"):
        local.stream([ROWS], 4, in_flight=0)
