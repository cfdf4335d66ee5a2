"""python -m faults.beside: how long another caller's calls take beside crowds, against how long they take alone.

The server has one processor; the caller, and the crowd with what the caller leaves of it, have another. A crowd comes
once and stays, or is gone and back as fast as it can.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.synchronize import Event
from pathlib import Path

import numpy as np

from benchmarks import page
from benchmarks.table import markdown
from faults.crowds import ESTIMATES, FLOODS, GREETING, LARGE_ANSWERS, MIB, crowd, streams
from live_server import LiveServer
from pkpo_client import Client, LocalClient, PkpoError

BATCHES = tuple(np.random.default_rng(0).random(shape) for shape in ((4, 8), (256, 16), (1024, 16)))
K = 4
PAUSE_SECONDS = 0.005
TIMEOUT_SECONDS = 30.0
# A server is back to normal with so many calls that take no longer than most did before.
USUAL_CALLS = 20
PATIENCE_SECONDS = 120.0


@dataclass(frozen=True)
class Crowd:
    """Who comes.

    Attributes:
        name: of it.
        size: how many connections.
        said: by each.
        stays: whether it is there until the end, rather than gone and back as fast as it can.
        flags: of the server.
    """

    name: str
    size: int
    said: bytes
    stays: bool = True
    flags: tuple[str, ...] = ()


SMALL = ("--max-memory-bytes", str(400 * MIB))
SLOW_READERS = ("--max-bytes-in-flight", str(16 * MIB), "--max-message-bytes", str(4 * MIB))
CROWDS = (
    Crowd("nobody", 0, b""),
    Crowd("2,500 silent connections", 2500, b""),
    Crowd("2,500 connections of one stream", 2500, GREETING + streams(1)),
    Crowd("3 connections of 1,200 streams", 3, GREETING + streams(1200)),
    *(Crowd(f"{name}, from 10 connections", 10, GREETING + said) for name, said in FLOODS.items()),
    Crowd("400 calls whose answers nobody reads", 100, GREETING + ESTIMATES, flags=SMALL),
    Crowd("100 streams whose answers nobody reads", 100, GREETING + LARGE_ANSWERS, flags=SLOW_READERS),
    *(Crowd(f"{name}, again and again", 10, GREETING + said, stays=False) for name, said in FLOODS.items()),
)


@dataclass(frozen=True)
class Calls:
    """What became of another caller's calls.

    Attributes:
        seconds: of each that was answered.
        failures: what the others ended in.
        wrong: how many answers were others than computed here.
    """

    seconds: Sequence[float]
    failures: Sequence[str]
    wrong: int

    def percentile(self, share: float) -> float:
        """Milliseconds."""
        return float(np.percentile(self.seconds, share)) * 1e3 if self.seconds else float("nan")


def made(client: Client, local: LocalClient, seconds: float) -> Calls:
    """Calls one after another, with little rest between them."""
    wanted = [local.transform(batch, K).tobytes() for batch in BATCHES]
    end, taken, failures, wrong = time.perf_counter() + seconds, [], [], 0
    while time.perf_counter() < end:
        for batch, want in zip(BATCHES, wanted, strict=True):
            begun = time.perf_counter()
            try:
                wrong += client.transform(batch, K).tobytes() != want
                taken.append(time.perf_counter() - begun)
            except PkpoError as error:
                failures.append(type(error).__name__)
            time.sleep(PAUSE_SECONDS)
    return Calls(taken, failures, wrong)


def recovery(client: Client, usual: float) -> float:
    """Seconds until calls take no longer than usual; infinite where they never do.

    Args:
        client: of the caller.
        usual: seconds.
    """
    begun, well = time.perf_counter(), 0
    while time.perf_counter() < begun + PATIENCE_SECONDS:
        asked = time.perf_counter()
        try:
            client.transform(BATCHES[-1], K)
        except PkpoError:
            well = 0
        else:
            well = well + 1 if time.perf_counter() - asked <= usual else 0
        if well == 1:
            since = asked
        if well == USUAL_CALLS:
            return since - begun
    return float("inf")


@contextmanager
def there(who: Crowd, address: str) -> Iterator[None]:
    """The crowd comes, from a process of its own, and goes."""
    spawn = multiprocessing.get_context("spawn")
    begun, over = spawn.Event(), spawn.Event()
    process = spawn.Process(target=_come, args=(who, address, begun, over), daemon=True)
    process.start()
    try:
        begun.wait(60)
        yield
    finally:
        over.set()
        process.join(60)


def _come(who: Crowd, address: str, begun: Event, over: Event) -> None:
    os.nice(10)
    begun.set()
    while not over.is_set():
        with crowd(address, who.size, who.said):
            over.wait(None if who.stays else 0.1)


def row(who: Crowd, seconds: float) -> tuple[str, ...]:
    """Of the table."""
    server_on, *others = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {server_on})
    try:
        with LiveServer("--threads", "1", *who.flags) as server:
            os.sched_setaffinity(0, {(others or [server_on])[0]})
            with Client(server.address, timeout=TIMEOUT_SECONDS) as client, LocalClient() as local:
                made(client, local, seconds / 5)
                alone = made(client, local, seconds)
                with there(who, server.address):
                    beside = made(client, local, seconds if who.stays else seconds / 5)
                after = recovery(client, alone.percentile(99) / 1e3)
    finally:
        os.sched_setaffinity(0, {server_on, *others})
    return (
        who.name,
        *(f"{alone.percentile(share):.1f}" for share in (50, 99)),
        *(f"{beside.percentile(share):.1f}" for share in (50, 99, 100)),
        f"{beside.percentile(99) / alone.percentile(99):.2g}",
        f"{after:.1f}",
        f"{len(beside.seconds)}",
        f"{len(beside.failures)}" + (f" ({', '.join(sorted(set(beside.failures)))})" if beside.failures else ""),
        f"{beside.wrong}",
    )


HEADER = ("crowd", "alone: p50, ms", "p99", "beside it: p50, ms", "p99", "longest", "p99 of p99 alone",
          "as before after, s", "answered", "failed", "wrong")  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command, and returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m faults.beside", description=__doc__)
    parser.add_argument(
        "--seconds", type=float, default=15.0, help="beside what stays; a fifth beside the rest (default: %(default)s)"
    )
    parser.add_argument("--write", type=Path, metavar="PAGE", help="write the table between the markers of this page")
    arguments = parser.parse_args(argv)
    rows = []
    for who in CROWDS:
        rows.append(row(who, arguments.seconds))
        print(" | ".join(rows[-1]), file=sys.stderr, flush=True)
    told = f"{arguments.seconds:g} s of each, of what comes again and again {arguments.seconds / 5:g}."
    table = f"{page.machine()} {told}\n\n{markdown(HEADER, rows)}"
    print(table)
    if arguments.write is not None:
        arguments.write.write_text(page.with_table(arguments.write.read_text(), "crowds", table))
    return 0


if __name__ == "__main__":
    sys.exit(main())
