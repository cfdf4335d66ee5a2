"""A worker's signs of life, through a pipe to its supervisor: the first when it serves, and then one a second.

A process that is dead is noticed by its parent; one that is stopped, or whose event loop hangs, goes on to be given
connections, and its callers wait until they give it up.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress

BEAT_SECONDS = 1.0
# No batch holds the event loop up for long, but a machine that is short of processors may.
MOST_MISSED = 10


def beat(descriptor: int) -> None:
    """From now on gives a sign of life every BEAT_SECONDS, for as long as the running event loop goes.

    Args:
        descriptor: where to write, without blocking.
    """
    with suppress(OSError):
        os.write(descriptor, b"1")
    asyncio.get_running_loop().call_later(BEAT_SECONDS, beat, descriptor)


class Pulse:
    """What a supervisor notices of them; belongs to one event loop.

    Args:
        descriptor: where to read; closed when the other end is.

    Attributes:
        began: True with the first sign, False where the other end was closed before.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._missed = 0
        self._loop = asyncio.get_running_loop()
        self.began: asyncio.Future[bool] = self._loop.create_future()
        self._loop.add_reader(descriptor, self._read)

    async def stopped(self) -> float:
        """The seconds without a sign of life, once they are too many."""
        # Counted and not measured: where all processes were stopped together, nobody is to blame.
        while self._missed < MOST_MISSED:
            self._missed += 1
            await asyncio.sleep(BEAT_SECONDS)
        return self._missed * BEAT_SECONDS

    def _read(self) -> None:
        signs = os.read(self._descriptor, 2**10)
        self._missed = 0
        if not self.began.done():
            self.began.set_result(bool(signs))
        if not signs:
            self._loop.remove_reader(self._descriptor)
            os.close(self._descriptor)
