"""Where the work is done: small batches on the event loop, big ones in threads, and none longer than someone waits.

Big batches are let in by what they need: room for their bytes and rewards, a turn that comes soon, and time before
their caller's deadline. What waits is a queue in which each tenant has the same share, see `fair_queue`.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from math import inf
from typing import Any, TypeVar

from pkpo_server import memory
from pkpo_server.budget import Budget, Hold, together
from pkpo_server.demanded import Demanded
from pkpo_server.fair_queue import FairQueue
from pkpo_server.pace import Pace
from pkpo_server.refusal import CallCancelled, DeadlinePassed, Hopeless, Overloaded
from pkpo_server.wait_bound import WaitBound

_Result = TypeVar("_Result")

# Handing work to a thread and back takes about 100 us, in which some twenty thousand rewards in groups of 16 are sorted
# and weighed. Up to here the work is done at once, which holds the event loop for some tenths of a millisecond.
INLINE_VISITS = 2**17
# The bytes of a message that checking alone may hold the event loop for; as many rewards as above.
INLINE_BYTES = 8 * 2**15

# So long after a big batch its answer has left, and what it leaves behind is given back: at most so often.
TIDYING_SECONDS = 1.0

# Tenants that ask for much less than another may wait so many times longer: it is not they who flood.
LIGHT_TIMES = 4
# Threads that compute are so much nicer than the event loop and gRPC's own. On a single processor, once the loop is
# late, they would else leave it less than it takes to refuse what comes: with 5, which leaves it three quarters, a
# flood that met a processor short by a tenth for a moment had refusals wait for seconds from then on.
NICER = 10
# What waits is not added up beyond this.
LONGEST_WAIT_SECONDS = 3600.0

# A caller hangs up when its deadline passes, and its clock started before ours.
HANGING_UP_SECONDS = 0.1


class Patience:
    """How long the caller of one request waits. Called between slices of the work, it ends the work when that is over.

    Args:
        deadline: on time.monotonic's clock; None where the caller set none.
    """

    __slots__ = ("_cancelled", "_deadline")

    def __init__(self, deadline: float | None) -> None:
        self._deadline = deadline
        self._cancelled = False

    def __call__(self) -> None:
        """Raises DeadlinePassed or CallCancelled when nobody waits any more."""
        if self.deadline_passed():
            raise DeadlinePassed
        if self._cancelled:
            raise CallCancelled

    def cancel(self) -> None:
        """Ends the work at its next checkpoint."""
        self._cancelled = True

    def deadline_passed(self, slack: float = 0.0) -> bool:
        """Whether the caller's deadline is over, or will be within `slack` seconds."""
        return self._deadline is not None and time.monotonic() + slack >= self._deadline

    def seconds_left(self) -> float:
        """How long the caller goes on waiting; infinity where it set no deadline."""
        return inf if self._deadline is None else max(0.0, self._deadline - time.monotonic())


@dataclass(frozen=True, slots=True)
class Demand:
    """What one request asks of the process.

    Attributes:
        tenant: who asks; each has the same share of the threads.
        variant: what is computed, as metrics name it.
        visits: about how many rewards are visited, once for each pass over them.
        rewards: how many there are.
        message_bytes: the request's size.
        caller: who is to take the answer.
        answer_bytes: no less than its size.
        queues: whether its caller sends nothing more meanwhile, so that it may wait for as long as it takes.
    """

    tenant: str
    variant: str
    visits: int
    rewards: int
    message_bytes: int
    caller: str = ""
    answer_bytes: int = 0
    queues: bool = False


@dataclass(slots=True)
class _Piece:
    demand: Demand
    patience: Patience
    work: Callable[[], Any]
    result: asyncio.Future[Any]
    hold: Hold


class Computation:
    """The threads of one process that compute big batches, and what waits for them.

    Args:
        threads: how many; core releases the GIL.
        most_bytes: of messages that wait or are computed, or whose answers wait for their callers.
        most_rewards: the same in rewards.
    """

    def __init__(self, threads: int, most_bytes: int, most_rewards: int) -> None:
        self._threads = self._free = threads
        self._pool = _started(threads)
        self._queue: FairQueue[_Piece] = FairQueue()
        self._bytes = Budget(most_bytes)
        # Answers, from when their batch is let in; and of those the ones that are there.
        self._unread = Budget(most_bytes)
        self._ready = Budget(most_bytes)
        self._rewards = Budget(most_rewards)
        self._pace = Pace()
        self._wait_bound = WaitBound()
        self._demanded = Demanded()
        self._waiting_since = inf
        self._stopped = False
        self._tidying: asyncio.TimerHandle | None = None

    @property
    def waiting(self) -> int:
        """How many batches wait for a thread."""
        return len(self._queue)

    @property
    def held_bytes(self) -> int:
        """The size of the messages that wait or are computed, or whose answers wait for their callers; or of those
        answers, where that is more."""
        return max(self._bytes.held, self._unread.held)

    def answer_at_once(self, caller: str) -> None:
        """Lets a small batch be computed on the event loop.

        Raises:
            Overloaded: callers, and this one more than a little, have not taken their answers.
        """
        if not self.takes(caller):
            raise self._not_taken(0)

    async def in_thread(self, demand: Demand, patience: Patience, work: Callable[[], _Result]) -> tuple[_Result, Hold]:
        """The result of `work`, computed beside the event loop when it is its tenant's turn, and the room of its
        message and of its answer, until that is taken.

        Raises:
            Overloaded, Hopeless: there is no room, it would wait too long, or it cannot be ready before its caller's
                deadline.
        """
        loop = asyncio.get_running_loop()
        message = self.arrived(demand.tenant, demand.message_bytes)
        try:
            if demand.queues:
                await self._room_for(demand)
            self._admit(demand, patience)
        except BaseException:
            message.end()
            raise
        # Before there is an answer: of all that is on its way, nobody might take any.
        hold = together(message, self._unread.hold(demand.caller, demand.answer_bytes))
        self._rewards.take(demand.tenant, demand.rewards)
        piece = _Piece(demand, patience, work, loop.create_future(), hold)
        if not self._queue:
            self._waiting_since = time.monotonic()
        place = self._queue.push(demand.tenant, self._pace.seconds(demand.variant, demand.visits), piece)
        self._start(loop)
        try:
            return await piece.result, hold
        except asyncio.CancelledError:
            if self._queue.remove(place):
                self._rewards.give_back(demand.tenant, demand.rewards)
                hold.end()
            elif not piece.result.cancelled():
                hold.end()  # it was ready, and nobody takes it any more
            raise
        finally:
            if self._tidying is None:
                self._tidying = loop.call_later(TIDYING_SECONDS, self._tidy)

    def arrived(self, tenant: str, message_bytes: int) -> Hold:
        """Counts a message as held by a tenant, until it is told that it is no longer.

        Raises:
            Overloaded: there is no room for it.
        """
        _let_in(self._bytes, tenant, message_bytes, "max_bytes_in_flight")
        return self._bytes.hold(tenant, message_bytes)

    def unread(self, caller: str, answer_bytes: int) -> Hold:
        """Counts an answer as not taken by its caller, until it is told that it was.

        By the caller and not by its run: who reads nothing could name a thousand runs.
        """
        return together(self._unread.hold(caller, answer_bytes), self.ready(caller, answer_bytes))

    def ready(self, caller: str, answer_bytes: int) -> Hold:
        """Counts an answer as there, of a batch that was counted as `unread` when it was let in."""
        return self._ready.hold(caller, answer_bytes)

    async def room(self, tenant: str, message_bytes: int) -> None:
        """Returns once there is room for a message of a tenant's."""
        await self._bytes.room(tenant, message_bytes)

    def takes(self, caller: str) -> bool:
        """Whether a caller takes its answers, but for a few. Those that are still worked out are not its fault."""
        return self._unread.fits(caller, 0, self._ready.little(caller))

    async def taken(self, caller: str) -> None:
        """Returns once it does."""
        await self._unread.room(caller, 0)

    def stop(self) -> None:
        """Takes no more work."""
        self._stopped = True
        if self._tidying is not None:
            self._tidying.cancel()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _not_taken(self, answer_bytes: int) -> Overloaded:
        return Overloaded(
            f"answers of {self._unread.held} bytes are worked out or wait for their callers; {answer_bytes} more exceed"
            f" max_bytes_in_flight = {self._unread.limit}",
            "memory",
        )

    async def _room_for(self, demand: Demand) -> None:
        """Returns once there is room for the rewards and for the answer."""
        while True:
            await self._rewards.room(demand.tenant, demand.rewards)
            await self._unread.room(demand.caller, demand.answer_bytes)
            if self._rewards.fits(demand.tenant, demand.rewards):
                return

    def _admit(self, demand: Demand, patience: Patience) -> None:
        _let_in(self._rewards, demand.tenant, demand.rewards, "max_rewards_in_flight")
        if not self._unread.fits(demand.caller, demand.answer_bytes):
            raise self._not_taken(demand.answer_bytes)
        left = patience.seconds_left()
        least = self._pace.least_seconds(demand.variant, demand.visits)
        if least > left:
            self._pace.doubt(demand.variant)
            raise Hopeless(f"takes at least {least:.3g} s to compute; {left:.3g} s of the deadline are left")
        usual = self._pace.seconds(demand.variant, demand.visits)
        of_processor = self._pace.processor_seconds(demand.variant, demand.visits)
        now, waiting_since = time.monotonic(), self._waiting_since if self._queue else inf
        self._demanded.ask(demand.tenant, of_processor, now)
        most = self._wait_bound.seconds(of_processor, now, waiting_since)
        if self._demanded.is_light(demand.tenant):
            most *= LIGHT_TIMES
        wait = self._queue.wait(demand.tenant, usual, self._threads * min(left, most, LONGEST_WAIT_SECONDS))
        wait /= self._threads
        if wait + least > left:
            raise Overloaded(
                f"would be ready in {wait + least:.3g} s; {left:.3g} s of the deadline are left", "queue", wait
            )
        if not demand.queues and wait > most:
            raise Overloaded(f"would wait {wait:.3g} s for a thread", "queue", wait)

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        while self._free and self._queue and not self._stopped:
            piece = self._queue.pop()
            gone = piece.result.done()
            if gone or piece.patience.deadline_passed():
                self._rewards.give_back(piece.demand.tenant, piece.demand.rewards)
                piece.hold.end()
                if not gone:
                    piece.result.set_exception(DeadlinePassed())
                continue
            self._free -= 1
            self._pool.submit(self._compute, piece, loop)

    def _compute(self, piece: _Piece, loop: asyncio.AbstractEventLoop) -> None:
        started, of_processor = time.perf_counter(), time.thread_time()
        result, error = None, None
        try:
            result = piece.work()
        except BaseException as raised:
            error = raised
        took = time.perf_counter() - started, time.thread_time() - of_processor
        # A loop that has ended has nobody left to be told.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(self._computed, piece, result, error, took)

    def _computed(self, piece: _Piece, result: Any, error: BaseException | None, took: tuple[float, float]) -> None:
        self._free += 1
        demand = piece.demand
        self._rewards.give_back(demand.tenant, demand.rewards)
        # What is small is here for the size of its message, and tells nothing of its variant.
        if demand.visits >= INLINE_VISITS and (error is None or isinstance(error, (DeadlinePassed, CallCancelled))):
            self._pace.measured(demand.variant, demand.visits, *took, finished=error is None)
        if piece.result.done():
            piece.hold.end()  # its caller is gone
            if error is not None:
                # What it was raised from holds the batch, in a circle.
                traceback.clear_frames(error.__traceback__)
        elif error is None:
            piece.result.set_result(result)
        else:
            piece.hold.end()
            piece.result.set_exception(error)
        self._start(piece.result.get_loop())

    def _tidy(self) -> None:
        self._tidying = None
        self._pool.submit(memory.give_back)


def _let_in(budget: Budget, tenant: str, amount: int, name: str) -> None:
    if not budget.fits(tenant, amount):
        raise Overloaded(
            f"{budget.held} {name.split('_')[1]} are being answered; {amount} more exceed {name} = {budget.limit}",
            "memory",
        )


def _started(threads: int) -> ThreadPoolExecutor:
    """A pool whose threads are all there; one that is started when it is needed may then be refused."""
    pool = ThreadPoolExecutor(threads, thread_name_prefix="compute", initializer=_yield_to_the_loop)
    there = threading.Barrier(threads + 1)
    try:
        for _ in range(threads):
            pool.submit(there.wait)
    except BaseException:
        there.abort()
        raise
    there.wait()
    return pool


def _yield_to_the_loop() -> None:
    """The thread that calls this gives way to the others of the process, where threads have priorities: on Linux."""
    if sys.platform == "linux":
        with suppress(OSError):
            niceness = os.getpriority(os.PRIO_PROCESS, 0)
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), niceness + NICER)


def default_threads(workers: int) -> int:
    """The CPUs this process may use, divided among the workers; at least one."""
    return max(1, len(os.sched_getaffinity(0)) // workers)
