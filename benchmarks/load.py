"""Calls of many clients to one server, made from a process of their own.

In an open loop every call is made when it is due, whether or not those before have ended, and its time counts from
when it was due: a server that stands still is charged for every call that would have come. In a closed loop a number of
calls is always under way. Nothing is tried again; what a call came to is written down, and answers are compared with
those of a server at rest.
"""

from __future__ import annotations

import gc
import heapq
import math
import multiprocessing
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, fields
from functools import partial
from itertools import cycle
from queue import Empty, SimpleQueue
from typing import Any

import grpc
import numpy as np
import psutil
from numpy.typing import NDArray

from benchmarks.processes import Running, cpu_seconds, stolen_seconds
from benchmarks.queues import Times
from pkpo.v1 import reward_transform_pb2 as pb

SAMPLING_SECONDS = 0.1
_STARTING_SECONDS = 120.0
#: Of channels.
OPTIONS = (
    ("grpc.enable_retries", 0),
    # Channels of one process to one address would share a connection.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
)
_PUSHBACK, _DETAILS = "grpc-retry-pushback-ms", "grpc-status-details-bin"
_DUE, _KIND, _TIMES, _CODE, _PUSHBACK_SECONDS, _WRONG = 0, 1, 4, 5, 6, 7
# The interpreter hands itself to another thread so soon: an answer is seen when it comes.
_SWITCH_SECONDS = 2e-4
_TYPES = (float, np.int64, np.int64, float, float, np.int64, float, np.bool_)


@dataclass(frozen=True)
class Tenant:
    """Who calls.

    Attributes:
        target: where it finds the server.
        connections: how many it has, which its calls take in turn.
        run_ids: which its calls carry, in turn.
    """

    target: str
    connections: int
    run_ids: tuple[str, ...] = ("",)


@dataclass(frozen=True)
class Due:
    """An open loop.

    Attributes:
        seconds: (calls,) when each is made, rising.
        kind: (calls,) which message it carries.
        tenant: (calls,) whose it is.
    """

    seconds: Times
    kind: NDArray[np.int64]
    tenant: NDArray[np.int64]


@dataclass(frozen=True)
class Kept:
    """A closed loop, of one tenant.

    Attributes:
        at_once: how many calls are under way.
        seconds: how long.
        kind: (any number,) which messages they carry, in turn.
        heeding: whether a refused call is followed by the next one only when the server asked for it; else at once.
    """

    at_once: int
    seconds: float
    kind: NDArray[np.int64]
    heeding: bool


@dataclass(frozen=True)
class Calls:
    """What became of calls.

    Attributes:
        due: (calls,) seconds from the start.
        kind: (calls,) which message it was.
        tenant: (calls,) whose it was.
        late: (calls,) seconds from due to made: the caller's own delay.
        times: (calls,) seconds from due to ended.
        code: (calls,) gRPC's status, as its number.
        pushback: (calls,) seconds until it should come again; NaN where the server did not say so, in the rich status
            and to gRPC.
        wrong: (calls,) whether the answer is another than at rest.
    """

    due: Times
    kind: NDArray[np.int64]
    tenant: NDArray[np.int64]
    late: Times
    times: Times
    code: NDArray[np.int64]
    pushback: Times
    wrong: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.due)

    @classmethod
    def of_all(cls, parts: Sequence[Calls]) -> Calls:
        """Those of several times as of one."""
        return cls(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(cls)))

    def where(self, chosen: NDArray[np.bool_]) -> Calls:
        """Some of them."""
        return Calls(*(getattr(self, field.name)[chosen] for field in fields(self)))

    def between(self, begin: float, end: float) -> Calls:
        """Those that were due in this time."""
        return self.where((self.due >= begin) & (self.due < end))

    def of(self, tenant: int) -> Calls:
        """Those of one tenant."""
        return self.where(self.tenant == tenant)

    @property
    def answered(self) -> Calls:
        """Those that were answered with advantages."""
        return self.where(self.code == grpc.StatusCode.OK.value[0])

    @property
    def refused(self) -> Calls:
        """Those that were told to come again."""
        return self.where(self._told())

    @property
    def unanswered(self) -> Calls:
        """Those that were neither: their time was over, or they failed."""
        return self.where((self.code != grpc.StatusCode.OK.value[0]) & ~self._told())

    def codes(self) -> dict[str, int]:
        """How many ended with which of gRPC's statuses."""
        names = {code.value[0]: code.name for code in grpc.StatusCode}
        return {names[code]: int((self.code == code).sum()) for code in np.unique(self.code).tolist()}

    def percentile(self, percent: float) -> float:
        """Of their times; NaN where there are none."""
        return float(np.percentile(self.times, percent)) if len(self) else float("nan")

    def _told(self) -> NDArray[np.bool_]:
        # A refusal that does not say when to come again counts as none.
        told: NDArray[np.bool_] = ~np.isnan(self.pushback) & (self.code == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0])
        return told


@dataclass(frozen=True)
class Watched:
    """A server and its callers while calls were made.

    Attributes:
        calls: what became of them.
        at: (samples,) seconds from the first call's start.
        resident: (samples,) bytes of the server.
        processor: (samples,) seconds that the server has used.
        loop: (samples,) of these, those of its first thread, which runs the event loop.
        caller: (samples,) seconds that the process of the callers has used.
        stolen: (samples,) seconds of any processor that the host has kept for itself.
    """

    calls: Calls
    at: Times
    resident: Times
    processor: Times
    loop: Times
    caller: Times
    stolen: Times

    def used(self, series: Times, begin: float, end: float) -> float:
        """What a series of seconds grew by in this time."""
        return float(np.diff(np.interp([begin, end], self.at, series))[0])

    def largest(self, begin: float, end: float) -> float:
        """The most bytes of the server in this time."""
        return float(self.resident[(self.at >= begin) & (self.at < end)].max(initial=0.0))


class Callers:
    """A process that calls.

    Args:
        pipe: to it.
        process: its number.
    """

    def __init__(self, pipe: Any, process: int) -> None:
        self._pipe = pipe
        self._process = process

    def watched(
        self,
        server: Running,
        method: str,
        tenants: Sequence[Tenant],
        messages: Sequence[bytes],
        loop: Due | Kept,
        timeout: float,
    ) -> Watched:
        """Makes calls, and watches the server meanwhile.

        Args:
            server: it.
            method: the path of the call; its request has the fields of a TransformRequest.
            tenants: who calls.
            messages: what is asked for; run ids are added to them.
            loop: when to call.
            timeout: seconds from when a call is made to its deadline.

        Raises:
            EOFError: the process has ended; why is on standard error.
        """
        self._pipe.send((method, tenants, messages, loop, timeout))
        started = self._pipe.recv()
        samples: list[tuple[float, ...]] = []
        ended = False
        while not ended:
            ended = self._pipe.poll(SAMPLING_SECONDS)
            threads = {thread.id: thread.user_time + thread.system_time for thread in server.process.threads()}
            samples.append(
                (
                    time.perf_counter() - started,
                    server.resident_bytes(),
                    server.cpu_seconds(),
                    threads.get(server.process.pid, 0.0),
                    cpu_seconds(psutil.Process(self._process)),
                    stolen_seconds(),
                )
            )
        return Watched(self._pipe.recv(), *np.array(samples, dtype=float).T)


@contextmanager
def callers() -> Iterator[Callers]:
    """A process to call from, on the processors of this one."""
    spawning = multiprocessing.get_context("spawn")
    ours, theirs = spawning.Pipe()
    process = spawning.Process(target=_call_as_told, args=(theirs,))
    process.start()
    theirs.close()
    assert process.pid is not None
    try:
        yield Callers(ours, process.pid)
    finally:
        ours.close()
        process.join(_STARTING_SECONDS)


def _call_as_told(pipe: Any) -> None:
    sys.setswitchinterval(_SWITCH_SECONDS)
    with suppress(EOFError):
        while True:
            _call(pipe, *pipe.recv())


def _call(
    pipe: Any, method: str, tenants: Sequence[Tenant], messages: Sequence[bytes], loop: Due | Kept, timeout: float
) -> None:
    with ExitStack() as stack:
        channels = [
            [
                stack.enter_context(grpc.insecure_channel(tenant.target, options=OPTIONS))
                for _ in range(tenant.connections)
            ]
            for tenant in tenants
        ]
        methods: list[list[Any]] = [[channel.unary_unary(method) for channel in own] for own in channels]
        answers = [methods[0][0](message, timeout=_STARTING_SECONDS) for message in messages]
        for call in (call for own in methods for call in own):
            call(messages[0], timeout=_STARTING_SECONDS)
        gc.collect()
        gc.freeze()
        made = _Made(tenants, methods, messages, answers, timeout, time.perf_counter() + SAMPLING_SECONDS)
        pipe.send(made.started)
        if isinstance(loop, Due):
            _call_when_due(made, loop)
        else:
            _keep_calling(made, loop)
        pipe.send(made.calls())


class _Made:
    """Calls under way, and what became of others."""

    def __init__(
        self,
        tenants: Sequence[Tenant],
        methods: Sequence[Sequence[Any]],
        messages: Sequence[bytes],
        answers: Sequence[bytes],
        timeout: float,
        started: float,
    ) -> None:
        self.started = started
        self.ended: SimpleQueue[int] = SimpleQueue()
        self.rows: list[list[Any]] = []
        self._methods = [cycle(own) for own in methods]
        # Two messages end to end are one with the fields of both.
        self._names = [
            cycle([pb.TransformRequest(run_id=run_id).SerializeToString() for run_id in tenant.run_ids])
            for tenant in tenants
        ]
        self._messages = messages
        self._answers = answers
        self._timeout = timeout

    def now(self) -> float:
        """Seconds from the start."""
        return time.perf_counter() - self.started

    def make(self, due: float, kind: int, tenant: int) -> None:
        """Makes a call, whose number is in `ended` later."""
        row = [due, kind, tenant, self.now() - due, math.nan, -1, math.nan, False]
        self.rows.append(row)
        call = next(self._methods[tenant]).future(
            self._messages[kind] + next(self._names[tenant]), timeout=self._timeout
        )
        call.add_done_callback(partial(self._end, len(self.rows) - 1, row))

    def _end(self, number: int, row: list[Any], call: Any) -> None:
        row[_TIMES] = self.now() - row[_DUE]
        code = call.code()
        row[_CODE] = code.value[0]
        if code is grpc.StatusCode.OK:
            row[_WRONG] = call.result() != self._answers[row[_KIND]]
        else:
            trailers = dict(call.trailing_metadata() or ())
            if _DETAILS in trailers:
                row[_PUSHBACK_SECONDS] = float(trailers.get(_PUSHBACK, "nan")) / 1000
        self.ended.put(number)

    def calls(self) -> Calls:
        """What became of them, once all have ended."""
        columns = list(zip(*self.rows, strict=True)) or [()] * len(_TYPES)
        return Calls(*(np.array(column, dtype) for column, dtype in zip(columns, _TYPES, strict=True)))


def _call_when_due(made: _Made, loop: Due) -> None:
    for due, kind, tenant in zip(loop.seconds.tolist(), loop.kind.tolist(), loop.tenant.tolist(), strict=True):
        time.sleep(max(0.0, due - made.now()))
        made.make(due, kind, tenant)
    for _ in loop.seconds:
        made.ended.get()


def _keep_calling(made: _Made, loop: Kept) -> None:
    kinds = cycle(loop.kind.tolist())
    time.sleep(max(0.0, -made.now()))
    coming = [0.0] * loop.at_once
    under_way = 0
    while (now := made.now()) < loop.seconds or under_way:
        if now < loop.seconds and coming and coming[0] <= now:
            heapq.heappop(coming)
            made.make(now, next(kinds), 0)
            under_way += 1
            continue
        with suppress(Empty):
            row = made.rows[
                made.ended.get(timeout=max(0.0, coming[0] - now) if coming and now < loop.seconds else None)
            ]
            under_way -= 1
            pause = row[_PUSHBACK_SECONDS] if loop.heeding and row[_PUSHBACK_SECONDS] > 0 else 0.0
            heapq.heappush(coming, made.now() + pause)
