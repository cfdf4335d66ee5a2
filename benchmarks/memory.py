"""What a worker keeps."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle, islice

from benchmarks.in_process import K, arrays
from benchmarks.measurement import Effort, Ratio
from benchmarks.processes import pkpo_server
from benchmarks.table import Bar, Result
from pkpo_client import Client

MIB = 2**20


def results(effort: Effort) -> Iterator[Result]:
    """The rows of the table about memory: small and large batches in turns, over one stream."""
    first, second = effort.of(10**3, 10**2), effort.of(10**5, 10**3)
    batches = [*arrays(1, 16), *arrays(1024, 16), *arrays(64, 8)]
    with pkpo_server() as server, Client(server.address) as client:
        for _ in client.stream(islice(cycle(batches), first), K, in_flight=4):
            pass
        early = server.resident_bytes()
        for _ in client.stream(islice(cycle(batches), second - first), K, in_flight=4):
            pass
        late = server.resident_bytes()
    growth = late / early
    bar = Bar(f"resident memory of a worker after {second:,} requests", f"after {first:,}", 1.02)
    yield Result(bar, Ratio(growth, growth, growth, late, early), f"{late / MIB:.0f} MiB of {early / MIB:.0f}")
    share = late / (200 * 10**6)
    bar = Bar(f"resident memory of a worker after {second:,} requests", "200 MB", 1.0)
    yield Result(bar, Ratio(share, share, share, late, 200e6), f"{late / 1e6:.0f} MB")
