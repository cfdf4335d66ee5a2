"""Kinds of servers compared: threads, asyncio and uvloop, doing our work, under one client and under sixteen."""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import echo
from benchmarks.in_process import arrays
from benchmarks.measurement import Effort, seconds
from benchmarks.processes import Running, echo_server
from benchmarks.served import echo_stream, request_of
from benchmarks.table import markdown, microseconds
from pkpo_client.channel import Endpoint

SHAPES = ((1, 16), (1024, 16), (16384, 16))
CLIENTS = (1, 16)
HEADER = ("clients", "batch", "call", "server", "p50, us (stream: mean)", "p99, us", "calls/s", "server CPU a call, us")


def report(effort: Effort) -> str:
    """A table of latencies, rates and CPU."""
    rows: list[tuple[str, ...]] = []
    with tempfile.TemporaryDirectory() as folder:
        kinds: list[tuple[str, list[str]]] = [(kind, [kind, "--work"]) for kind in echo.KINDS]
        kinds.append((f"{echo.OURS}, unix socket", [echo.OURS, "--work", "--unix", str(Path(folder) / "echo")]))
        for clients in CLIENTS:
            for groups, n in SHAPES:
                calls = effort.of(max(6, 4800 // clients // (1 + groups // 256)), 2)
                for call in ("unary", "stream") if groups < SHAPES[-1][0] else ("unary",):
                    for name, (kind, *flags) in kinds:
                        with echo_server(kind, *flags) as server:
                            load = under_load(server, clients, groups, n, call, calls)
                        p99 = microseconds(load.p99) if call == "unary" else ""
                        figures = (microseconds(load.p50), p99, f"{load.rate:.0f}")
                        rows.append((str(clients), f"{groups} x {n}", call, name, *figures, microseconds(load.cpu)))
    return markdown(HEADER, rows)


@dataclass(frozen=True)
class Load:
    """What a server did under load.

    Attributes:
        p50, p99: seconds a call, as a client saw it; of a stream the mean of each client is all that is known.
        rate: calls a second.
        cpu: the server's seconds a call.
    """

    p50: float
    p99: float
    rate: float
    cpu: float


def under_load(
    server: Running, clients: int, groups: int, n: int, call: str, calls: int, method: str = echo.UNARY
) -> Load:
    """What a server does when so many clients make so many calls each.

    Args:
        server: it.
        clients: in up to four processes, each with a connection of its own.
        groups, n: of a batch.
        call: "unary" or "stream".
        calls: of each client.
        method: the unary one.
    """
    spawning = multiprocessing.get_context("spawn")
    processes = min(clients, 4)
    ready, times = spawning.Barrier(processes + 1), spawning.SimpleQueue()
    load = partial(_load, server.address, method, clients // processes, groups, n, call, calls, ready, times)
    loaders = [spawning.Process(target=load) for _ in range(processes)]
    for loader in loaders:
        loader.start()
    ready.wait(60)
    before, started = server.cpu_seconds(), time.perf_counter()
    taken = np.concatenate([times.get() for _ in loaders])
    used, elapsed = server.cpu_seconds() - before, time.perf_counter() - started
    for loader in loaders:
        loader.join()
    number = clients * calls
    p50, p99 = np.percentile(taken, (50, 99))
    return Load(float(p50), float(p99), number / elapsed, used / number)


def _load(
    address: str, method: str, clients: int, groups: int, n: int, call: str, calls: int, ready: Any, times: Any
) -> None:
    """So many clients in this process, each a thread with a connection of its own."""
    from concurrent.futures import ThreadPoolExecutor

    requests = [request_of(batch) for batch in arrays(groups, n)]
    channels = [Endpoint(address).channel() for _ in range(clients)]
    unary: list[Any] = [channel.unary_unary(method) for channel in channels]
    for each in unary:
        each(requests[0], timeout=60.0)
    ready.wait(60)
    of_channel: Callable[[int], list[float]] = partial(_calls, channels, unary, requests, call, calls)
    with ThreadPoolExecutor(clients) as pool:
        taken = [each for some in pool.map(of_channel, range(clients)) for each in some]
    times.put(np.array(taken))


def _calls(channels: Any, unary: Any, requests: list[bytes], call: str, calls: int, index: int) -> list[float]:
    if call == "unary":
        return [seconds(partial(unary[index], request, timeout=60.0)) for request in islice(cycle(requests), calls)]
    taken = seconds(partial(echo_stream, channels[index].stream_stream(echo.STREAM), requests, calls))
    return [taken / calls]
