"""What the process does with memory: it keeps what it has loaded, and gives back what big batches leave behind.

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
