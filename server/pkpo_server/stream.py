"""Many batches in flight on one call, each answered under its own sequence number.

A message is read only when there is room to answer it, and its room is free again only when its answer has left: so
memory is bounded for a caller that sends faster than it reads. Small batches are answered between two reads, in order;
big ones beside each other in threads, as they come. Answers leave while the next message is read and computed.
"""

from __future__ import annotations

import asyncio
from typing import Any

from pkpo_server import codec
from pkpo_server.arrivals import Arrivals
from pkpo_server.exchange import STREAM_MESSAGE, Caller, Exchange, Means
from pkpo_server.refusal import Draining, Refusal, Unauthenticated
from pkpo_server.tokens import Tokens

# A stream that fails waits so long for the answers before to be taken.
FAILED_FLUSH_SECONDS = 1.0


class Stream:
    """One open TransformStream call.

    Args:
        context: the call.
        means: what answering takes.
        caller: who asked.
        arrivals: what is on its way to this process.
        in_flight: how many messages are answered at once.
        tokens: those that are let in; None lets everyone in.
    """

    def __init__(
        self,
        context: Any,
        means: Means,
        caller: Caller,
        arrivals: Arrivals,
        in_flight: int,
        tokens: Tokens | None = None,
    ) -> None:
        self._context = context
        self._means = means
        self._caller = caller
        self._arrivals = arrivals
        self._tokens = tokens
        self._room = asyncio.Semaphore(in_flight)
        self._answers: asyncio.Queue[tuple[bytes, Exchange] | None] = asyncio.Queue()
        self._computing: set[asyncio.Task[None]] = set()
        self._reader: asyncio.Task[None] | None = None
        self._idle = False
        self._draining = False
        self._failure: BaseException | None = None

    async def serve(self) -> None:
        """Answers every message until the caller has no more, or the server drains.

        Raises:
            Draining: messages received are answered, and no more are read.
            Overloaded: the same, for the process has become as large as it may.
            Unauthenticated: the caller's token is not known any more.
            InvalidRequest: a message that cannot be answered under its number, because it has none.
        """
        self._reader = asyncio.create_task(self._read())
        writer = asyncio.create_task(self._write())
        try:
            # The writer ends before it is told to only by failing.
            await asyncio.wait({self._reader, writer}, return_when=asyncio.FIRST_COMPLETED)
            while self._computing and self._failure is None and not writer.done():
                await asyncio.wait({*self._computing, writer}, return_when=asyncio.FIRST_COMPLETED)
            self._answers.put_nowait(None)
            failed = self._failure is not None or (self._reader.done() and not _ended_well(self._reader))
            await asyncio.wait({writer}, timeout=FAILED_FLUSH_SECONDS if failed else None)
        finally:
            for task in (self._reader, writer, *self._computing):
                task.cancel()
            await asyncio.gather(self._reader, writer, *self._computing, return_exceptions=True)
            while not self._answers.empty():
                unsent = self._answers.get_nowait()
                if unsent is not None:
                    unsent[1].sent()
        if self._failure is not None:
            raise self._failure
        for task in (writer, self._reader):
            if not task.cancelled():
                task.result()
        if self._draining:
            raise Draining

    def drain(self) -> None:
        """Reads no more messages; those received are answered."""
        self._draining = True
        if self._idle and self._reader is not None:
            self._reader.cancel()

    async def _read(self) -> None:
        tenant, received = self._caller.tenant, 0
        while not self._draining:
            self._idle = True
            await self._room.acquire()
            await self._means.computation.room(tenant, received)
            raw = await self._arrivals.message(self._context)
            self._idle = False
            if raw is None:
                return
            if self._tokens is not None:
                grant = self._tokens.grant(self._caller.metadata)
                if grant is None:
                    raise Unauthenticated(Unauthenticated.TAKEN_BACK)
                self._caller.grant = grant
            exchange = Exchange(self._means, self._caller, STREAM_MESSAGE, raw)
            received = len(raw)
            del raw
            if not self._means.computation.takes(self._caller.tenant):
                try:
                    await self._answers_are_taken(tenant, received)
                except BaseException:
                    exchange.drop()
                    raise
            try:
                answer = exchange.now()
            except Refusal as refusal:
                answer = _error(exchange, refusal)
            tenant = exchange.tenant
            if answer is not None:
                exchange.hold(answer)
                self._answers.put_nowait((answer, exchange))
                continue
            task = asyncio.create_task(self._compute(exchange))
            self._computing.add(task)
            task.add_done_callback(self._computed)

    async def _answers_are_taken(self, tenant: str, received: int) -> None:
        """Returns once they are. Raises Overloaded where there is no room for what has been received meanwhile."""
        computation = self._means.computation
        message = computation.arrived(tenant, received)
        try:
            await self._arrivals.unless_too_large(computation.taken(self._caller.tenant))
        finally:
            message.end()

    async def _compute(self, exchange: Exchange) -> None:
        try:
            answer = await exchange.later()
        except Refusal as refusal:
            answer = _error(exchange, refusal)
        except BaseException:
            exchange.sent()
            raise
        exchange.hold(answer)
        self._answers.put_nowait((answer, exchange))

    def _computed(self, task: asyncio.Task[None]) -> None:
        self._computing.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._failure = self._failure or task.exception()
            if self._reader is not None:
                self._reader.cancel()

    async def _write(self) -> None:
        while (ready := await self._answers.get()) is not None:
            answer, exchange = ready
            try:
                await self._context.write(answer)
            finally:
                exchange.sent()
            del answer, ready
            self._room.release()


def _ended_well(task: asyncio.Task[None]) -> bool:
    return task.cancelled() or task.exception() is None


def _error(exchange: Exchange, refusal: Refusal) -> bytes:
    """The answer that refuses a message. Raises the refusal where the message has no number to be answered under."""
    if exchange.request.sequence is None:
        raise refusal
    return codec.stream_error(exchange.request.sequence, refusal.transform_error())
