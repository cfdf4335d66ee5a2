"""The client for programs that wait: threads, scripts, most trainers."""

from __future__ import annotations

import math
import os
import threading
import time
import weakref
from collections.abc import Callable
from types import TracebackType
from typing import Any, Concatenate, ParamSpec

import grpc

from pkpo_client import codec, operations, status
from pkpo_client.binding import bound
from pkpo_client.channel import Process
from pkpo_client.codec import Calls
from pkpo_client.driving import run
from pkpo_client.errors import ClientClosed
from pkpo_client.operations import Plan
from pkpo_client.options import Defaults
from pkpo_client.outage import Outage
from pkpo_client.remote import GLANCE_SECONDS, NO_ANSWER, PROBE_SECONDS, Ask, Compute, Pause, Remote
from pkpo_client.results import ArrayT
from pkpo_client.stream import Stream
from pkpo_client.work import Info, Operation, ResultT, Work

P = ParamSpec("P")


def _waiting(
    operation: Callable[Concatenate[Defaults, P], Operation[ResultT]],
) -> Callable[Concatenate[Client, P], ResultT]:
    def method(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> ResultT:
        return self._run(operation(self._defaults, *args, **kwargs))

    return bound(method, operation, "Client", "{}")


def _streaming(
    plan: Callable[Concatenate[Defaults, P], Plan[ArrayT]],
) -> Callable[Concatenate[Client, P], Stream[ArrayT]]:
    def method(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> Stream[ArrayT]:
        self._check_open()
        return Stream(self, plan(self._defaults, *args, **kwargs))

    return bound(method, plan, "Client", "Stream[{}]")


class Client(Remote):
    __doc__ = f"""{Remote.__doc__}
    A client connects when it is first used, may be shared by threads, and is closed by `close` or by leaving its `with`
    block. It can be pickled (without `credentials`); the copy connects anew. After a fork it works in the parent, and
    in the child only if it had not connected yet.
    """

    transform = _waiting(operations.transform)
    transform_detailed = _waiting(operations.transform_detailed)
    estimate = _waiting(operations.estimate)
    server_info = _waiting(operations.server_info)
    stream = _streaming(operations.stream)

    _connection: _Connection | None = None

    def close(self) -> None:
        """Ends the calls under way and the connection. Closing again does nothing."""
        self._closed = True
        self._closing.set()
        with self._lock:
            connection, self._connection = self._connection, None
        if connection is not None:
            connection.channel.close()

    def __enter__(self) -> Client:
        self._check_open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, operation: Operation[ResultT]) -> ResultT:
        self._check_open()
        started = time.monotonic()
        return run(operation, lambda work: self._answer(work, work.timeout - (time.monotonic() - started)))

    def _answer(self, work: Work, seconds: float) -> Any:
        """The answer to `work` within `seconds`."""
        return self._known(work) or run(self._answering(work, seconds), self._do)

    def _do(self, task: Ask | Pause | Compute) -> Any:
        if isinstance(task, Pause):
            return self._closing.wait(task.seconds)
        if isinstance(task, Compute):
            assert self._engine is not None
            return self._engine.answer(task.work)
        work, seconds, connection = task.work, task.seconds, self._connected()
        if seconds <= 0:
            raise self._late(work.timeout, self._trouble(connection))
        method = codec.method(work)
        started = time.monotonic()
        try:
            response, call = connection.calls.unary[type(work)].with_call(
                method.request(work),
                timeout=None if seconds == math.inf else seconds,
                metadata=self._endpoint.metadata,
                wait_for_ready=task.patient,
            )
        except grpc.RpcError as failure:
            self._check_open()
            waited = task.waited + time.monotonic() - started
            trouble = self._trouble(connection) if failure.code() is grpc.StatusCode.DEADLINE_EXCEEDED else None
            raise self._error(failure, waited, trouble) from failure
        except ValueError:
            # gRPC's way of saying that another thread has closed the channel meanwhile.
            self._check_open()
            raise
        self._learn_version(call.initial_metadata(), call.trailing_metadata())
        return codec.answer(work, response)

    def _trouble(self, connection: _Connection) -> str | None:
        """What is wrong with the connection, as far as gRPC says; None where nothing is."""
        trouble = connection.trouble(self._endpoint.metadata)
        self._check_open()
        return trouble

    def _connected(self) -> _Connection:
        connection = self._connection
        if connection is None:
            with self._lock:
                self._check_open()
                connection = self._connection = self._connection or _Connection(self._endpoint.channel())
        connection.process.check()
        return connection

    def _probe(self) -> None:
        if not self._outage.may_probe():
            return
        try:
            probe = Info(PROBE_SECONDS)
            call = (
                self._connected()
                .calls.unary[Info]
                .future(codec.method(probe).request(probe), timeout=PROBE_SECONDS, metadata=self._endpoint.metadata)
            )
        except ClientClosed:
            self._outage.probe_ended(False)
            raise
        outage = self._outage  # and not self: a probe keeps no client alive
        call.add_done_callback(lambda done: _probe_ended(outage, done))


class _Connection:
    """A channel, and the process that made it."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.channel = channel
        self.calls = Calls(channel)
        self.process = Process()
        # An interpreter that ends while gRPC's own thread still watches the channel, as after `_is_ready`, never ends.
        weakref.finalize(self, _close, channel, self.process)

    def trouble(self, metadata: Any) -> str | None:
        """What gRPC last saw go wrong with the connection, empty where it saw nothing; None where there is one."""
        if self._is_ready():
            return None
        glance = Info(GLANCE_SECONDS)
        try:
            self.calls.unary[Info](
                codec.method(glance).request(glance), timeout=GLANCE_SECONDS, metadata=metadata, wait_for_ready=False
            )
        except grpc.RpcError as failure:
            return status.connection_failure(failure) if failure.code() in NO_ANSWER else None
        except ValueError:
            return ""  # closed
        return None

    def _is_ready(self) -> bool:
        """Whether there is a connection now."""
        # The only public way to ask is to subscribe; the state as it is arrives at once, in a thread of gRPC's.
        known = threading.Event()
        states: list[grpc.ChannelConnectivity] = []

        def told(state: grpc.ChannelConnectivity) -> None:
            states.append(state)
            known.set()

        try:
            self.channel.subscribe(told)
        except ValueError:
            return False  # closed
        try:
            known.wait(1.0)
        finally:
            self.channel.unsubscribe(told)
        return bool(states) and states[0] is grpc.ChannelConnectivity.READY


def _close(channel: grpc.Channel, process: Process) -> None:
    if os.getpid() == process.pid:
        channel.close()


def _probe_ended(outage: Outage, call: Any) -> None:
    outage.probe_ended(call.code() not in NO_ANSWER)


__all__ = ["Client"]
