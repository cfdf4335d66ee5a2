"""A served batch, against an echo of the same bytes by the same kind of server and client."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from itertools import cycle, islice
from queue import SimpleQueue
from typing import Any

import grpc
import numpy as np

from benchmarks import echo
from benchmarks.in_process import K, arrays
from benchmarks.measurement import Call, Effort, Ratio, of_rounds, seconds
from benchmarks.processes import Running, echo_server, pkpo_server
from benchmarks.table import Bar, Result
from pkpo.v1 import reward_transform_pb2 as pb
from pkpo_client import Client
from pkpo_client.channel import Endpoint
from pkpo_client.codec import transform_request
from pkpo_client.work import Batch

ECHO = f"echo of the same bytes, grpcio {echo.OURS} server and sync client"
IN_FLIGHT = 8
SERVICE = pb.DESCRIPTOR.services_by_name["RewardTransformService"].full_name
TRANSFORM, TRANSFORM_STREAM = f"/{SERVICE}/Transform", f"/{SERVICE}/TransformStream"


def results(effort: Effort) -> Iterator[Result]:
    """The rows of the table that need a server."""
    with ExitStack() as stack:
        served = stack.enter_context(pkpo_server())
        echoing = stack.enter_context(echo_server(echo.OURS))
        client = stack.enter_context(Client(served.address))
        channel = stack.enter_context(Endpoint(echoing.address).channel())
        large, small = arrays(1024, 16), arrays(1, 16)

        large_p50, large_cpu = _unary(client, channel, served, echoing, large, effort.of(40, 3), effort.of(60, 5))
        yield Result(Bar("served unary, 1024 x 16, call to returned array: p50", ECHO, 1.25), large_p50)
        stream = _stream(client, channel, large, effort.of(20, 3), effort.of(200, 20))
        yield Result(Bar("served stream, 1024 x 16, per batch", ECHO.replace("echo", "echo stream", 1), 1.25), stream)
        small_p50, small_cpu = _unary(client, channel, served, echoing, small, effort.of(40, 3), effort.of(120, 5))
        yield Result(Bar("small request, 1 x 16: p50", ECHO, 1.5), small_p50)
        own = "CPU of client and server per request beyond echo's"
        yield Result(Bar(f"{own}, 1024 x 16", "echo's CPU", 0.3), large_cpu)
        yield Result(Bar(f"{own}, 1 x 16", "echo's CPU", 0.3), small_cpu)


def request_of(batch: np.ndarray[Any, np.dtype[np.float64]]) -> bytes:
    """The message that asks for a batch's advantages."""
    groups, n = batch.shape
    return bytes(
        transform_request(
            Batch(
                timeout=30.0,
                rewards=batch.reshape(-1),
                group_sizes=n,
                number_of_groups=groups,
                variant="sloo_minus_one",
                scale="sum",
                k_policy="strict",
                k=K,
                estimate_k=(),
                seed=0,
                run_id="",
                first_group=0,
            )
        )
    )


def _unary(
    client: Client,
    channel: grpc.Channel,
    served: Running,
    echoing: Running,
    batches: list[Any],
    rounds: int,
    calls: int,
) -> tuple[Ratio, Ratio]:
    """The ratio of the medians, with the 99th percentiles as remark; and own CPU over echo's."""
    unary: Any = channel.unary_unary(echo.UNARY)
    ours: list[Call] = [partial(client.transform, batch, K) for batch in batches]
    floor: list[Call] = [partial(unary, request_of(batch), timeout=30.0) for batch in batches]
    for call in (*ours, *floor):
        call()
    times: tuple[list[float], list[float]] = ([], [])
    medians: tuple[list[float], list[float]] = ([], [])
    cpu: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for side, (every, server) in enumerate(((ours, served), (floor, echoing))):
            before = time.process_time() + server.cpu_seconds()
            taken = [seconds(call) for call in islice(cycle(every), calls)]
            cpu[side].append((time.process_time() + server.cpu_seconds() - before) / calls)
            times[side].extend(taken)
            medians[side].append(float(np.median(taken)))
    p99 = [np.percentile(side, 99) * 1e6 for side in times]
    p50 = of_rounds(*medians)
    remark = f"p50 {p50.ours * 1e6:.0f} us of {p50.floor * 1e6:.0f}, p99 {p99[0]:.0f} of {p99[1]:.0f}"
    own = [ours - of_echo for ours, of_echo in zip(*cpu, strict=True)]
    return (
        Ratio(p50.median, p50.low, p50.high, p50.ours, p50.floor, remark),
        of_rounds(own, cpu[1], f"echo {np.mean(cpu[1]) * 1e6:.0f} us"),
    )


def _stream(client: Client, channel: grpc.Channel, batches: list[Any], rounds: int, messages: int) -> Ratio:
    requests = [request_of(batch) for batch in batches]

    def ours() -> None:
        for _ in client.stream(islice(cycle(batches), messages), K, in_flight=IN_FLIGHT):
            pass

    def floor() -> None:
        echo_stream(channel.stream_stream(echo.STREAM), requests, messages)

    ours()
    floor()
    figures: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for side, call in zip(figures, (ours, floor), strict=True):
            side.append(seconds(call) / messages)
    ratio = of_rounds(*figures)
    remark = f"{ratio.ours * 1e6:.0f} us of {ratio.floor * 1e6:.0f} a batch, {IN_FLIGHT} in flight"
    return Ratio(ratio.median, ratio.low, ratio.high, ratio.ours, ratio.floor, remark)


def echo_stream(call: Callable[..., Any], requests: list[bytes], messages: int) -> None:
    """Sends so many messages over one stream, and waits for each to come back, `IN_FLIGHT` under way."""
    room: SimpleQueue[None] = SimpleQueue()
    for _ in range(IN_FLIGHT):
        room.put(None)

    def sent() -> Iterator[bytes]:
        for request in islice(cycle(requests), messages):
            room.get()
            yield request

    for _ in call(sent(), timeout=60.0):
        room.put(None)
