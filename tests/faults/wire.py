"""A TCP proxy that injects faults into what passes, in front of any port, for tests.

    with Wire("127.0.0.1:50051") as wire, Client(wire.address) as client:
        wire.answers.delay = 0.05                        # seconds
        wire.answers.rate = 10_000                       # bytes a second
        wire.answers.flip(gaps(100_000, Random(1)))      # bits, about every 100,000 bytes
        wire.requests.cut_after([17, 4000], Ending.FIN)  # after 17 bytes, and after 4,000 more
        wire.requests.hold()                             # one direction passes nothing, and nobody is told
        wire.hold()                                      # a black hole
        wire.heal()                                      # all passes again, what was held first
        wire.lose()                                      # a black hole for ever, of the connections of now alone
        wire.cut()                                       # every connection, now
        wire.refuse()                                    # nobody listens ...
        wire.listen()                                    # ... until then, on the same port

Faults can be set from any thread, at any time, in either direction, and are counted. As in TCP no byte is left out, and
an end travels like the bytes before it: what is held or late is told to nobody, or late.
"""

from __future__ import annotations

import asyncio
import enum
import math
import socket
import struct
import threading
from collections.abc import Callable, Iterable, Iterator
from random import Random
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    # When it is due, and what comes: bytes, b"" for an end, None for a reset.
    _Line = asyncio.Queue[tuple[float, bytes | None]]

_CHUNK_BYTES = 2**16
_CHUNKS_HELD = 32
# A rate is kept by pieces that take this long.
_PIECE_SECONDS = 0.02


class Ending(enum.Enum):
    """How a connection is cut: as by a process that is killed, or by one that exits."""

    RST = "reset"
    FIN = "end"


def gaps(mean: float, rng: Random) -> Iterator[int]:
    """Bytes between faults that are about `mean` bytes apart, without end."""
    while True:
        yield int(rng.expovariate(1 / mean))


class Flow:
    """What becomes of the bytes in one direction, of all connections together.

    Attributes:
        flowing: whether anything passes, in the connections to come too.
        delay: seconds that each byte takes.
        rate: bytes a second that pass, of each connection.
        passed: bytes that passed so far.
        flipped: bits that were flipped.
        cuts: connections that `cut_after` cut.
    """

    def __init__(self, on_loop: Callable[[Callable[[], None]], None]) -> None:
        self._on_loop = on_loop
        self.flowing = asyncio.Event()
        self.passed = self.flipped = self.cuts = 0
        self._restore()

    def hold(self) -> None:
        """Nothing passes from now on, neither bytes nor ends."""
        self._on_loop(self.flowing.clear)

    def lose(self) -> None:
        """Nothing passes ever again in the connections of now; in those to come it does."""

        def replace() -> None:
            self.flowing.clear()
            self.flowing = asyncio.Event()
            self.flowing.set()

        self._on_loop(replace)

    def flip(self, gaps: Iterable[int], rng: Random | None = None) -> None:
        """Flips a bit of the byte that follows on each gap, counted from now on and from flip to flip."""

        def start() -> None:
            self._rng, self._flips = rng or Random(0), iter(gaps)
            self._until_flip = next(self._flips, math.inf)

        self._on_loop(start)

    def cut_after(self, gaps: Iterable[int], ending: Ending = Ending.RST) -> None:
        """Cuts the connection that the last byte of each gap passed in, counted from now on and from cut to cut."""

        def start() -> None:
            self._ending, self._cuts = ending, iter(gaps)
            self._until_cut = next(self._cuts, math.inf)

        self._on_loop(start)

    def heal(self) -> None:
        """Everything passes again, what was held first."""
        self._on_loop(self._restore)

    def pass_on(self, chunk: bytes) -> tuple[bytes, Ending | None]:
        """What passes next of a chunk, and whether the connection is cut after it."""
        piece = bytearray(chunk[: int(min(self._until_cut, max(1, self.rate * _PIECE_SECONDS), len(chunk)))])
        while self._until_flip < len(piece):
            piece[int(self._until_flip)] ^= 1 << self._rng.randrange(8)
            self.flipped += 1
            self._until_flip += 1 + next(self._flips, math.inf)
        self._until_flip -= len(piece)
        self._until_cut -= len(piece)
        self.passed += len(piece)
        if self._until_cut > 0:
            return bytes(piece), None
        self._until_cut = next(self._cuts, math.inf)
        self.cuts += 1
        return bytes(piece), self._ending

    def _restore(self) -> None:
        self.delay, self.rate = 0.0, math.inf
        self._until_flip = self._until_cut = math.inf
        self.flowing.set()


class Wire:
    """A proxy in front of `target` ("host:port"), for as long as its `with` block lasts.

    Attributes:
        address: where it listens, on the loopback.
        requests: what passes to the target.
        answers: what comes back.
        connections: how many it took so far.
    """

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._family, *_, self._target = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)[0]
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="wire", daemon=True)
        self._open: dict[asyncio.Task[None], _Connection] = {}
        self._listener: socket.socket | None = None
        self.requests = Flow(self._do)
        self.answers = Flow(self._do)
        self.connections = 0
        # Bound for as long as the proxy lives, so that nobody else gets the port while it refuses.
        self._place = _bound(("127.0.0.1", 0))
        self.address = "{}:{}".format(*self._place.getsockname())

    def __enter__(self) -> Wire:
        self._thread.start()
        self.listen()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.refuse()
        self.cut()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._place.close()

    @property
    def open_connections(self) -> int:
        """How many there are now."""
        return len(self._open)

    def hold(self) -> None:
        """Nothing passes any more, and nobody is told: a black hole, for new connections too."""
        self.requests.hold()
        self.answers.hold()

    def lose(self) -> None:
        """Nothing passes ever again in the connections of now, and nobody is told; in those to come it does."""
        self.requests.lose()
        self.answers.lose()

    def heal(self) -> None:
        """Everything passes again, what was held first."""
        self.requests.heal()
        self.answers.heal()

    def cut(self, ending: Ending = Ending.RST) -> None:
        """Cuts every connection, and returns when that is done."""
        self._wait(self._cut_all(ending))

    def refuse(self) -> None:
        """Nobody listens from now on; what is open stays open."""
        self._do(self._stop_accepting)

    def listen(self) -> None:
        """Listens again, on the same port."""
        self._do(self._start_accepting)

    def _do(self, change: Callable[[], None]) -> None:
        """Makes a change while nothing passes, and returns when it is made."""

        async def made() -> None:
            change()

        self._wait(made())

    def _wait(self, change: Any) -> None:
        asyncio.run_coroutine_threadsafe(change, self._loop).result(60)

    async def _cut_all(self, ending: Ending) -> None:
        cut = list(self._open.items())
        for _, connection in cut:
            connection.cut(ending)
        if ending is Ending.RST:
            await asyncio.gather(*(task for task, _ in cut))

    def _start_accepting(self) -> None:
        self._listener = _bound(self._place.getsockname())
        self._listener.listen(1024)
        self._loop.add_reader(self._listener, self._accept)

    def _stop_accepting(self) -> None:
        if self._listener is not None:
            self._loop.remove_reader(self._listener)
            self._listener.close()
            self._listener = None

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            near, _ = self._listener.accept()
        except OSError:
            return  # it has gone again
        self.connections += 1
        connection = _Connection(near, _socket(self._family), self.requests, self.answers)
        task = self._loop.create_task(connection.run(self._target))
        self._open[task] = connection
        task.add_done_callback(self._open.pop)


class _Connection:
    """A caller's connection and ours to the target, and what passes between them."""

    def __init__(self, near: socket.socket, far: socket.socket, requests: Flow, answers: Flow) -> None:
        self._near, self._far = near, far
        self._requests, self._answers = requests, answers
        self._is_cut = asyncio.Event()
        self._passes = True
        near.setblocking(False)

    def cut(self, ending: Ending) -> None:
        """Nothing passes any more, and both peers are told."""
        if ending is Ending.RST:
            self._is_cut.set()
            return
        self._passes = False
        for each in (self._near, self._far):
            _end(each)

    async def run(self, target: Any) -> None:
        """Passes on until both peers have ended, one has reset, or it is cut."""
        passing = asyncio.ensure_future(self._pass_on(target))
        cut = asyncio.ensure_future(self._is_cut.wait())
        await asyncio.wait({passing, cut}, return_when=asyncio.FIRST_COMPLETED)
        ended = passing.done() and passing.exception() is None
        passing.cancel()
        cut.cancel()
        await asyncio.gather(passing, cut, return_exceptions=True)
        for each in (self._near, self._far):
            if not ended:
                each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            each.close()

    async def _pass_on(self, target: Any) -> None:
        go, come = self._requests.flowing, self._answers.flowing
        await asyncio.get_running_loop().sock_connect(self._far, target)
        there: _Line = asyncio.Queue(_CHUNKS_HELD)
        back: _Line = asyncio.Queue(_CHUNKS_HELD)
        tasks = [
            asyncio.ensure_future(each)
            for each in (
                self._read(self._near, self._requests, there),
                self._write(there, self._requests, self._far, go, come),
                self._read(self._far, self._answers, back),
                self._write(back, self._answers, self._near, come, go),
            )
        ]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _read(self, source: socket.socket, flow: Flow, line: _Line) -> None:
        loop = asyncio.get_running_loop()
        chunk: bytes | None = b"."
        while chunk:
            try:
                chunk = await loop.sock_recv(source, _CHUNK_BYTES)
            except OSError:
                chunk = None
            await line.put((loop.time() + flow.delay, chunk))

    async def _write(
        self, line: _Line, flow: Flow, sink: socket.socket, flowing: asyncio.Event, back: asyncio.Event
    ) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due, chunk = await line.get()
            await asyncio.sleep(max(0.0, due - loop.time()))
            await flowing.wait()
            if chunk is None:
                raise ConnectionResetError
            if not chunk:
                _end(sink)
                return
            while chunk and self._passes:
                piece, ending = flow.pass_on(chunk)
                chunk = chunk[len(piece) :]
                try:
                    await loop.sock_sendall(sink, piece)
                except OSError:
                    # What the sink has told travels in the other direction.
                    await back.wait()
                    raise
                if ending is not None:
                    self.cut(ending)
                    if ending is Ending.RST:
                        return
                if flow.rate < math.inf:
                    await asyncio.sleep(len(piece) / flow.rate)
                await flowing.wait()


def _socket(family: int) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM)
    made.setblocking(False)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return made


def _bound(address: Any) -> socket.socket:
    made = _socket(socket.AF_INET)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    made.bind(address)
    return made


def _end(each: socket.socket) -> None:
    try:
        each.shutdown(socket.SHUT_WR)
    except OSError:
        return  # it has ended already
