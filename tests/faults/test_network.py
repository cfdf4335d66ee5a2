"""Whatever the network between them does, client and server give right answers or errors that say what to do.

`FAULT_CUTS=100` cuts more often, and `REAL_TIMES=1` waits for as long as a client does that nobody made hasty.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import grpc
import numpy as np
import pytest
import trustme

from faults.wire import Ending, Flow, Wire, gaps
from flavour import Flavour
from live_server import START_SECONDS, LiveServer, poll
from pkpo_client import Client, DeadlineExceeded, LocalClient, PkpoError, ServerError, Unavailable, Unreachable, channel

CUTS = int(os.environ.get("FAULT_CUTS", "3"))
HASTE = 1 if os.environ.get("REAL_TIMES") else 20
GARBLED = b"\x0a\xff\xff"
RNG = np.random.default_rng(7)
# Some, whose answer fits one frame of HTTP/2, and many.
ROWS, MANY_ROWS = RNG.random((4, 64)), RNG.random((3000, 64))


def batches(count: int) -> list[Any]:
    return [RNG.random((1 + (37 * i) % 200, 8)) for i in range(count)]


def check(results: list[Any], given: list[Any], local: LocalClient) -> None:
    """Every batch answered, once, in order, to the bit."""
    assert [type(each).__name__ for each in results] == ["TransformResult"] * len(given)
    for result, rows in zip(results, given, strict=True):
        assert result.advantages.tobytes() == local.transform(rows, 4).tobytes()


@pytest.fixture
def wire(server: LiveServer) -> Iterator[Wire]:
    with Wire(server.address) as made:
        yield made


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> float:
    """Clients notice lost connections sooner, by HASTE; the seconds within which they do."""
    options = tuple((name, value // HASTE if name.endswith("_ms") else value) for name, value in channel._OPTIONS)
    monkeypatch.setattr(channel, "_OPTIONS", options)
    told = dict(options)
    return float(told["grpc.keepalive_time_ms"] + told["grpc.keepalive_timeout_ms"]) / 1000


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LiveServer, grpc.ChannelCredentials]]:
    """A server with TLS, and what trusts it."""
    folder: Path = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    served = authority.issue_cert("127.0.0.1")
    served.private_key_pem.write_to_path(folder / "key")
    served.cert_chain_pems[0].write_to_path(folder / "certificate")
    flags = ("--tls-certificate", str(folder / "certificate"), "--tls-key", str(folder / "key"))
    with LiveServer(*flags, wait=False) as live:
        poll(lambda: live.log_lines("serving"), "line with event serving", START_SECONDS)
        yield live, grpc.ssl_channel_credentials(authority.cert_pem.bytes())


LOST = [("requests",), ("answers",), ("requests", "answers")]


def test_a_connection_lost_without_a_word_is_left_for_another(
    flavour: Flavour, server: LiveServer, local: LocalClient, hasty: float
) -> None:
    """In one direction or both: noticed by keepalive, within its bound, in the middle of a call."""

    def through_a_loss(directions: tuple[str, ...]) -> tuple[float, int, bytes]:
        with Wire(server.address) as wire, flavour.calling(wire.address, timeout=hasty + 20) as call:
            call("transform", ROWS, 4)
            for direction in directions:
                getattr(wire, direction).lose()
            started = time.monotonic()
            answer = call("transform", ROWS, 4)
            return time.monotonic() - started, wire.connections, answer.tobytes()

    with ThreadPoolExecutor() as pool:
        for seconds, connections, answer in pool.map(through_a_loss, LOST):
            assert answer == local.transform(ROWS, 4).tobytes()
            assert connections == 2
            # As long as keepalive takes, and until the next attempt; more only where the machine is busy.
            assert seconds < hasty + (4 if HASTE == 1 else 10)


def test_a_stream_lost_without_a_word_goes_on_in_another(
    flavour: Flavour, server: LiveServer, local: LocalClient, hasty: float
) -> None:
    given = batches(12)

    def through_a_loss(directions: tuple[str, ...]) -> None:
        with Wire(server.address) as wire:

            def losing() -> Iterator[Any]:
                yield from given[:6]
                for direction in directions:
                    getattr(wire, direction).lose()
                yield from given[6:]

            check(flavour.stream(wire.address, losing(), 4, timeout=hasty + 20), given, local)
            assert wire.connections == 2

    with ThreadPoolExecutor() as pool:
        list(pool.map(through_a_loss, LOST))


def test_in_a_black_hole_the_same_is_computed_here(
    flavour: Flavour, server: LiveServer, local: LocalClient, hasty: float
) -> None:
    given = batches(20)
    of_client: dict[str, Any] = {"fallback": "local", "timeout": hasty + 2}

    def calls() -> None:
        with Wire(server.address) as wire, flavour.calling(wire.address, **of_client) as call:
            for i in range(20):
                if i == 10:
                    wire.hold()
                assert call("transform", ROWS, 4).tobytes() == local.transform(ROWS, 4).tobytes()

    def stream() -> None:
        with Wire(server.address) as wire:

            def falling_in() -> Iterator[Any]:
                yield from given[:10]
                wire.hold()
                yield from given[10:]

            check(flavour.stream(wire.address, falling_in(), 4, of_client=of_client), given, local)

    with ThreadPoolExecutor() as pool:
        for done in [pool.submit(calls), pool.submit(stream)]:
            done.result()


def test_in_a_black_hole_a_call_fails_within_its_time_and_says_what_to_do(
    flavour: Flavour, wire: Wire, hasty: float
) -> None:
    with flavour.calling(wire.address, timeout=hasty + 2) as call:
        call("transform", ROWS, 4)
        wire.hold()
        # Too soon to tell a server that is gone from one that is slow.
        with pytest.raises(DeadlineExceeded, match=r"did not answer within 0\.\d s; give a longer timeout"):
            call("transform", ROWS, 4, timeout=0.2)
        started = time.monotonic()
        with pytest.raises(Unreachable, match="fallback='local'") as caught:
            call("transform", ROWS, 4)
        assert time.monotonic() - started < hasty + 2 + 5
        assert wire.address in str(caught.value)


def test_what_was_only_held_goes_on_in_the_same_connection(flavour: Flavour, wire: Wire, local: LocalClient) -> None:
    with flavour.calling(wire.address) as call, ThreadPoolExecutor(1) as pool:
        call("transform", ROWS, 4)
        wire.hold()
        asked = pool.submit(call, "transform", ROWS, 4)
        assert not wait([asked], 0.3).done
        wire.heal()
        assert asked.result(30).tobytes() == local.transform(ROWS, 4).tobytes()
        assert wire.connections == 1


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("direction", ["requests", "answers"])
@pytest.mark.parametrize("ending", Ending)
@pytest.mark.parametrize("rows", [ROWS, MANY_ROWS], ids=["some", "many"])
def test_a_call_cut_anywhere_is_answered(
    flavour: Flavour, wire: Wire, local: LocalClient, direction: str, ending: Ending, rows: Any
) -> None:
    rng, want = Random(direction), local.transform(rows, 4).tobytes()
    flow: Flow = getattr(wire, direction)
    with flavour.calling(wire.address) as call:
        call("transform", rows, 4)
        before = flow.passed
        call("transform", rows, 4)
        size = flow.passed - before
        for cuts in range(1, CUTS + 1):
            flow.cut_after([rng.randrange(size - 50)], ending)
            assert call("transform", rows, 4).tobytes() == want
            assert flow.cuts == cuts


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("ending", Ending)
def test_a_stream_cut_anywhere_goes_on(flavour: Flavour, wire: Wire, local: LocalClient, ending: Ending) -> None:
    """Again and again, in both directions: in a batch, between two of them, in the greeting of a connection."""
    rng, given = Random(3), batches(8 * CUTS)
    apart = sum(rows.nbytes for rows in given) // CUTS
    for flow in (wire.requests, wire.answers):
        flow.cut_after([rng.randrange(apart) for _ in range(CUTS)], ending)
    check(flavour.stream(wire.address, given, 4, timeout=120), given, local)
    assert wire.requests.cuts == wire.answers.cuts == CUTS
    assert wire.connections > CUTS


def test_late_and_slow_is_right_and_ends_in_time(flavour: Flavour, wire: Wire, local: LocalClient) -> None:
    given = batches(10)
    wire.requests.delay = wire.answers.delay = 0.05
    wire.answers.rate = 2**22
    check(flavour.stream(wire.address, given, 4), given, local)
    with flavour.calling(wire.address) as call:
        assert call("transform", MANY_ROWS, 4).tobytes() == local.transform(MANY_ROWS, 4).tobytes()
        wire.answers.delay = 60
        started = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            call("transform", ROWS, 4, timeout=0.5)
        assert time.monotonic() - started < 30


@pytest.mark.usefixtures("hasty")
def test_under_tls_no_corrupted_byte_is_ever_an_answer(
    flavour: Flavour, tls: tuple[LiveServer, grpc.ChannelCredentials], local: LocalClient
) -> None:
    """A bit flipped anywhere ends its connection, and what was under way is asked for again."""
    server, credentials = tls
    rng, want, given = Random(11), local.transform(ROWS, 4).tobytes(), batches(8 * CUTS)
    of_client = {"credentials": credentials, "timeout": 60}
    with Wire(server.address) as wire:
        for i in range(8 * CUTS):
            with flavour.calling(wire.address, **of_client) as call:
                if i % 4 < 2:
                    # Then the flip is in a connection that stands, and else in its handshake or its first call.
                    call("transform", ROWS, 4)
                (wire.requests, wire.answers)[i % 2].flip([rng.randrange(2500)])
                assert call("transform", ROWS, 4).tobytes() == want
        flipped = wire.requests.flipped + wire.answers.flipped
        assert flipped >= 4 * CUTS
        wire.heal()
        apart = sum(rows.nbytes for rows in given) // CUTS
        wire.answers.flip([rng.randrange(apart // 2, apart) for _ in range(CUTS)])
        check(flavour.stream(wire.address, given, 4, of_client=of_client), given, local)
        assert wire.requests.flipped + wire.answers.flipped == flipped + CUTS


def test_in_plaintext_a_corrupted_byte_is_an_answer(flavour: Flavour, wire: Wire, local: LocalClient) -> None:
    """Which is why TLS is worth its price where the network is not trusted to keep TCP's checksum."""
    want = local.transform(ROWS, 4)
    with flavour.calling(wire.address) as call:
        call("transform", ROWS, 4)
        before = wire.answers.passed
        call("transform", ROWS, 4)
        wire.answers.flip([(wire.answers.passed - before) // 2])
        found = call("transform", ROWS, 4)
        assert wire.answers.flipped == 1
        assert np.count_nonzero(found != want) == 1
        assert call("transform", ROWS, 4).tobytes() == want.tobytes()


def test_corrupted_plaintext_hurts_nobody_else(flavour: Flavour, server: LiveServer, local: LocalClient) -> None:
    rng = Random(13)
    with Wire(server.address) as wire, Client(server.address) as other:
        wire.requests.flip(gaps(1500, rng))
        wire.answers.flip(gaps(1500, rng))
        for _ in range(5 * CUTS):
            with flavour.calling(wire.address, timeout=1) as call, suppress(PkpoError):
                assert call("transform", ROWS, 4).shape == ROWS.shape
            assert other.transform(ROWS, 4).tobytes() == local.transform(ROWS, 4).tobytes()
        assert wire.requests.flipped + wire.answers.flipped > CUTS
        wire.heal()
        # Names of headers that were corrupted stay so for as long as the connection lasts (RFC 7541, 2.3.2).
        wire.cut()
        assert flavour.call(wire.address, "transform", ROWS, 4).tobytes() == local.transform(ROWS, 4).tobytes()


class Garbling(grpc.GenericRpcHandler):
    """Answers Transform, and the first message of the first stream, with bytes that are no message.

    Attributes:
        streams: how many there were.
    """

    def __init__(self, channel: grpc.Channel) -> None:
        self._channel = channel
        self.streams = 0

    def service(self, called: grpc.HandlerCallDetails) -> Any:
        if called.method.endswith("Transform"):
            return grpc.unary_unary_rpc_method_handler(lambda request, context: GARBLED)
        if called.method.endswith("Estimate"):
            # Of a call with one answer, none.
            return grpc.unary_stream_rpc_method_handler(lambda request, context: iter(()))
        if called.method.endswith("Info"):
            pass_on = self._channel.unary_unary(called.method)
            return grpc.unary_unary_rpc_method_handler(lambda request, context: pass_on(request))

        def answer(requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
            self.streams += 1
            answers = self._channel.stream_stream(called.method)(requests)
            if self.streams == 1:
                next(answers)
                yield GARBLED
            yield from answers

        return grpc.stream_stream_rpc_method_handler(answer)


def test_what_is_no_message_is_an_error_or_asked_for_again(
    flavour: Flavour, server: LiveServer, local: LocalClient
) -> None:
    given = batches(5)
    garbling_server = grpc.server(ThreadPoolExecutor(4))
    with grpc.insecure_channel(server.address) as channel:
        garbling = Garbling(channel)
        garbling_server.add_generic_rpc_handlers((garbling,))
        address = f"127.0.0.1:{garbling_server.add_insecure_port('127.0.0.1:0')}"
        garbling_server.start()
        try:
            with pytest.raises(ServerError, match="3 bytes that are no") as caught:
                flavour.call(address, "transform", ROWS, 4)
            assert caught.value.code == "DATA_LOSS"
            with pytest.raises(ServerError, match="no message") as caught:
                flavour.call(address, "estimate", ROWS, 4)
            assert caught.value.code == "DATA_LOSS"
            check(flavour.stream(address, given, 4), given, local)
        finally:
            garbling_server.stop(None).wait()
    assert garbling.streams == 2


def test_nobody_listens_for_a_while(flavour: Flavour, wire: Wire, local: LocalClient, hasty: float) -> None:
    with flavour.calling(wire.address, timeout=20) as call, ThreadPoolExecutor(1) as pool:
        call("transform", ROWS, 4)
        wire.refuse()
        wire.cut()
        with pytest.raises(Unavailable, match="fallback='local'"):
            call("transform", ROWS, 4, timeout=0.3)
        asked = pool.submit(call, "transform", ROWS, 4)
        assert not wait([asked], 0.3).done
        wire.listen()
        assert asked.result(30).tobytes() == local.transform(ROWS, 4).tobytes()
