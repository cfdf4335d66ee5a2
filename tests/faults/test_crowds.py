"""Crowds that would fill a server: it stays within bounds, answers others meanwhile, and gives back what they took."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import grpc
import numpy as np
import psutil
import pytest

from faults.crowds import (
    ANSWERS_OF_THREADS,
    ESTIMATES,
    ESTIMATES_OF_THREADS,
    FLOODS,
    GREETING,
    LARGE,
    LARGE_ANSWERS,
    MANY_HEADERS,
    MIB,
    OF_MANY_RUNS,
    block,
    crowd,
    streams,
)
from faults.wire import Wire
from fuzz.service import STREAM
from fuzz.sockets import SERVICE, headers
from live_server import LiveServer, poll
from pkpo.v1 import reward_transform_pb2_grpc as pb_grpc
from pkpo_client import Client, LocalClient

ROWS = np.random.default_rng(0).random((4, 8))


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


@pytest.fixture
def _room_for_thousands() -> None:
    if psutil.Process(os.getpid()).rlimit(psutil.RLIMIT_NOFILE)[0] < 4000:
        pytest.skip("needs 4,000 file descriptors")


@pytest.mark.usefixtures("_room_for_thousands")
@pytest.mark.parametrize("said", [b"", GREETING], ids=["silent", "greeting"])
def test_thousands_of_idle_connections(bounds: Bounds, said: bytes) -> None:
    for _ in range(2):
        with crowd(bounds.server.address, 2500, said):
            poll(lambda: bounds.descriptors > 2400, "connections")
            bounds.others_are_answered()
            assert bounds.grown < 100
        bounds.are_as_before()


@pytest.mark.usefixtures("_room_for_thousands")
@pytest.mark.parametrize(("connections", "number"), [(2500, 1), (3, 1200)])
def test_thousands_of_idle_streams(bounds: Bounds, connections: int, number: int) -> None:
    """Those of one caller fill max_concurrent_rpcs and no more; there is room beyond it for others."""
    refused = 'pkpo_requests_total{code="RESOURCE_EXHAUSTED",method="TransformStream",variant="unknown"}'
    for _ in range(2):
        before = bounds.server.metrics()[refused]
        with crowd(bounds.server.address, connections, GREETING + streams(number)):
            poll(lambda: bounds.server.metrics()["pkpo_open_streams"] == 1024, "streams")
            poll(
                lambda before=before: bounds.server.metrics()[refused] - before == connections * number - 1024,
                "refusals",
            )
            bounds.others_are_answered()
            assert bounds.grown < 250
        bounds.are_as_before()


@pytest.mark.parametrize("said", FLOODS.values(), ids=FLOODS)
def test_floods(bounds: Bounds, said: bytes) -> None:
    for _ in range(2):
        with crowd(bounds.server.address, 10, GREETING + said):
            for _ in range(20):
                bounds.others_are_answered()
                assert bounds.grown < 500
        bounds.are_as_before()


def test_calls_given_up_again_and_again(bounds: Bounds) -> None:
    """What waits for the event loop is bounded, though its callers come faster than it is looked at."""

    def come() -> None:
        for _ in range(30):
            with crowd(bounds.server.address, 10, GREETING + FLOODS["calls given up at once"]):
                pass
        bounds.others_are_answered()

    with ThreadPoolExecutor(1) as pool:
        over = pool.submit(come)
        while not over.done():
            assert bounds.grown < 500
            time.sleep(0.02)
        over.result()
    bounds.are_as_before()


LITTLE_ROOM = ("--max-bytes-in-flight", str(16 * MIB), "--max-message-bytes", str(4 * MIB))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (LITTLE_ROOM, ESTIMATES),
        (("--max-memory-bytes", str(400 * MIB)), ESTIMATES),
        (LITTLE_ROOM, ESTIMATES_OF_THREADS),
    ],
    ids=["bytes", "memory", "bytes of threads"],
)
def test_slow_readers_of_calls(local: LocalClient, flags: tuple[str, ...], said: bytes) -> None:
    """What they leave unread is bounded by max_bytes_in_flight, beyond which they are refused, and others are not."""
    with LiveServer(*flags) as server, Client(server.address) as client:
        bounds = Bounds(server, client, local)
        with crowd(server.address, 100, GREETING + said):
            poll(lambda: sum(ended(server).values()) == 400, "answers")
            assert ended(server)["RESOURCE_EXHAUSTED"] > 0
            for _ in range(20):
                bounds.others_are_answered()
            held = server.metrics()
            assert held["pkpo_held_bytes"] < held["pkpo_held_bytes_limit"] + MIB
            # Of those for threads some are refused before, for they would wait too long.
            reasons = ["memory", "queue"] if said is ESTIMATES_OF_THREADS else ["memory"]
            refused = [held[f'pkpo_refused_total{{reason="{reason}"}}'] for reason in reasons]
            assert refused[0] > 0
            assert sum(refused) == ended(server)["RESOURCE_EXHAUSTED"]
            if "--max-memory-bytes" in flags:
                assert held["pkpo_held_bytes_limit"] == pytest.approx(400 * MIB / 6, rel=1e-6)
            assert bounds.grown < 2.5 * held["pkpo_held_bytes_limit"] / MIB + 20
        poll(lambda: bounds.descriptors <= 0, "descriptors given back")
        bounds.are_as_before()


def test_slow_readers_of_many_runs(local: LocalClient) -> None:
    """They are told apart by where they call from, and not by the runs that they name."""
    with LiveServer(*LITTLE_ROOM) as server, Client(server.address) as client:
        bounds = Bounds(server, client, local)
        with crowd(server.address, 4, GREETING + OF_MANY_RUNS):
            refused = 'pkpo_refused_total{reason="memory"}'
            poll(lambda: server.metrics()[refused] > 300, "refusals")
            before = server.metrics()[refused]
            for _ in range(20):
                bounds.others_are_answered()
            assert server.metrics()[refused] == before
            assert bounds.grown < 100
        bounds.are_as_before()


@pytest.mark.parametrize("said", [LARGE_ANSWERS, ANSWERS_OF_THREADS], ids=["at once", "by threads"])
def test_slow_readers_of_streams(local: LocalClient, said: bytes) -> None:
    """What they leave unread is bounded by max_bytes_in_flight: beyond it their messages are not read."""
    with LiveServer(*LITTLE_ROOM) as server, Client(server.address) as client:
        bounds = Bounds(server, client, local)
        with crowd(server.address, 100, GREETING + said):
            poll(lambda: server.metrics()["pkpo_open_streams"] == 100, "streams")
            for _ in range(20):
                bounds.others_are_answered()
            answered = 'pkpo_requests_total{code="OK",method="TransformStream",variant="SLOO_MINUS_ONE"}'
            assert 0 < server.metrics()[answered] < 100
            assert server.metrics()['pkpo_refused_total{reason="memory"}'] == 0, "they wait"
            assert bounds.grown < 150
        bounds.are_as_before()


def test_streams_that_speak_once_there_is_no_room(local: LocalClient) -> None:
    """What is received then is held only as far as there is room for it; the other streams are given up."""
    with LiveServer(*LITTLE_ROOM) as server, Client(server.address) as client, ExitStack() as opened:
        bounds = Bounds(server, client, local)
        speak = threading.Event()
        opened.callback(speak.set)

        def messages() -> Iterator[bytes]:
            speak.wait()
            yield LARGE
            over.wait()

        over = threading.Event()
        opened.callback(over.set)
        calls = []
        for _ in range(40):
            channel = opened.enter_context(
                grpc.insecure_channel(server.address, options=[("grpc.use_local_subchannel_pool", 1)])
            )
            stream: Any = channel.stream_stream(f"/{SERVICE}/{STREAM}")
            calls.append(stream(messages(), timeout=120))
        poll(lambda: server.metrics()["pkpo_open_streams"] == 40, "idle streams")
        with crowd(server.address, 40, GREETING + LARGE_ANSWERS, "127.0.0.1"):
            poll(lambda: server.metrics()["pkpo_held_bytes"] > 16 * MIB, "answers that nobody takes")
            speak.set()
            room = 16 * MIB // len(LARGE)
            poll(lambda: sum(not call.is_active() for call in calls) >= len(calls) - room, "streams given up")
            assert {call.code() for call in calls if not call.is_active()} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
            assert sum(call.is_active() for call in calls) == room
            assert server.metrics()["pkpo_held_bytes"] < 18 * MIB
        opened.close()
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
        room = 300 - psutil.Process(server.process.pid).memory_info().rss / MIB
        # Within the two seconds that health waits, more than there is room for; and slowly enough to be seen in time.
        wire.requests.rate = (12 if "health" in method else 4) * MIB
        for _ in range(2):
            calls = [sent_slowly(wire.address, method, 32 * MIB) for _ in range(16)]
            grown = 0.0
            while not all(call.done() for call in calls):
                grown = max(grown, bounds.grown)
                time.sleep(0.02)
            codes = Counter(call.code() for call in calls)
            if "health" in method:
                assert codes.keys() <= {grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.DEADLINE_EXCEEDED}
                # A machine with other work may not bring so much in two seconds.
                assert codes[grpc.StatusCode.RESOURCE_EXHAUSTED] > 0 or grown < room + 25
            else:
                # What is no message is refused for it where it has come to its end.
                given_up = [call for call in calls if call.code() == grpc.StatusCode.RESOURCE_EXHAUSTED]
                assert len(given_up) >= len(calls) - 1
                assert all("max_memory_bytes" in call.details() for call in given_up)
                assert codes.keys() <= {grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.INVALID_ARGUMENT}
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
        both = client.stream(batches, 4), client.stream(batches, 4)
        for begin in 0, 100, 200:
            for results in both:
                for want in wanted[begin : begin + 100]:
                    np.testing.assert_array_equal(next(results).advantages, want)
            calls = [sent_slowly(wire.address, f"/{SERVICE}/{STREAM}", 32 * MIB) for _ in range(16)]
            for call in calls:
                assert call.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        for results in both:
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
            with crowd(server.address, 30, GREETING + flood):
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
