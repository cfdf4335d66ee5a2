"""Crowds that would fill a server: it stays within bounds, answers others meanwhile, and gives back what they took.

They come from an address of their own, and speak HTTP/2 by hand, as no client would.
"""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

import grpc
import numpy as np
import psutil
import pytest
from google.protobuf.message import Message

from faults.wire import Wire
from fuzz.service import ESTIMATE, STREAM
from fuzz.sockets import CONTINUATION, DATA, HEADERS, PING, PREFACE, SERVICE, SETTINGS, frame, headers
from live_server import LiveServer, poll
from pkpo.v1 import reward_transform_pb2 as pb
from pkpo.v1 import reward_transform_pb2_grpc as pb_grpc
from pkpo_client import Client, LocalClient

HOST = "127.0.0.3"
MIB = 2**20
ROWS = np.random.default_rng(0).random((4, 8))
RST_STREAM, END_STREAM, END_HEADERS = 3, 1, 4
GREETING = PREFACE + frame(SETTINGS, 0, 0, b"")
STREAM_HEADERS = headers(f"/{SERVICE}/{STREAM}".encode())


class Bounds:
    """One server, what it holds, and another caller's answers."""

    def __init__(self, server: LiveServer, client: Client, local: LocalClient) -> None:
        self.server = server
        self._client, self._want = client, local.transform(ROWS, 4).tobytes()
        self._process = psutil.Process(server.process.pid)
        self.others_are_answered()
        self._memory, self._descriptors = self._process.memory_info().rss, self._process.num_fds()

    @property
    def grown(self) -> float:
        """MiB by which the server is larger than it was."""
        return (self._process.memory_info().rss - self._memory) / MIB

    @property
    def descriptors(self) -> int:
        """How many it has more than it had."""
        return self._process.num_fds() - self._descriptors

    def others_are_answered(self) -> None:
        assert self._client.transform(ROWS, 4).tobytes() == self._want

    def are_as_before(self) -> None:
        """Returns once nothing is left of a crowd but memory, which the next one gets."""
        poll(lambda: self.descriptors <= 0, "descriptors given back")
        poll(lambda: self.server.metrics()["pkpo_open_calls"] == 0, "end of the calls")
        self.others_are_answered()


@pytest.fixture
def bounds(server: LiveServer, local: LocalClient) -> Iterator[Bounds]:
    with Client(server.address) as client:
        yield Bounds(server, client, local)


@contextmanager
def crowd(server: LiveServer, size: int, said: bytes) -> Iterator[list[socket.socket]]:
    """So many connections, each of which says the same and reads nothing."""
    host, port = server.address.split(":")
    connections: list[socket.socket] = []

    def come(_: int) -> None:
        connection = socket.create_connection((host, int(port)), 60, source_address=(HOST, 0))
        connections.append(connection)
        # One that is read no further, or closed.
        connection.settimeout(2)
        with suppress(OSError):
            connection.sendall(said)

    try:
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(come, range(size)))
        yield connections
    finally:
        for connection in connections:
            connection.close()


@pytest.fixture
def _room_for_thousands() -> None:
    if psutil.Process(os.getpid()).rlimit(psutil.RLIMIT_NOFILE)[0] < 4000:
        pytest.skip("needs 4,000 file descriptors")


@pytest.mark.usefixtures("_room_for_thousands")
@pytest.mark.parametrize("said", [b"", GREETING], ids=["silent", "greeting"])
def test_thousands_of_idle_connections(bounds: Bounds, said: bytes) -> None:
    for _ in range(2):
        with crowd(bounds.server, 2500, said):
            poll(lambda: bounds.descriptors > 2400, "connections")
            bounds.others_are_answered()
            assert bounds.grown < 100
        bounds.are_as_before()


@pytest.mark.usefixtures("_room_for_thousands")
@pytest.mark.parametrize(("connections", "streams"), [(2500, 1), (3, 1200)])
def test_thousands_of_idle_streams(bounds: Bounds, connections: int, streams: int) -> None:
    """Those of one caller fill max_concurrent_rpcs and no more; there is room beyond it for others."""
    opened = b"".join(frame(HEADERS, END_HEADERS, 2 * i + 1, STREAM_HEADERS) for i in range(streams))
    refused = 'pkpo_requests_total{code="RESOURCE_EXHAUSTED",method="TransformStream",variant="unknown"}'
    for _ in range(2):
        before = bounds.server.metrics()[refused]
        with crowd(bounds.server, connections, GREETING + opened):
            poll(lambda: bounds.server.metrics()["pkpo_open_streams"] == 1024, "streams")
            poll(
                lambda before=before: bounds.server.metrics()[refused] - before == connections * streams - 1024,
                "refusals",
            )
            bounds.others_are_answered()
            assert bounds.grown < 250
        bounds.are_as_before()


def literal(name: bytes, value: bytes, indexed: bool = False) -> bytes:
    """A header that is not compressed (RFC 7541, 6.2.1 and 6.2.2)."""
    return bytes([0x40 if indexed else 0]) + _text(name) + _text(value)


def _text(text: bytes) -> bytes:
    if len(text) < 127:
        return bytes([len(text)]) + text
    rest, length = len(text) - 127, bytes([127])
    while rest >= 128:
        length, rest = length + bytes([rest % 128 + 128]), rest // 128
    return length + bytes([rest]) + text


def block(stream: int, fields: bytes, ends: bool = True) -> bytes:
    """The frames of a header block of any length."""
    pieces = [fields[i : i + 2**14] for i in range(0, len(fields), 2**14)]
    return b"".join(
        frame(CONTINUATION if i else HEADERS, END_HEADERS if ends and i == len(pieces) - 1 else 0, stream, piece)
        for i, piece in enumerate(pieces)
    )


MANY_HEADERS = b"".join(literal(b"x%d" % i, b"y") for i in range(20_000))
FLOODS = {
    "one large header": b"".join(block(2 * i + 1, headers() + literal(b"x", b"y" * 500_000)) for i in range(4)),
    "many headers": block(1, headers() + MANY_HEADERS),
    "headers without end": block(1, headers() + literal(b"x", b"y" * 100) * 40_000, ends=False),
    # One that is written once and said 15,000 times: 16 KiB that unpack to 60 MB.
    "packed headers": block(1, headers() + literal(b"x", b"y" * 4000, indexed=True) + b"\xbe" * 15_000),
    "pings": frame(PING, 0, 0, bytes(8)) * 5000,
    "settings": frame(SETTINGS, 0, 0, b"") * 20_000,
    "calls given up at once": b"".join(
        frame(HEADERS, END_HEADERS, 2 * i + 1, headers()) + frame(RST_STREAM, 0, 2 * i + 1, struct.pack(">I", 8))
        for i in range(1000)
    ),
}


@pytest.mark.parametrize("said", FLOODS.values(), ids=FLOODS)
def test_floods(bounds: Bounds, said: bytes) -> None:
    for _ in range(2):
        with crowd(bounds.server, 10, GREETING + said):
            bounds.others_are_answered()
            assert bounds.grown < 500
        bounds.are_as_before()


GROUPS = pb.RewardGroups(f32=pb.FloatValues(values=[1.0] * 3500), group_size=2)


def called(method: str, stream: int, *messages: Message) -> bytes:
    """A call of 14 KiB a message, whose answers have 0.9 MiB each."""
    raws = [each.SerializeToString() for each in messages]
    return frame(HEADERS, END_HEADERS, stream, headers(f"/{SERVICE}/{method}".encode())) + b"".join(
        frame(DATA, END_STREAM if raw is raws[-1] else 0, stream, struct.pack(">BI", 0, len(raw)) + raw) for raw in raws
    )


def test_slow_readers_of_calls(local: LocalClient) -> None:
    """What they leave unread is bounded by max_memory_bytes: beyond it calls are refused before they are read."""
    asked = b"".join(called(ESTIMATE, i, pb.EstimateRequest(k=range(1, 33), groups=GROUPS)) for i in (1, 3, 5, 7))
    with LiveServer("--max-memory-bytes", str(400 * MIB)) as server, Client(server.address) as client:
        bounds = Bounds(server, client, local)
        with crowd(server, 100, GREETING + asked):
            poll(lambda: sum(ended(server).values()) == 400, "answers")
            assert ended(server)["RESOURCE_EXHAUSTED"] > 0
            assert bounds.grown < 400
        poll(lambda: bounds.descriptors <= 0, "descriptors given back")
        bounds.are_as_before()


def test_slow_readers_of_streams(local: LocalClient) -> None:
    """What they leave unread is bounded by max_bytes_in_flight: beyond it their messages are not read."""
    request = pb.TransformRequest(k=[1], estimate_k=range(1, 33), groups=GROUPS)
    asked = called(STREAM, 1, *(pb.TransformStreamRequest(sequence=i, request=request) for i in range(4)))
    with (
        LiveServer("--max-bytes-in-flight", str(16 * MIB), "--max-message-bytes", str(4 * MIB)) as server,
        Client(server.address) as client,
    ):
        bounds = Bounds(server, client, local)
        with crowd(server, 100, GREETING + asked):
            poll(lambda: server.metrics()["pkpo_open_streams"] == 100, "streams")
            for _ in range(20):
                bounds.others_are_answered()
            answered = 'pkpo_requests_total{code="OK",method="TransformStream",variant="SLOO_MINUS_ONE"}'
            assert 0 < server.metrics()[answered] < 100
            assert bounds.grown < 150
        bounds.are_as_before()


def sent(address: str, method: str, message: bytes) -> grpc.Future:
    """A call over a connection of its own."""
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0), ("grpc.max_send_message_length", -1)]
    call: Any = grpc.insecure_channel(address, options=options).unary_unary(method)
    return call.future(message, timeout=60)


def sent_slowly(address: str, method: str, size: int) -> grpc.Future:
    """A call over a connection of its own, with a message of so many bytes that are nothing."""
    return sent(address, method, bytes(size))


SHAPELESS = {"zeros": bytes(2**25), "many small fields": b"\x18\x01" * 2**24 + b"\xff"}


@pytest.mark.parametrize("method", ["Transform", STREAM])
@pytest.mark.parametrize("message", SHAPELESS.values(), ids=SHAPELESS)
def test_a_large_message_that_cannot_be_read(bounds: Bounds, method: str, message: bytes) -> None:
    """It takes no more than one that can, though a stream looks in it for the number to answer under."""
    call = sent(bounds.server.address, f"/{SERVICE}/{method}", message)
    grown = 0.0
    while not call.done():
        grown = max(grown, bounds.grown)
        time.sleep(0.002)
    assert call.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert grown < 6 * len(message) / MIB
    bounds.are_as_before()


METHODS = [*(f"/{SERVICE}/{name}" for name in ("Transform", "Estimate", STREAM)), "/grpc.health.v1.Health/Check"]


@pytest.mark.parametrize("method", METHODS)
def test_messages_that_are_long_on_their_way(local: LocalClient, method: str) -> None:
    """All but the first are given up where the server is as large as it may become; of health, after two seconds."""
    with (
        LiveServer("--max-memory-bytes", str(300 * MIB)) as server,
        Wire(server.address) as wire,
        Client(server.address) as client,
    ):
        bounds = Bounds(server, client, local)
        wire.requests.rate = 4 * MIB
        for _ in range(2):
            calls = [sent_slowly(wire.address, method, 32 * MIB) for _ in range(16)]
            grown = 0.0
            while not all(call.done() for call in calls):
                grown = max(grown, bounds.grown)
                time.sleep(0.02)
            codes = Counter(call.code() for call in calls)
            if "health" in method:
                assert codes.keys() <= {grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.DEADLINE_EXCEEDED}
            else:
                assert codes[grpc.StatusCode.RESOURCE_EXHAUSTED] >= len(calls) - 1
                assert sum("max_memory_bytes" in call.details() for call in calls) >= len(calls) - 1
            assert grown < 250, "16 messages would take 512 MiB"
            bounds.others_are_answered()
        bounds.are_as_before()


def test_streams_outlive_messages_that_are_long_on_their_way(local: LocalClient) -> None:
    """They are given up too, for what is on its way on them cannot be told; their clients open others."""
    with (
        LiveServer("--max-memory-bytes", str(300 * MIB)) as server,
        Wire(server.address) as wire,
        Client(server.address) as client,
    ):
        wire.requests.rate = 4 * MIB
        batches = np.random.default_rng(1).random((300, 4, 8))
        wanted = [local.transform(batch, 4) for batch in batches]
        streams = client.stream(batches, 4), client.stream(batches, 4)
        for begin in 0, 100, 200:
            for results in streams:
                for want in wanted[begin : begin + 100]:
                    np.testing.assert_array_equal(next(results).advantages, want)
            calls = [sent_slowly(wire.address, f"/{SERVICE}/{STREAM}", 32 * MIB) for _ in range(16)]
            for call in calls:
                assert call.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        for results in streams:
            assert next(results, None) is None
        assert server.metrics()['pkpo_refused_total{reason="memory"}'] > 3 * 16, "none was given up"


def test_who_asks_for_health_at_length_is_waited_for_no_longer_than_two_seconds(server: LiveServer) -> None:
    with Wire(server.address) as wire:
        wire.requests.rate = MIB
        call = sent_slowly(wire.address, "/grpc.health.v1.Health/Check", 32 * MIB)
        assert call.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        assert wire.requests.passed < 24 * MIB, "its own deadline is after all of it"


def test_calls_that_are_not_sent_whole_are_counted(server: LiveServer) -> None:
    with Wire(server.address) as wire:
        wire.requests.rate = MIB
        call = sent_slowly(wire.address, f"/{SERVICE}/Transform", 32 * MIB)
        poll(lambda: server.metrics()["pkpo_open_calls"] == 1, "the call")
        call.cancel()
        poll(lambda: server.metrics()["pkpo_open_calls"] == 0, "its end")


def test_a_server_that_was_flooded_is_as_before_while_a_stream_is_open(local: LocalClient) -> None:
    """What is free between blocks that are not is given back before calls are refused for it."""
    flood = b"".join(block(2 * i + 1, headers() + MANY_HEADERS) for i in range(4))
    with LiveServer("--max-memory-bytes", str(260 * MIB)) as server, Client(server.address) as client:
        bounds = Bounds(server, client, local)
        with grpc.insecure_channel(server.address) as channel:
            over = threading.Event()
            stream = pb_grpc.RewardTransformServiceStub(channel).TransformStream(iter(over.wait, True))
            poll(lambda: server.metrics()["pkpo_open_streams"] == 1, "stream")
            with crowd(server, 30, GREETING + flood):
                poll(lambda: bounds.grown > 150, "a flood")
            poll(lambda: bounds.descriptors <= 1, "descriptors given back")
            for _ in range(20):
                bounds.others_are_answered()
            stream.cancel()
            over.set()


def ended(server: LiveServer) -> Counter[str]:
    """How the calls of Estimate ended so far."""
    found = Counter[str]()
    for name, value in server.metrics().items():
        if name.startswith("pkpo_requests_total") and 'method="Estimate"' in name:
            found[name.split('code="')[1].split('"')[0]] += int(value)
    return found
