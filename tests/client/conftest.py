"""Real servers, the three clients behind one face, and a proxy that injects faults in front of a real server."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from faulty_proxy import FaultyProxy
from flavour import Flavour, RecordingError
from live_server import LiveServer, poll
from pkpo_client import Client, LocalClient
from silent_port import SilentPort


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


@pytest.fixture
def proxy(server: LiveServer) -> Iterator[FaultyProxy]:
    made = FaultyProxy(server.address)
    try:
        yield made
    finally:
        made.stop()


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


@pytest.fixture
def silent_port(server: LiveServer) -> Iterator[SilentPort]:
    with SilentPort(server.address) as port:
        yield port
