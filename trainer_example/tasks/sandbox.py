"""Untrusted programs, run against tests in a process that can do nothing else.

Each program gets a process of its own, without the parent's environment, in which the kernel enforces

    time      of the processor (RLIMIT_CPU), and by the clock, for each test and for all of them
    memory    RLIMIT_AS
    files     Landlock: Python's own may be read, nothing else be opened, made or removed
    network   seccomp: sixty calls of the kernel are left, none of which makes a socket, a process or a thread, signals
              to others, or changes a mode, an owner or a limit

before the first line of the program is read. Where the kernel cannot, nothing runs: `SandboxUnavailable`.

What it does not do: the tests run in the program's own process, so that a program written to cheat can. The kernel
keeps what it does from getting out, not its answers honest; read some of what a policy wins with.
"""

from __future__ import annotations

import json
import os
import secrets
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

CONFINED = Path(__file__).with_name("confined.py")
READY = "ready"
_START_SECONDS = 30.0  # for Python to start on a busy machine; the program's own time counts from there


class SandboxUnavailable(RuntimeError):
    """The kernel cannot confine a program, or Python could not be started; says which."""


@dataclass(frozen=True)
class Limits:
    """What a program may use.

    Attributes:
        seconds: of the clock and of the processor, for the program and all its tests.
        test_seconds: of the clock, for each test.
        memory_bytes: of address space.
    """

    seconds: float = 10.0
    test_seconds: float = 3.0
    memory_bytes: int = 512 * 1024**2


def share_passed(program: str, tests: Sequence[str], limits: Limits = Limits()) -> float:
    """The share of tests that a program passes, from 0 to 1.

    A test passes if it runs to its end behind the program without raising. Those that did count also where a later one
    hangs, exits or eats all the memory.

    Args:
        program: source of a module; where it does not even run, no test passes.
        tests: sources of at least one test, each run in the module's own names.
        limits: of time and memory.

    Raises:
        SandboxUnavailable: the program was not run at all.
    """
    nonce = secrets.token_hex(16)
    reading, writing = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-I", str(CONFINED), str(writing)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        pass_fds=[writing],
        env={},
        cwd="/",
    )
    os.close(writing)
    try:
        assert process.stdin is not None
        assert process.stderr is not None
        order = {"nonce": nonce, "program": program, "tests": list(tests), "limits": asdict(limits)}
        try:
            process.stdin.write(json.dumps(order).encode())
            process.stdin.close()
        except BrokenPipeError:
            pass  # it is gone already; what it left says why
        most = len(READY) + 1 + len(tests) * (len(nonce) + 12)  # a program that writes more is not listened to
        reported = _lines(reading, READY, limits.seconds, most)
        if READY not in reported:
            process.kill()
            raise SandboxUnavailable(process.stderr.read().decode(errors="replace").strip() or "Python did not start")
        passed = {number for number in range(len(tests)) if f"{nonce} {number}" in reported}
        return len(passed) / len(tests)
    finally:
        process.kill()
        process.wait()
        os.close(reading)
        for pipe in (process.stdin, process.stderr):
            if pipe is not None:
                pipe.close()


def shares_passed(programs: Sequence[tuple[str, Sequence[str]]], limits: Limits = Limits()) -> list[float]:
    """`share_passed` of each program and its tests, as many at a time as there are processors."""
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return list(pool.map(lambda each: share_passed(each[0], each[1], limits), programs))


def _lines(reading: int, first: str, seconds: float, most: int) -> set[str]:
    """What comes through a pipe until its end, `most` bytes, or `seconds` after the first line."""
    received = b""
    deadline = time.monotonic() + _START_SECONDS
    started = False
    while len(received) < most and (left := deadline - time.monotonic()) > 0:
        if not select.select([reading], [], [], left)[0]:
            break
        chunk = os.read(reading, 65536)
        if not chunk:
            break
        received += chunk
        if not started and received.startswith(f"{first}\n".encode()):
            started = True
            deadline = time.monotonic() + seconds
    return set(received.decode(errors="replace").split("\n"))
