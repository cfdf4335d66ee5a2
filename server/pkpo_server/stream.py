"""Many batches in flight on one call, each answered under its own sequence number.

A message is read only when there is room to answer it, and its room is free again only when its answer has left: so
memory is bounded for a caller that sends faster than it reads. Small batches are answered between two reads, in order;
big ones beside each other in threads, as they come.
"""

from __future__ import annotations

import asyncio
from typing import Any

from grpc import aio

from pkpo_server import codec
from pkpo_server.exchange import STREAM_MESSAGE, Caller, Exchange, Means
from pkpo_server.refusal import Draining, Refusal


class Stream:
    """One open TransformStream call.

    Args:
        context: the call.
        means: what answering takes.
        caller: who asked.
        in_flight: how many messages are answered at once.
    """

    def __init__(self, context: Any, means: Means, caller: Caller, in_flight: int) -> None:
        self._context = context
        self._means = means
        self._caller = caller
        self._room = asyncio.Semaphore(in_flight)
        self._writing = asyncio.Lock()
        self._answering: set[asyncio.Task[None]] = set()
        self._reader: asyncio.Task[None] | None = None
        self._idle = False
        self._draining = False
        self._failure: BaseException | None = None

    async def serve(self) -> None:
        """Answers every message until the caller has no more, or the server drains.

        Raises:
            Draining: messages received are answered, and no more are read.
            InvalidRequest: a message that cannot be answered under its number, because it has none.
        """
        self._reader = asyncio.create_task(self._read())
        try:
            await asyncio.wait({self._reader})
            while self._answering and self._failure is None:
                await asyncio.wait(self._answering, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._reader.cancel()
            for task in self._answering:
                task.cancel()
            await asyncio.gather(self._reader, *self._answering, return_exceptions=True)
        if self._failure is not None:
            raise self._failure
        if not self._reader.cancelled():
            self._reader.result()
        if self._draining:
            raise Draining

    def drain(self) -> None:
        """Reads no more messages; those received are answered."""
        self._draining = True
        if self._idle and self._reader is not None:
            self._reader.cancel()

    async def _read(self) -> None:
        while not self._draining:
            self._idle = True
            await self._room.acquire()
            raw = await self._context.read()
            self._idle = False
            if raw is aio.EOF:
                return
            exchange = Exchange(self._means, self._caller, STREAM_MESSAGE, raw)
            del raw
            try:
                answer = exchange.now()
            except Refusal as refusal:
                await self._refuse(exchange, refusal)
            else:
                if answer is None:
                    task = asyncio.create_task(self._answer(exchange))
                    self._answering.add(task)
                    task.add_done_callback(self._answered)
                    continue
                await self._send(answer)
            self._room.release()

    async def _answer(self, exchange: Exchange) -> None:
        try:
            answer = await exchange.later()
        except Refusal as refusal:
            await self._refuse(exchange, refusal)
        else:
            await self._send(answer)

    def _answered(self, task: asyncio.Task[None]) -> None:
        self._answering.discard(task)
        self._room.release()
        if not task.cancelled() and task.exception() is not None:
            self._failure = self._failure or task.exception()
            if self._reader is not None:
                self._reader.cancel()

    async def _refuse(self, exchange: Exchange, refusal: Refusal) -> None:
        if exchange.request.sequence is None:
            raise refusal
        await self._send(codec.stream_error(exchange.request.sequence, refusal.transform_error()))

    async def _send(self, message: bytes) -> None:
        async with self._writing:
            await self._context.write(message)
