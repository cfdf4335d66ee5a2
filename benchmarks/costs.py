"""What one worker was measured to cost: calls, connections and metric series; and how long calls take that come as
those of many training runs do.
"""

from __future__ import annotations

import multiprocessing
import re
import socket
import time
import urllib.request
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice
from queue import SimpleQueue
from typing import Any

import grpc
import numpy as np

from benchmarks.in_process import K, arrays
from benchmarks.measurement import seconds
from benchmarks.processes import Running, pkpo_server
from benchmarks.queues import Times
from benchmarks.served import TRANSFORM, request_of
from pkpo.v1 import reward_transform_pb2 as pb
from pkpo_client import Client
from pkpo_client.channel import Endpoint

CHANNELS = 8
_CURVE = re.compile(r'^pkpo_max_at_k.*run="run"')
# More than a server keeps apart, as in a large fleet.
RUN_IDS = 1000


@dataclass(frozen=True)
class Step:
    """What a training run asks for at once, in one call.

    Attributes:
        prompts: groups.
        samples: of each prompt.
    """

    prompts: int
    samples: int

    @property
    def message_bytes(self) -> int:
        """Of its rewards, and of their advantages."""
        return 8 * self.prompts * self.samples


@dataclass(frozen=True)
class Calls:
    """Calls that were made.

    Attributes:
        times: (calls,) seconds from when a call was due to its answer.
        processor: the worker's seconds a call.
    """

    times: Times
    processor: float


def calls_when_due(server: Running, step: Step, due: Times) -> Calls:
    """Makes each call when it is due, whether or not those before have been answered.

    Args:
        server: it.
        step: of every run.
        due: (calls,) seconds from the start, rising.

    Raises:
        RuntimeError: so many waited that further ones were refused: this machine is at something else.
    """
    spawning = multiprocessing.get_context("spawn")
    ready = spawning.Barrier(2)
    results, taken = spawning.Pipe(duplex=False)
    caller = spawning.Process(target=_call_when_due, args=(server.address, step, due, ready, taken))
    caller.start()
    taken.close()
    ready.wait(60)
    before = server.cpu_seconds()
    times: Times = results.recv()
    used = server.cpu_seconds() - before
    caller.join()
    if np.isnan(times).any():
        raise RuntimeError("calls were refused; this machine has too much else to do to measure on")
    return Calls(times, used / len(due))


def calls_in_a_row(server: Running, step: Step, number: int) -> Times:
    """Seconds of calls each of which is made when the one before has been answered."""
    requests = [request_of(batch) for batch in arrays(step.prompts, step.samples)]
    with Endpoint(server.address).channel() as channel:
        method: Any = channel.unary_unary(TRANSFORM)
        method(requests[0], timeout=60.0)
        calls = (partial(method, request, timeout=60.0) for request in islice(cycle(requests), number))
        return np.array([seconds(call) for call in calls])


def _call_when_due(address: str, step: Step, due: Times, ready: Any, taken: Any) -> None:
    batches = arrays(step.prompts, step.samples)
    # Two messages end to end are one with the fields of both.
    names = [pb.TransformRequest(run_id=f"run-{number}").SerializeToString() for number in range(RUN_IDS)]
    requests = [request_of(batches[number % len(batches)]) + name for number, name in enumerate(names)]
    channels = [Endpoint(address).channel() for _ in range(CHANNELS)]
    methods: list[Any] = [channel.unary_unary(TRANSFORM) for channel in channels]
    for method in methods:
        method(requests[0], timeout=60.0)
    times = np.full(len(due), np.nan)
    answers: SimpleQueue[None] = SimpleQueue()
    ready.wait(60)
    started = time.perf_counter()

    def answered(number: int, call: Any) -> None:
        if call.code() is grpc.StatusCode.OK:
            times[number] = time.perf_counter() - started - due[number]
        answers.put(None)

    for number, at in enumerate(due.tolist()):
        time.sleep(max(0.0, started + at - time.perf_counter()))
        call = methods[number % CHANNELS].future(requests[number % RUN_IDS], timeout=60.0)
        call.add_done_callback(partial(answered, number))
    for _ in due:
        answers.get()
    taken.send(times)


@dataclass(frozen=True)
class Connections:
    """What connections cost a worker.

    Attributes:
        none_bytes: of memory before there are any.
        bytes: of memory that each adds.
        processor: seconds to take one and to answer a first, small call.
    """

    none_bytes: float
    bytes: float
    processor: float


def connections(number: int) -> Connections:
    """What so many connections cost."""
    spawning = multiprocessing.get_context("spawn")
    with pkpo_server() as server:
        figures: list[tuple[float, float]] = []
        # The first few grow what all of them share.
        for some in (20, number):
            before = server.resident_bytes(), server.cpu_seconds()
            connected, over = spawning.Event(), spawning.Event()
            connecting = spawning.Process(target=_connect, args=(server.address, some, connected, over))
            connecting.start()
            connected.wait(120)
            figures.append(((server.resident_bytes() - before[0]) / some, (server.cpu_seconds() - before[1]) / some))
            over.set()
            connecting.join()
        return Connections(before[0], *figures[-1])


def _connect(address: str, number: int, connected: Any, over: Any) -> None:
    request = request_of(arrays(1, 16)[0])
    apart = [*Endpoint(address)._options(), ("grpc.use_local_subchannel_pool", 1)]
    channels = [grpc.insecure_channel(address, options=apart) for _ in range(number)]
    for channel in channels:
        method: Any = channel.unary_unary(TRANSFORM)
        method(request, timeout=60.0)
    connected.set()
    over.wait(120)


def series() -> tuple[int, int]:
    """How many metric series a pod has without runs, and how many each run adds."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pkpo_server("--metrics-port", str(port)) as server, Client(server.address, run_id="run") as client:
        address = f"http://{server.address.rpartition(':')[0]}:{port}/metrics"
        without = _scraped(address)
        # Groups large enough for every k of the curve.
        client.transform(arrays(1, 64)[0], K)
        # A run's curve is counted when there is time for it.
        while (scraped := _scraped(address)) and not any(_CURVE.search(line) for line in scraped):
            time.sleep(0.05)
        return len(without), len(scraped) - len(without)


def _scraped(address: str) -> list[str]:
    with urllib.request.urlopen(address, timeout=30) as answer:
        return [line for line in answer.read().decode().splitlines() if not line.startswith("#")]
