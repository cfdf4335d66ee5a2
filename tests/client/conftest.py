"""Real servers, the three clients behind one face, and a proxy that injects faults in front of a real server."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from concurrent import futures
from contextlib import contextmanager
from typing import Any

import grpc
import pytest

from live_server import LiveServer, poll
from pkpo.v1 import reward_transform_pb2_grpc
from pkpo_client import AsyncClient, Client, LocalClient, PkpoError


@pytest.fixture(scope="session")
def server() -> Iterator[LiveServer]:
    with LiveServer() as live:
        yield live


@pytest.fixture(scope="session")
def small_server() -> Iterator[LiveServer]:
    """A server whose messages are small enough that ordinary batches are split."""
    with LiveServer("--max-message-bytes", "65536", "--max-groups", "700", "--max-rewards", "7000") as live:
        yield live


@pytest.fixture(scope="session")
def local() -> Iterator[LocalClient]:
    with LocalClient() as client:
        yield client


@pytest.fixture
def client(server: LiveServer) -> Iterator[Client]:
    with Client(server.address) as made:
        yield made


class Restartable:
    """A server that can be killed and started again on the same port."""

    def __init__(self) -> None:
        self._live = LiveServer().__enter__()
        self.address = self._live.address

    def kill(self) -> None:
        self._live.kill()
        self._live.stop()

    def start(self) -> None:
        self._live = LiveServer("--port", self.address.rpartition(":")[2]).__enter__()

    def stop(self) -> None:
        self._live.stop()


@pytest.fixture
def restartable() -> Iterator[Restartable]:
    live = Restartable()
    try:
        yield live
    finally:
        live.stop()


Abort = Callable[[grpc.ServicerContext], Any]


class Proxy(reward_transform_pb2_grpc.RewardTransformServiceServicer):
    """Passes calls on to a real server, except for the faults it is given.

    Attributes:
        address: where it serves.
        faults: by method, what happens to the next calls instead of passing them on.
        calls: how often each method was called.
        metadata: of the last call.
        stream: what answers a stream; replace it to inject faults. `pass_on` passes one on.
        ended: of each stream, set when its call has ended.
    """

    def __init__(self, target: str) -> None:
        self._channel = grpc.insecure_channel(target)
        self._stub = reward_transform_pb2_grpc.RewardTransformServiceStub(self._channel)
        self._server = grpc.server(futures.ThreadPoolExecutor(16))
        reward_transform_pb2_grpc.add_RewardTransformServiceServicer_to_server(self, self._server)
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self.faults: dict[str, deque[Abort]] = {}
        self.calls: Counter[str] = Counter()
        self.metadata: dict[str, Any] = {}
        self.stream: Callable[[Iterator[Any], Any], Iterator[Any]] = self.pass_on
        self.ended: list[threading.Event] = []
        self._server.start()

    def stop(self) -> None:
        self._server.stop(None).wait()
        self._channel.close()

    def pass_on(self, requests: Iterator[Any], context: Any) -> Iterator[Any]:
        yield from self._stub.TransformStream(requests)

    def Transform(self, request: Any, context: Any) -> Any:  # noqa: N802
        return self._answer("Transform", request, context)

    def Estimate(self, request: Any, context: Any) -> Any:  # noqa: N802
        return self._answer("Estimate", request, context)

    def GetServerInfo(self, request: Any, context: Any) -> Any:  # noqa: N802
        return self._answer("GetServerInfo", request, context)

    def TransformStream(self, requests: Any, context: Any) -> Iterator[Any]:  # noqa: N802
        self.calls["TransformStream"] += 1
        self.metadata = dict(context.invocation_metadata())
        ended = threading.Event()
        self.ended.append(ended)
        context.add_callback(ended.set)
        yield from self.stream(requests, context)

    def _answer(self, method: str, request: Any, context: Any) -> Any:
        self.calls[method] += 1
        self.metadata = dict(context.invocation_metadata())
        faults = self.faults.get(method)
        if faults:
            return faults.popleft()(context)
        try:
            response, call = getattr(self._stub, method).with_call(request, timeout=30)
        except grpc.RpcError as error:
            context.set_trailing_metadata(error.trailing_metadata())
            context.abort(error.code(), error.details())
        context.set_trailing_metadata([m for m in call.trailing_metadata() if m.key.startswith("pkpo-")])
        return response


@pytest.fixture
def proxy(server: LiveServer) -> Iterator[Proxy]:
    made = Proxy(server.address)
    try:
        yield made
    finally:
        made.stop()


class Flavour:
    """The same calls on `Client` and on `AsyncClient`."""

    def __init__(self, asynchronous: bool) -> None:
        self.asynchronous = asynchronous

    def call(self, address: str, method: str, *args: Any, of_client: Any = None, **options: Any) -> Any:
        """What one call gives on a client made for it."""

        async def main() -> Any:
            async with AsyncClient(address, **(of_client or {})) as made:
                return await getattr(made, method)(*args, **options)

        if self.asynchronous:
            return asyncio.run(main())
        with Client(address, **(of_client or {})) as made:
            return getattr(made, method)(*args, **options)

    def stream(
        self, address: str, batches: Iterable[Any], *args: Any, of_client: Any = None, **options: Any
    ) -> list[Any]:
        """Everything a stream gives: results, and errors at their turn."""
        gave: list[Any] = []

        async def main() -> None:
            async with AsyncClient(address, **(of_client or {})) as made:
                stream = made.stream(batches, *args, **options)
                while True:
                    try:
                        gave.append(await stream.__anext__())
                    except StopAsyncIteration:
                        return
                    except (PkpoError, RecordingError) as error:
                        gave.append(error)

        if self.asynchronous:
            asyncio.run(main())
            return gave
        with Client(address, **(of_client or {})) as made:
            stream = made.stream(batches, *args, **options)
            while True:
                try:
                    gave.append(next(stream))
                except StopIteration:
                    return gave
                except (PkpoError, RecordingError) as error:
                    gave.append(error)


class RecordingError(Exception):
    """Of the caller's own iterable."""


@pytest.fixture(params=["Client", "AsyncClient"])
def flavour(request: pytest.FixtureRequest) -> Flavour:
    return Flavour(request.param == "AsyncClient")


@pytest.fixture
def recording_error() -> type[RecordingError]:
    return RecordingError


@contextmanager
def _threads_as_before() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    poll(lambda: not set(threading.enumerate()) - before, "end of the threads started", 10)


@pytest.fixture
def threads_as_before() -> Callable[[], Any]:
    return _threads_as_before


async def asynchronous(batches: Iterable[Any], seconds: float = 0.0) -> AsyncIterator[Any]:
    for batch in batches:
        await asyncio.sleep(seconds)
        yield batch


@pytest.fixture
def as_async() -> Callable[..., AsyncIterator[Any]]:
    return asynchronous
