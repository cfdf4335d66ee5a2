"""What the process does with memory: it keeps what it has loaded, gives back what big batches leave behind, and says
when it is as large as it may be.

Python's collector looks for cycles among all objects there are. While modules and kernels are loaded there are ever
more, and next to none of them garbage; afterwards there are several hundred thousand, which stay.

The C library keeps freed memory for the next block of its size, apart for each thread: after some large batches a
process holds a hundred megabytes that nobody uses. So the largest blocks are mapped on their own, which unmaps them
when they are freed, and what lies free between smaller ones is given back when asked. Both are glibc's; elsewhere
nothing is done.
"""

from __future__ import annotations

import ctypes
import gc
import resource
import time
from pathlib import Path

_LIBRARY = ctypes.CDLL(None)
_MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD of malloc.h
# New pages must be zeroed, which makes a batch of smaller blocks a tenth slower.
OWN_MAPPING_BYTES = 8 * 2**20

_USUAL_THRESHOLDS = gc.get_threshold()
# New objects before the collector looks. Loading makes twice as many; compiling, on a machine's first start, far more.
_THRESHOLD_WHILE_LOADING = 200_000


def begin_loading() -> None:
    """Much is going to be loaded, and stays: the collector looks less often, which saves a sixth of a start."""
    gc.set_threshold(_THRESHOLD_WHILE_LOADING)


def end_loading() -> None:
    """What is there now stays: the collector never looks at it again. A full collection would stop us for 40 ms."""
    gc.freeze()
    gc.set_threshold(*_USUAL_THRESHOLDS)


def map_big_blocks() -> None:
    """From now on the largest blocks are mapped on their own; glibc would soon hand out up to 32 MiB from its heaps."""
    if hasattr(_LIBRARY, "mallopt"):
        _LIBRARY.mallopt(_MMAP_THRESHOLD, OWN_MAPPING_BYTES)


def give_back() -> None:
    """Returns to the system what is free. Takes some milliseconds, without the GIL."""
    if hasattr(_LIBRARY, "malloc_trim"):
        _LIBRARY.malloc_trim(ctypes.c_size_t(0))


# How large the process is costs about 10 us to ask. Meanwhile a fast network brings some tens of megabytes.
LOOKING_SECONDS = 0.02
# How often what is free is given back, to see whether it is only that.
_TIDYING_SECONDS = 1.0
_SHARE = 0.8
_CONTROL_GROUPS = Path("/sys/fs/cgroup")


class Ceiling:
    """How large the process may become.

    Requests are read by gRPC before it says of what size they are, as many at once as there are calls. So what is read
    can be bounded only by reading no more.

    Args:
        most: bytes; 0 where there is no ceiling.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._looked = self._tidied = 0.0
        self._reached = False

    def leave_room(self, least: int) -> None:
        """Raises the ceiling, where there is one, to so many bytes above what the process takes now."""
        if self.most:
            self.most = max(self.most, resident_bytes() + least)

    def reached(self) -> bool:
        """Whether the process is as large, as of some milliseconds ago."""
        if not self.most:
            return False
        now = time.monotonic()
        if now - self._looked >= LOOKING_SECONDS:
            self._looked = now
            self._reached = resident_bytes() >= self.most
            if self._reached and now - self._tidied >= _TIDYING_SECONDS:
                self._tidied = now
                give_back()
                self._reached = resident_bytes() >= self.most
        return self._reached


def resident_bytes() -> int:
    """How much of the process is in memory; 0 where the system does not say."""
    try:
        pages = Path("/proc/self/statm").read_text().split()[1]
    except OSError:
        return 0
    return int(pages) * resource.getpagesize()


def default_ceiling(workers: int) -> int:
    """Four fifths of what the control group of this process may take, divided among the workers; 0 without a limit."""
    try:
        own = Path("/proc/self/cgroup").read_text().partition("0::/")[2].partition("\n")[0]
    except OSError:
        own = ""
    for path in (
        _CONTROL_GROUPS / own / "memory.max",
        _CONTROL_GROUPS / "memory.max",
        _CONTROL_GROUPS / "memory/memory.limit_in_bytes",
    ):
        try:
            limit = path.read_text().strip()
        except OSError:
            continue
        # The first version says "no limit" by a number of pages that no machine has.
        if limit.isdecimal() and int(limit) < 2**60:
            return int(_SHARE * int(limit)) // workers
    return 0
