"""What the system allows a process: open files, threads, memory.

Libraries end the process without a word where they are refused one of these while they start, so all that a start takes
is asked for before they are loaded.
"""

from __future__ import annotations

import asyncio
import math
import os
import resource
import threading
import time
from typing import TYPE_CHECKING

from pkpo_server.settings import Settings

if TYPE_CHECKING:
    from pkpo_server.logs import Log

# A process that serves holds some 25 files open, and its supervisor a few for each worker.
LEAST_OPEN_FILES, OPEN_FILES_PER_WORKER = 48, 2
# Those of the health port, which are among them.
PROBING_CONNECTIONS = 12
# Of the files that callers may have, from what share in use on it is said, how often it is looked, and how often said.
WARNED_SHARE, LOOKING_SECONDS, SAYING_SECONDS = 0.9, 10.0, 60.0
# What is asked for where it is given. A connection takes some tens of kilobytes.
MOST_OPEN_FILES = 2**14
# Beside those that compute. gRPC's alone are up to 16.
LEAST_THREADS = 24
# Reserved, not used: the libraries, and for each thread a stack and a heap.
LEAST_ADDRESSES = 1280 * 2**20


class TooLittle(Exception):
    """The system allows this process less than serving takes; the text says of what, and how much it takes."""


def require(settings: Settings) -> None:
    """Sees to it that a process can serve with these settings, and asks for more open files where it may.

    Raises:
        TooLittle: it cannot.
    """
    _raise_open_files()
    least = LEAST_OPEN_FILES + OPEN_FILES_PER_WORKER * settings.workers
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if allowed < least:
        raise TooLittle(f"the limit of open files is {allowed}; must be at least {least} (ulimit -n)")
    addresses = resource.getrlimit(resource.RLIMIT_AS)[0]
    if addresses != resource.RLIM_INFINITY and addresses < LEAST_ADDRESSES:
        raise TooLittle(
            f"the limit of virtual memory is {addresses} bytes; must be at least {LEAST_ADDRESSES} (ulimit -v)"
        )
    least = LEAST_THREADS + (settings.threads or len(os.sched_getaffinity(0)))
    started = _threads_started(least)
    if started < least:
        raise TooLittle(
            f"{started} threads can be started; must be at least {least}"
            " (ulimit -u for all of this user's processes, pids.max for all of a container's)"
        )


def most_connections() -> int:
    """How many callers may be connected, so that files are left for everything else."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0] - LEAST_OPEN_FILES


def open_files() -> int:
    """How many files, connections among them, this process holds open."""
    try:
        # Linux counts them by itself from 6.2 on; to list ten thousand would hold the event loop up.
        return os.stat("/proc/self/fd").st_size or len(os.listdir("/proc/self/fd"))
    except OSError:
        # It takes one to look.
        return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


class Connections:
    """Whether the files that callers may have run short: gRPC closes what comes beyond at once, and says nothing.

    Args:
        log: where that is written.
    """

    def __init__(self, log: Log) -> None:
        self._log = log
        # Before anybody is connected.
        self._own = open_files()
        self._said = -math.inf

    def watch(self) -> None:
        """From now on looks every LOOKING_SECONDS, for as long as the running event loop goes."""
        self.look()
        asyncio.get_running_loop().call_later(LOOKING_SECONDS, self.watch)

    def look(self) -> None:
        """Looks once, and writes a warning where few are left; not again within SAYING_SECONDS."""
        held, most, now = open_files(), most_connections(), time.monotonic()
        if held - self._own < WARNED_SHARE * most or now < self._said + SAYING_SECONDS:
            return
        self._said = now
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        message = f"of {limit} files {held} are open; more than {most} connections are closed at once (ulimit -n)"
        self._log.warning("few_files", open_files=held, limit=limit, connections=most, message=message)


def open_standard_streams() -> None:
    """Opens those that the process was started without: the log would be written to the first caller instead."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free


def _raise_open_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, MOST_OPEN_FILES)), hard))


def _threads_started(wanted: int) -> int:
    """How many of so many threads can be alive at once. Tried in a process of its own: each leaves a heap behind."""
    told, tell = os.pipe()
    try:
        child = os.fork()
    except OSError:
        return 0
    else:
        if not child:
            try:
                os.write(tell, str(_started(wanted)).encode())
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        os.close(tell)
        # Nothing, where it was killed.
        return int(os.read(told, 16) or 0)
    finally:
        os.close(told)


def _started(wanted: int) -> int:
    over = threading.Event()
    # That process is itself in the place of one.
    for started in range(1, wanted):
        try:
            threading.Thread(target=over.wait, daemon=True).start()
        except RuntimeError:
            return started
    return wanted
