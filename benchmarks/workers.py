"""What more workers cost: CPU per reward under several loaded processes of clients, against one worker's."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator
from typing import Any

from benchmarks.in_process import arrays
from benchmarks.measurement import Effort, Ratio, of_rounds
from benchmarks.processes import Running, pkpo_server
from benchmarks.served import TRANSFORM_STREAM, echo_stream, request_of
from benchmarks.table import Bar, Result
from pkpo import packed
from pkpo.v1 import reward_transform_pb2 as pb
from pkpo_client.channel import Endpoint

SEQUENCE = pb.TransformStreamRequest.SEQUENCE_FIELD_NUMBER
REQUEST = pb.TransformStreamRequest.REQUEST_FIELD_NUMBER
LOADERS = 4
REWARDS = 1024 * 16


def results(effort: Effort) -> Iterator[Result]:
    """The rows of the table about workers."""
    figures: dict[int, list[float]] = {1: [], 2: [], 4: []}
    rates: dict[int, float] = {}
    for _ in range(effort.of(7, 1)):
        for workers, of_workers in figures.items():
            with pkpo_server("--workers", str(workers)) as server:
                cpu, rates[workers] = _under_load(server, effort.of(600, 10))
                of_workers.append(cpu)
    for workers in (2, 4):
        ratio = of_rounds(figures[workers], figures[1])
        far = max(ratio.median, 1 / ratio.median)
        bar = Bar(f"{workers} workers under {LOADERS} processes of clients: CPU per reward", "one worker's", 1.15)
        remark = (
            f"{ratio.median:.2f} of one worker's {ratio.floor * 1e9:.1f} ns; {rates[workers] / 1e6:.0f} M rewards/s"
        )
        yield Result(
            bar, Ratio(far, max(ratio.low, 1 / ratio.high), max(ratio.high, 1 / ratio.low), *figures_of(ratio)), remark
        )


def figures_of(ratio: Ratio) -> tuple[float, float]:
    """Ours and the floor."""
    return ratio.ours, ratio.floor


def _under_load(server: Running, batches: int) -> tuple[float, float]:
    """CPU seconds a reward, and rewards a second."""
    spawning = multiprocessing.get_context("spawn")
    ready = spawning.Barrier(LOADERS + 1)
    loaders = [spawning.Process(target=_load, args=(server.address, batches, ready)) for _ in range(LOADERS)]
    for loader in loaders:
        loader.start()
    ready.wait(60)
    before, started = server.cpu_seconds(), time.perf_counter()
    ready.wait(600)
    used, elapsed = server.cpu_seconds() - before, time.perf_counter() - started
    for loader in loaders:
        loader.join()
    rewards = LOADERS * batches * REWARDS
    return used / rewards, rewards / elapsed


def _load(address: str, batches: int, ready: multiprocessing.synchronize.Barrier) -> None:
    requests = [
        b"".join((packed.number_field(SEQUENCE, 1), *packed.message_field(REQUEST, [request_of(batch)])))
        for batch in arrays(1024, 16)
    ]
    # A connection of its own each, which the system spreads over the workers by chance. Answers are not parsed, for the
    # clients are to keep the workers busy, and not the other way round.
    with Endpoint(address).channel() as channel:
        stream: Any = channel.stream_stream(TRANSFORM_STREAM)
        echo_stream(stream, requests, 1)
        answer = pb.TransformStreamResponse.FromString(next(iter(stream(iter(requests[:1]), timeout=60.0))))
        if answer.WhichOneof("result") != "response":
            raise RuntimeError(f"refused: {answer.error.message}")
        ready.wait(60)
        echo_stream(stream, requests, batches)
        ready.wait(600)
