"""Each fault of the wire does what it says, to raw bytes."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from random import Random

import pytest

from faults.wire import Ending, Wire, gaps
from live_server import poll

SAID = Random(1).randbytes(300_000)


class Echo:
    """Says everything back, and ends when its peer has.

    Attributes:
        endings: of each connection that is over, b"" or the error.
    """

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = "{}:{}".format(*self._listener.getsockname())
        self.endings: list[bytes | OSError] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def stop(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(30)
        assert not any(thread.is_alive() for thread in self._threads)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._threads.append(threading.Thread(target=self._answer, args=(connection,)))
            self._threads[-1].start()

    def _answer(self, connection: socket.socket) -> None:
        with connection:
            try:
                while said := connection.recv(2**16):
                    connection.sendall(said)
            except OSError as error:
                self.endings.append(error)
            else:
                self.endings.append(b"")


@pytest.fixture
def echo() -> Iterator[Echo]:
    made = Echo()
    yield made
    made.stop()


@pytest.fixture
def wire(echo: Echo) -> Iterator[Wire]:
    with Wire(echo.address) as made:
        yield made


def connected(wire: Wire, timeout: float = 30) -> socket.socket:
    host, port = wire.address.split(":")
    return socket.create_connection((host, int(port)), timeout)


def said_back(connection: socket.socket, said: bytes = SAID) -> bytes:
    """What comes back until the end, of what is said in the meantime."""
    sender = threading.Thread(target=say, args=(connection, said))
    sender.start()
    heard = listened(connection)
    sender.join()
    return heard


def say(connection: socket.socket, said: bytes) -> None:
    try:
        connection.sendall(said)
        connection.shutdown(socket.SHUT_WR)
    except OSError:
        return  # cut, which the listener sees too


def listened(connection: socket.socket) -> bytes:
    heard = b""
    while more := connection.recv(2**16):
        heard += more
    return heard


def test_without_a_fault_all_passes(wire: Wire, echo: Echo) -> None:
    with connected(wire) as one, connected(wire) as other:
        assert said_back(one) == SAID
        assert said_back(other, b"") == b""
    poll(lambda: wire.open_connections == 0, "end of the connections")
    assert wire.connections == 2
    assert wire.requests.passed == wire.answers.passed == len(SAID)
    assert echo.endings == [b"", b""]


def test_delay(wire: Wire) -> None:
    """Every byte is late by as much, and no more comes late for that."""
    wire.requests.delay, wire.answers.delay = 0.2, 0.3
    with connected(wire) as connection:
        started = time.monotonic()
        assert said_back(connection) == SAID
        assert time.monotonic() - started >= 0.5


def test_rate(wire: Wire) -> None:
    wire.answers.rate = 200_000
    with connected(wire) as connection:
        started = time.monotonic()
        assert said_back(connection) == SAID
        assert time.monotonic() - started >= len(SAID) / 200_000 * 0.9


def test_cut_now(wire: Wire, echo: Echo) -> None:
    with connected(wire) as connection:
        connection.sendall(b"x")
        assert connection.recv(1) == b"x"
        wire.cut()
        with pytest.raises(ConnectionResetError):
            connection.recv(1)
    with connected(wire) as connection:
        connection.sendall(b"x")
        assert connection.recv(1) == b"x"
        wire.cut(Ending.FIN)
        assert connection.recv(1) == b""
    poll(lambda: len(echo.endings) == 2 and wire.open_connections == 0, "ends")
    assert isinstance(echo.endings[0], ConnectionResetError)
    assert echo.endings[1] == b""


@pytest.mark.parametrize("after", [0, 1, 70_001])
def test_an_answer_cut_at_a_byte(wire: Wire, after: int) -> None:
    wire.answers.cut_after([after], Ending.FIN)
    with connected(wire) as connection:
        assert said_back(connection) == SAID[:after]
    assert wire.answers.cuts == 1
    assert wire.answers.passed == after
    with connected(wire) as connection:
        assert said_back(connection) == SAID


@pytest.mark.parametrize("ending", Ending)
def test_requests_cut_again_and_again(wire: Wire, echo: Echo, ending: Ending) -> None:
    """Counted over connections: each has what is left of a gap."""
    wire.requests.cut_after([100, 5, 70_000], ending)
    for _ in range(3):
        with connected(wire) as connection:
            try:
                heard = said_back(connection)
            except OSError:
                assert ending is Ending.RST
            else:
                assert SAID.startswith(heard)
                assert len(heard) <= 70_000
    with connected(wire) as connection:
        assert said_back(connection) == SAID
    assert wire.requests.cuts == 3
    assert wire.requests.passed == 100 + 5 + 70_000 + len(SAID)
    poll(lambda: len(echo.endings) == 4, "ends")


def test_flip(wire: Wire) -> None:
    wire.requests.flip([0, 9, 99_999])
    with connected(wire) as connection:
        heard = said_back(connection)
    changed = {at: heard[at] ^ SAID[at] for at in range(len(SAID)) if heard[at] != SAID[at]}
    assert list(changed) == [0, 10, 100_010]
    assert all(bits.bit_count() == 1 for bits in changed.values())
    assert wire.requests.flipped == 3


def test_flips_at_a_rate_are_drawn(wire: Wire) -> None:
    heard = []
    for seed in (3, 3, 4):
        wire.answers.flip(gaps(1000, Random(seed)), Random(seed))
        with connected(wire) as connection:
            heard.append(said_back(connection))
    assert heard[0] == heard[1] != heard[2]
    assert 200 < sum(a != b for a, b in zip(heard[0], SAID, strict=True)) < 400
    wire.heal()
    with connected(wire) as connection:
        assert said_back(connection) == SAID


@pytest.mark.parametrize("held", ["requests", "answers"])
def test_half_open(wire: Wire, echo: Echo, held: str) -> None:
    """The direction that is held passes neither bytes nor ends; nothing of it is lost."""
    with connected(wire) as connection:
        connection.sendall(b"x")
        assert connection.recv(1) == b"x"
        flow = getattr(wire, held)
        before = flow.passed
        flow.hold()
        connection.sendall(b"y")
        connection.shutdown(socket.SHUT_WR)
        connection.settimeout(0.3)
        with pytest.raises(TimeoutError):
            connection.recv(1)
        assert flow.passed == before
        assert wire.requests.passed == (2 if held == "answers" else 1)
        assert echo.endings == ([b""] if held == "answers" else [])
        flow.heal()
        connection.settimeout(30)
        assert listened(connection) == b"y"


def test_a_black_hole_takes_connections_and_tells_nobody_of_their_ends(wire: Wire, echo: Echo) -> None:
    wire.hold()
    with connected(wire, 0.3) as connection:
        connection.sendall(b"x")
        with pytest.raises(TimeoutError):
            connection.recv(1)
    poll(lambda: wire.open_connections == 1, "connection")
    assert (wire.requests.passed, wire.answers.passed, echo.endings) == (0, 0, [])
    wire.heal()
    poll(lambda: wire.open_connections == 0, "end of what was held")
    assert wire.requests.passed == 1
    assert len(echo.endings) == 1


def test_a_lost_connection_stays_lost_and_new_ones_pass(wire: Wire, echo: Echo) -> None:
    with connected(wire) as old:
        old.sendall(b"x")
        assert old.recv(1) == b"x"
        wire.lose()
        old.sendall(b"y")
        with connected(wire) as new:
            assert said_back(new) == SAID
        wire.heal()
        old.settimeout(0.3)
        with pytest.raises(TimeoutError):
            old.recv(1)
    assert wire.requests.passed == 1 + len(SAID)


def test_refuse_and_listen_again(wire: Wire) -> None:
    with connected(wire) as old:
        old.sendall(b"x")
        assert old.recv(1) == b"x"
        wire.refuse()
        with pytest.raises(ConnectionRefusedError):
            connected(wire)
        assert said_back(old) == SAID
        wire.listen()
        with connected(wire) as new:
            assert said_back(new) == SAID


def test_a_target_that_is_not_there_is_a_reset(echo: Echo) -> None:
    with Wire("127.0.0.1:9") as wire, pytest.raises(ConnectionResetError), connected(wire) as connection:
        connection.recv(1)


def test_a_reset_of_a_peer_is_one_for_the_other(wire: Wire, echo: Echo) -> None:
    with connected(wire) as connection:
        connection.sendall(b"x")
        assert connection.recv(1) == b"x"
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    poll(lambda: echo.endings, "end")
    assert isinstance(echo.endings[0], ConnectionResetError)


def test_nothing_is_left_of_it(echo: Echo) -> None:
    threads = set(threading.enumerate())
    with Wire(echo.address) as wire:
        wire.hold()
        held = [connected(wire) for _ in range(20)]
        poll(lambda: wire.open_connections == 20, "connections")
    assert not {thread for thread in set(threading.enumerate()) - threads if thread.name == "wire"}
    for connection in held:
        with connection, pytest.raises(ConnectionResetError):
            connection.recv(1)
