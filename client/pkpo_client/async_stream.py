"""A stream of batches for programs on an asyncio event loop.

While a call is open one task of gRPC's sends and one read is pending; an asynchronous iterable of batches has one pull
pending. The task that iterates does everything else. Closing ends them all.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic

import grpc
import grpc.aio

from pkpo_client.errors import PkpoError, ServerError
from pkpo_client.operations import Plan, failing
from pkpo_client.results import ArrayT, TransformResult
from pkpo_client.window import Clock, Item, Window
from pkpo_client.work import ServerLimits

if TYPE_CHECKING:
    from pkpo_client.async_client import AsyncClient

_NO_MORE = object()


class AsyncStream(Generic[ArrayT]):
    """The results of a stream, in the order of its batches: an asynchronous iterator and context manager.

    To be iterated by one task at a time. An error is raised at the turn of its batch, and iteration can go on.
    """

    def __init__(self, client: AsyncClient, plan: Plan[ArrayT]) -> None:
        batches = plan.batches
        if not isinstance(batches, (Iterable, AsyncIterable)):
            raise TypeError(f"batches is a {type(batches).__name__}, and no iterable, asynchronous or not")
        self._client = client
        self._plan = plan
        self._batches: Iterator[Any] | AsyncIterator[Any] | None = (
            batches.__aiter__() if isinstance(batches, AsyncIterable) else iter(batches)
        )
        self._clock = Clock()
        self._window = Window(plan.in_flight, client.address, self._clock)
        self._call: _Call | None = None
        self._pulling: asyncio.Task[Any] | None = None

    def __aiter__(self) -> AsyncStream[ArrayT]:
        return self

    async def __anext__(self) -> TransformResult[ArrayT]:
        with self._clock.going():
            while not self._window.head_is_done:
                await self._receive_arrived()
                if self._client._computes_here(self._window):
                    await self._drop_call()
                    self._window.start_over()
                elif self._window.overdue():
                    trouble = await self._client._trouble(self._client._connected())
                    if self._client._give_up_overdue(self._window, self._clock.now(), trouble):
                        await self._drop_call()
                if await self._do_next() or self._window.head_is_done:
                    continue
                if await self._pull():
                    continue
                if len(self._window) == 0 and self._pulling is None:
                    await self._finish()
                    raise StopAsyncIteration
                await self._await_arrival()
        result: TransformResult[ArrayT] = self._window.take_head()
        return result

    async def close(self) -> None:
        """Gives up what is under way and ends the call; iterating then ends at once. Closing again does nothing."""
        self._batches = None
        self._window = Window(self._plan.in_flight, self._client.address, self._clock)
        pulling, self._pulling = self._pulling, None
        if pulling is not None:
            pulling.cancel()
            await asyncio.gather(pulling, return_exceptions=True)
        await self._drop_call()

    async def __aenter__(self) -> AsyncStream[ArrayT]:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def __del__(self) -> None:
        # Left in the middle of an `async for`: there is nobody to await, but what is pending can be told to stop.
        for pending in (getattr(self, "_call", None), getattr(self, "_pulling", None)):
            if pending is not None and not pending.get_loop().is_closed():
                pending.get_loop().call_soon_threadsafe(pending.cancel)

    async def _pull(self) -> bool:
        """Admits a batch or finds that there are no more; False where that has to be waited for."""
        if self._batches is None or not self._window.has_room:
            return False
        try:
            if isinstance(self._batches, AsyncIterator):
                if self._pulling is None:
                    self._pulling = asyncio.create_task(_pulled(self._batches))
                if not self._pulling.done():
                    return False
                pulling, self._pulling = self._pulling, None
                batch = pulling.result()
            else:
                with self._clock.standing():
                    batch = next(self._batches, _NO_MORE)
        except Exception as error:
            # Of the caller's own making, and raised as it is, after the results of the batches before it.
            self._batches = None
            self._window.admit(failing(error))
            return True
        if batch is _NO_MORE:
            self._batches = None
            return True
        item = self._window.admit(self._plan.operation(batch))
        while isinstance(item.work, ServerLimits):
            await self._answer(item)
        return True

    async def _do_next(self) -> bool:
        """Sends one batch, or computes it here while the service is away; whether there was one."""
        item = self._window.to_send()
        if item is None:
            return False
        if self._client._outage.ongoing:
            # However long that takes, it is no time that the service had.
            with self._clock.standing():
                await self._answer(item)
        else:
            if self._call is None:
                connection = self._client._connected()
                self._call = _Call(connection.calls.stream, self._client._endpoint.metadata, self._client._patient)
            self._call.send(self._window.send(item))
        return True

    async def _answer(self, item: Item) -> None:
        assert item.work is not None
        try:
            answer = await self._client._answer(item.work, item.deadline - self._clock.now())
        except PkpoError as error:
            item.fail(error)
        else:
            item.answer(answer)

    async def _receive_arrived(self) -> None:
        while self._call is not None and self._call.reading.done():
            try:
                message = self._call.reading.result()
            except grpc.RpcError as failure:
                await self._ended(failure)
            except asyncio.CancelledError:
                # Not of this task, which awaits nothing here: the client was closed, and with it the call.
                await self._ended(None)
            else:
                if message is grpc.aio.EOF:
                    await self._ended(None)
                    continue
                if isinstance(message, ServerError):
                    await self._drop_call()
                    self._window.end(message)
                    continue
                if not self._call.answered:
                    self._call.answered = True
                    self._client._learn_version(await self._call.rpc.initial_metadata())
                self._call.read_on()
                self._window.receive(message)

    async def _ended(self, failure: grpc.RpcError | None) -> None:
        assert self._call is not None
        # Where a call ends while a message is being sent, asyncio's gRPC says INTERNAL whatever the service said.
        unsaid = failure is not None and failure.code() is grpc.StatusCode.INTERNAL and self._call.sending
        carried = self._call.metadata
        await self._drop_call()
        self._client._check_open()
        if failure is None or unsaid:
            self._window.end(None)
        else:
            self._window.end(self._client._end_of_stream(failure, carried, self._window.waited))

    async def _await_arrival(self) -> None:
        awaited: set[asyncio.Future[Any]] = set()
        if self._call is not None:
            awaited.add(self._call.reading)
        if self._pulling is not None:
            awaited.add(self._pulling)
        seconds = self._window.seconds_to_wait()
        if awaited:
            await asyncio.wait(awaited, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        else:
            await asyncio.sleep(seconds or 0.0)

    async def _finish(self) -> None:
        call, self._call = self._call, None
        if call is not None:
            await call.finish()

    async def _drop_call(self) -> None:
        call, self._call = self._call, None
        if call is not None:
            await call.end()


class _Call:
    """An open call: `send` queues a message, `reading` is the next that comes back.

    Attributes:
        sending: whether a message is being sent, or could not be.
    """

    def __init__(self, method: Any, metadata: Any, patient: bool) -> None:
        self.answered = False
        self.sending = False
        self.metadata = metadata
        self.rpc = method(metadata=metadata, wait_for_ready=patient)
        self._requests: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._writing = asyncio.create_task(self._write())
        self.read_on()

    def get_loop(self) -> asyncio.AbstractEventLoop:
        return self._writing.get_loop()

    def read_on(self) -> None:
        self.reading: asyncio.Task[Any] = asyncio.create_task(self.rpc.read())

    def send(self, message: bytes) -> None:
        self._requests.put_nowait(message)

    async def finish(self) -> None:
        """Ends a call of which everything was answered."""
        self._requests.put_nowait(None)
        await asyncio.wait({self.reading}, timeout=1.0)
        await self.end()

    async def end(self) -> None:
        """Ends the call."""
        self.cancel()
        await asyncio.gather(self.reading, self._writing, return_exceptions=True)

    def cancel(self) -> None:
        self.rpc.cancel()
        self.reading.cancel()
        self._writing.cancel()

    async def _write(self) -> None:
        try:
            while (message := await self._requests.get()) is not None:
                self.sending = True
                await self.rpc.write(message)
                self.sending = False
            await self.rpc.done_writing()
        except (grpc.RpcError, asyncio.InvalidStateError):
            pass  # the call has ended, which is for the reader to say


async def _pulled(batches: AsyncIterator[Any]) -> Any:
    try:
        return await batches.__anext__()
    except StopAsyncIteration:
        return _NO_MORE


__all__ = ["AsyncStream"]
