"""A stream of batches for programs that wait.

Two threads are at work while a call is open: gRPC's, which sends, and one that receives. The thread that iterates does
everything else: pulls batches, decides, decodes. Closing ends both.
"""

from __future__ import annotations

import queue
import sys
import threading
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic

import grpc

from pkpo.v1 import reward_transform_pb2 as pb
from pkpo_client.errors import PkpoError, ServerError
from pkpo_client.operations import Plan, failing
from pkpo_client.results import ArrayT, TransformResult
from pkpo_client.window import Clock, Item, Window
from pkpo_client.work import ServerLimits

if TYPE_CHECKING:
    from pkpo_client.client import Client


class Stream(Generic[ArrayT]):
    """The results of a stream, in the order of its batches: an iterator and a context manager.

    To be iterated by one thread at a time. An error is raised at the turn of its batch, and iteration can go on.
    """

    def __init__(self, client: Client, plan: Plan[ArrayT]) -> None:
        if not isinstance(plan.batches, Iterable):
            raise TypeError(
                f"batches is a {type(plan.batches).__name__}, and no iterable (asynchronous ones are AsyncClient's)"
            )
        self._client = client
        self._plan = plan
        self._batches: Iterator[Any] | None = iter(plan.batches)
        self._clock = Clock()
        self._window = Window(plan.in_flight, client.address, self._clock)
        self._call: _Call | None = None

    def __iter__(self) -> Stream[ArrayT]:
        return self

    def __next__(self) -> TransformResult[ArrayT]:
        with self._clock.going():
            while not self._window.head_is_done:
                self._receive_arrived()
                if self._client._computes_here(self._window):
                    self._drop_call()
                    self._window.start_over()
                elif self._window.overdue():
                    trouble = self._client._trouble(self._client._connected())
                    if self._client._give_up_overdue(self._window, self._clock.now(), trouble):
                        self._drop_call()
                if self._do_next() or self._window.head_is_done:
                    continue
                if self._batches is not None and self._window.has_room:
                    self._pull()
                elif len(self._window) == 0:
                    self._finish()
                    raise StopIteration
                else:
                    self._await_arrival()
        result: TransformResult[ArrayT] = self._window.take_head()
        return result

    def close(self) -> None:
        """Gives up what is under way and ends the call; iterating then ends at once. Closing again does nothing."""
        self._batches = None
        self._window = Window(self._plan.in_flight, self._client.address, self._clock)
        self._drop_call()

    def __enter__(self) -> Stream[ArrayT]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        # At the end of the interpreter threads stand still, and waiting for one would never end.
        if getattr(self, "_call", None) is not None and not sys.is_finalizing():
            self._drop_call()

    def _pull(self) -> None:
        assert self._batches is not None
        try:
            with self._clock.standing():
                batch = next(self._batches)
        except StopIteration:
            self._batches = None
            return
        except Exception as error:
            # Of the caller's own making, and raised as it is, after the results of the batches before it.
            self._batches = None
            self._window.admit(failing(error))
            return
        item = self._window.admit(self._plan.operation(batch))
        while isinstance(item.work, ServerLimits):
            self._answer(item)

    def _do_next(self) -> bool:
        """Sends one batch, or computes it here while the service is away; whether there was one."""
        item = self._window.to_send()
        if item is None:
            return False
        if self._client._outage.ongoing:
            # However long that takes, it is no time that the service had.
            with self._clock.standing():
                self._answer(item)
        else:
            if self._call is None:
                connection = self._client._connected()
                self._call = _Call(connection.calls.stream, self._client._endpoint.metadata, self._client._patient)
            self._call.send(self._window.send(item))
        return True

    def _answer(self, item: Item) -> None:
        assert item.work is not None
        try:
            answer = self._client._answer(item.work, item.deadline - self._clock.now())
        except PkpoError as error:
            item.fail(error)
        else:
            item.answer(answer)

    def _receive_arrived(self) -> None:
        while self._call is not None:
            try:
                event = self._call.events.get_nowait()
            except queue.Empty:
                return
            self._take(event)

    def _await_arrival(self) -> None:
        seconds = self._window.seconds_to_wait()
        if self._call is None:
            threading.Event().wait(seconds)
            return
        try:
            self._take(self._call.events.get(timeout=seconds))
        except queue.Empty:
            return

    def _take(self, event: pb.TransformStreamResponse | ServerError | grpc.RpcError | None) -> None:
        assert self._call is not None
        if isinstance(event, pb.TransformStreamResponse):
            if not self._call.answered:
                self._call.answered = True
                self._client._learn_version(self._call.rpc.initial_metadata())
            self._window.receive(event)
            return
        carried = self._call.metadata
        self._drop_call()
        self._client._check_open()
        if event is None or isinstance(event, ServerError):
            self._window.end(event)
        else:
            self._window.end(self._client._end_of_stream(event, carried, self._window.waited))

    def _finish(self) -> None:
        if self._call is not None:
            self._call.finish()
            self._call = None

    def _drop_call(self) -> None:
        call, self._call = self._call, None
        if call is not None:
            call.cancel()


class _Call:
    """An open call: `send` queues a message, `events` holds what came back, and at last a status (None for OK)."""

    def __init__(self, method: Any, metadata: Any, patient: bool) -> None:
        self.events: queue.SimpleQueue[pb.TransformStreamResponse | ServerError | grpc.RpcError | None]
        self.events = queue.SimpleQueue()
        self.answered = False
        self.metadata = metadata
        self._requests: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self.rpc = method(iter(self._requests.get, None), metadata=metadata, wait_for_ready=patient)
        self._receiver = threading.Thread(
            target=_receive, args=(self.rpc, self.events), name="pkpo-stream-receiver", daemon=True
        )
        self._receiver.start()

    def send(self, message: bytes) -> None:
        self._requests.put(message)

    def finish(self) -> None:
        """Ends a call of which everything was answered."""
        self._requests.put(None)
        self._receiver.join(1.0)
        self.cancel()

    def cancel(self) -> None:
        self.rpc.cancel()
        self._requests.put(None)
        self._receiver.join()


def _receive(rpc: Any, events: queue.SimpleQueue[Any]) -> None:
    try:
        for response in rpc:
            events.put(response)
    except grpc.RpcError as error:
        events.put(error)
    else:
        events.put(None)


__all__ = ["Stream"]
