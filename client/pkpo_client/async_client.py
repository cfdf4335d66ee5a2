"""The client for programs on an asyncio event loop."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from types import TracebackType
from typing import Any, Concatenate, ParamSpec

import grpc
import grpc.aio

from pkpo_client import codec, operations, status
from pkpo_client.async_stream import AsyncStream
from pkpo_client.binding import bound
from pkpo_client.channel import Process
from pkpo_client.codec import Calls
from pkpo_client.driving import run_async
from pkpo_client.errors import ClientClosed
from pkpo_client.operations import Plan
from pkpo_client.options import Defaults
from pkpo_client.outage import Outage
from pkpo_client.remote import GLANCE_SECONDS, NO_ANSWER, PROBE_SECONDS, Ask, Compute, Pause, Remote
from pkpo_client.results import ArrayT
from pkpo_client.work import Info, Operation, ResultT, Work

P = ParamSpec("P")


def _awaiting(
    operation: Callable[Concatenate[Defaults, P], Operation[ResultT]],
) -> Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, ResultT]]:
    async def method(self: AsyncClient, /, *args: P.args, **kwargs: P.kwargs) -> ResultT:
        return await self._run(operation(self._defaults, *args, **kwargs))

    return bound(method, operation, "AsyncClient", "{}")


def _streaming(
    plan: Callable[Concatenate[Defaults, P], Plan[ArrayT]],
) -> Callable[Concatenate[AsyncClient, P], AsyncStream[ArrayT]]:
    def method(self: AsyncClient, /, *args: P.args, **kwargs: P.kwargs) -> AsyncStream[ArrayT]:
        self._check_open()
        return AsyncStream(self, plan(self._defaults, *args, **kwargs))

    return bound(method, plan, "AsyncClient", "AsyncStream[{}]")


class AsyncClient(Remote):
    __doc__ = f"""{Remote.__doc__}
    An asynchronous client connects when it is first used and belongs to the event loop it is then used in. It is closed
    by `await close()` or by leaving its `async with` block. With `fallback="local"` batches are computed in the loop's
    default executor. It can be pickled (without `credentials`); the copy connects anew.
    """

    transform = _awaiting(operations.transform)
    transform_detailed = _awaiting(operations.transform_detailed)
    estimate = _awaiting(operations.estimate)
    server_info = _awaiting(operations.server_info)
    stream = _streaming(operations.stream)

    _connection: _Connection | None = None
    _probing: asyncio.Future[None] | None = None

    async def close(self) -> None:
        """Ends the calls under way and the connection. Closing again does nothing."""
        self._closed = True
        if self._probing is not None:
            self._probing.cancel()
            await asyncio.gather(self._probing, return_exceptions=True)
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.closing.set()
            await connection.channel.close()

    async def __aenter__(self) -> AsyncClient:
        self._check_open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def _run(self, operation: Operation[ResultT]) -> ResultT:
        self._check_open()
        started = time.monotonic()
        return await run_async(operation, lambda work: self._answer(work, work.timeout - (time.monotonic() - started)))

    async def _answer(self, work: Work, seconds: float) -> Any:
        """The answer to `work` within `seconds`."""
        return self._known(work) or await run_async(self._answering(work, seconds), self._do)

    async def _do(self, task: Ask | Pause | Compute) -> Any:
        if isinstance(task, Pause):
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._connected().closing.wait(), task.seconds)
            return None
        if isinstance(task, Compute):
            assert self._engine is not None
            return await asyncio.get_running_loop().run_in_executor(None, self._engine.answer, task.work)
        work, seconds, connection = task.work, task.seconds, self._connected()
        if seconds <= 0:
            raise self._late(work.timeout, await self._trouble(connection))
        method = codec.method(work)
        started = time.monotonic()
        try:
            call = connection.calls.unary[type(work)](
                method.request(work),
                timeout=None if seconds == math.inf else seconds,
                metadata=self._endpoint.metadata,
                wait_for_ready=task.patient,
            )
            response = await call
        except grpc.RpcError as failure:
            self._check_open()
            waited = task.waited + time.monotonic() - started
            trouble = await self._trouble(connection) if failure.code() is grpc.StatusCode.DEADLINE_EXCEEDED else None
            raise self._error(failure, waited, trouble) from failure
        except (asyncio.CancelledError, grpc.aio.UsageError):
            # What gRPC says to calls under way when the channel is closed, and to those made afterwards.
            self._check_open()
            raise
        self._learn_version(await call.initial_metadata(), await call.trailing_metadata())
        return codec.answer(work, response)

    async def _trouble(self, connection: _Connection) -> str | None:
        """What is wrong with the connection, as far as gRPC says; None where nothing is."""
        trouble = await connection.trouble(self._endpoint.metadata)
        self._check_open()
        return trouble

    def _connected(self) -> _Connection:
        connection = self._connection
        if connection is None:
            self._check_open()
            connection = self._connection = _Connection(self._endpoint.aio_channel())
        connection.check()
        return connection

    def _probe(self) -> None:
        if self._outage.may_probe():
            self._probing = asyncio.ensure_future(_probe(self._outage, self._endpoint.metadata, self._connection))


class _Connection:
    """A channel, the process and event loop it belongs to, and whether it is about to be closed."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        self.calls = Calls(channel)
        self.closing = asyncio.Event()
        self._process = Process()
        self._loop = asyncio.get_running_loop()

    def check(self) -> None:
        """Raises ClientClosed anywhere else."""
        self._process.check()
        if asyncio.get_running_loop() is not self._loop:
            raise ClientClosed("this client connected in another event loop; make one in each")

    async def trouble(self, metadata: Any) -> str | None:
        """What gRPC last saw go wrong with the connection, empty where it saw nothing; None where there is one."""
        if self.channel.get_state() is grpc.ChannelConnectivity.READY:
            return None
        glance = Info(GLANCE_SECONDS)
        request = codec.method(glance).request(glance)
        try:
            await self.calls.unary[Info](request, timeout=GLANCE_SECONDS, metadata=metadata, wait_for_ready=False)
        except grpc.RpcError as failure:
            return status.connection_failure(failure) if failure.code() in NO_ANSWER else None
        except grpc.aio.UsageError:
            return ""  # closed
        except asyncio.CancelledError:
            if not self.closing.is_set():
                raise
            return ""
        return None


async def _probe(outage: Outage, metadata: Any, connection: _Connection | None) -> None:
    answered = False
    try:
        if connection is not None:
            probe = Info(PROBE_SECONDS)
            request = codec.method(probe).request(probe)
            await connection.calls.unary[Info](request, timeout=PROBE_SECONDS, metadata=metadata)
            answered = True
    except grpc.RpcError as failure:
        answered = failure.code() not in NO_ANSWER
    finally:
        outage.probe_ended(answered)


__all__ = ["AsyncClient"]
