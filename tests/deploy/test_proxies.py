"""The documented nginx and Envoy in front of real servers: everything a client relies on gets through."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import grpc
import numpy as np
import pytest
import trustme
from grpc_health.v1 import health_pb2, health_pb2_grpc

from fleet.load import Load
from fleet.proxies import KINDS, Kind, LocalProxy
from fleet.servers import answered, running, with_a_stream
from live_server import START_SECONDS, LiveServer, poll
from pkpo.v1 import reward_transform_pb2 as pb
from pkpo.v1 import reward_transform_pb2_grpc
from pkpo_client import Client, InvalidArgument, LocalClient, Unauthenticated, Unavailable, Unreachable

ROWS = np.random.default_rng(7).random((32, 16))
MOST_BYTES = 16 * 2**20
OF_ANY_SIZE = (("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1))


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[LiveServer, ...]]:
    with running(*(LiveServer("--max-message-bytes", str(MOST_BYTES), wait=False) for _ in range(3))) as live:
        yield live


@pytest.fixture(scope="module")
def proxies(
    servers: tuple[LiveServer, ...], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[Kind], LocalProxy]]:
    """One of each kind in front of the servers, started when it is first wanted."""
    with ExitStack() as stack:

        @functools.cache
        def of(kind: Kind) -> LocalProxy:
            proxy = LocalProxy(kind, tmp_path_factory.mktemp(kind.name), addresses(servers))
            return stack.enter_context(proxy)

        yield of


@pytest.fixture(params=KINDS, ids=lambda kind: kind.name)
def proxy(request: pytest.FixtureRequest, proxies: Callable[[Kind], LocalProxy]) -> LocalProxy:
    return proxies(request.param)


@pytest.fixture(scope="module")
def local() -> LocalClient:
    return LocalClient()


def addresses(servers: Iterable[LiveServer]) -> list[str]:
    return [server.address for server in servers]


def stub_of(address: str, *options: tuple[str, int]) -> Any:
    channel = grpc.insecure_channel(address, options=(*OF_ANY_SIZE, *options))
    return reward_transform_pb2_grpc.RewardTransformServiceStub(channel)


def request_of(rewards: Any, k: list[int], size: int) -> pb.TransformRequest:
    groups = pb.RewardGroups(f64=pb.DoubleValues(values=rewards), group_size=size)
    return pb.TransformRequest(groups=groups, k=k)


def failure_of(call: Callable[..., object], *arguments: Any, **options: Any) -> Any:
    with pytest.raises(grpc.RpcError) as caught:
        call(*arguments, **options)
    return caught.value


def test_answers_are_those_computed_here(proxy: LocalProxy, local: LocalClient) -> None:
    large = np.random.default_rng(1).random((2**16, 16))
    assert large.nbytes == 8 * 2**20
    with Client(proxy.address) as client:
        for batch in (ROWS, ROWS.astype(np.float32), large):
            np.testing.assert_array_equal(client.transform(batch, 4), local.transform(batch, 4))
        np.testing.assert_array_equal(client.estimate(ROWS, [2])[0].values, local.estimate(ROWS, [2])[0].values)
        assert client.server_info().limits.max_message_bytes == MOST_BYTES
        # Over the servers' limit, so the client sends it in parts.
        larger = np.concatenate([large] * 3)
        np.testing.assert_array_equal(client.transform(larger, 4), local.transform(larger, 4))


def test_a_stream_answers_in_order_and_a_bad_batch_at_its_turn(proxy: LocalProxy, local: LocalClient) -> None:
    batches = [ROWS[: 1 + number % 32] * (number + 1) for number in range(60)]
    batches[20] = batches[20] * np.nan
    with Client(proxy.address) as client:
        results = client.stream(batches, 4)
        for number, batch in enumerate(batches):
            if number == 20:
                with pytest.raises(InvalidArgument, match="nan"):
                    next(results)
            else:
                np.testing.assert_array_equal(next(results).advantages, local.transform(batch, 4))


def test_an_error_on_a_stream_comes_under_the_number_of_its_message(proxy: LocalProxy) -> None:
    rewards = {7: 1.0, 9: float("nan"), 4: 2.0}
    messages = [
        pb.TransformStreamRequest(sequence=number, request=request_of([reward, 0.0], [1], 2))
        for number, reward in rewards.items()
    ]
    answers = {each.sequence: each for each in stub_of(proxy.address).TransformStream(iter(messages), timeout=30)}
    assert set(answers) == set(rewards)
    assert answers[9].error.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert answers[9].error.violations[0].field == "groups.rewards[0]"
    assert answers[7].WhichOneof("result") == answers[4].WhichOneof("result") == "response"


def test_a_refusal_arrives_with_all_of_its_details(proxy: LocalProxy, servers: tuple[LiveServer, ...]) -> None:
    # So much is wrong that the details fill the bytes that a server lets them have.
    bad = request_of([float("nan")] * 64, [2**32 - 1] * 9, 8)
    told = []
    for address in (servers[0].address, proxy.address):
        failure = failure_of(stub_of(address).Transform, bad, timeout=30)
        details = dict(failure.trailing_metadata())
        assert details["pkpo-request-id"]
        assert details["pkpo-server-version"]
        told.append((failure.code(), failure.details(), details["grpc-status-details-bin"]))
    assert told[0] == told[1]
    assert told[0][0] is grpc.StatusCode.INVALID_ARGUMENT
    assert len(told[0][2]) > 400
    with Client(proxy.address) as client, pytest.raises(InvalidArgument) as caught:
        client.transform(ROWS, [1] * 31 + [17])
    assert [violation.field for violation in caught.value.violations] == ["k[31]"]


def test_a_message_over_the_limit_is_refused_by_the_server(proxy: LocalProxy, servers: tuple[LiveServer, ...]) -> None:
    too_large = request_of(np.zeros(MOST_BYTES // 8 + 16), [1], 16)
    for address in (servers[0].address, proxy.address):
        failure = failure_of(stub_of(address).Transform, too_large, timeout=30)
        assert failure.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert str(MOST_BYTES) in failure.details()


def test_the_calls_of_one_connection_are_spread_over_the_servers(
    proxy: LocalProxy, servers: tuple[LiveServer, ...]
) -> None:
    before = [answered(server) for server in servers]
    with Client(proxy.address) as client:
        for _ in range(90):
            client.transform(ROWS, 4)
    assert all(answered(server) >= already + 10 for server, already in zip(servers, before, strict=True))


def test_what_calls_carry_reaches_the_server(proxy: LocalProxy) -> None:
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    # As long as some tokens are.
    carried = (("traceparent", f"00-{trace}-00f067aa0ba902b7-01"), ("authorization", "Bearer " + "t" * 6000))
    _, call = stub_of(proxy.address).Transform.with_call(request_of([1.0, 0.0], [1], 2), timeout=30, metadata=carried)
    assert dict(call.trailing_metadata())["pkpo-request-id"] == trace


def test_health_can_be_asked_through_it(proxy: LocalProxy) -> None:
    service = health_pb2.HealthCheckRequest(service="pkpo.v1.RewardTransformService")
    with grpc.insecure_channel(proxy.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        assert health.Check(service, timeout=30).status == health_pb2.HealthCheckResponse.SERVING
        watch = health.Watch(service, timeout=30)
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        watch.cancel()


def test_pings_are_welcome(proxies: Callable[[Kind], LocalProxy], servers: tuple[LiveServer, ...]) -> None:
    """More often than a server takes them: proxies answer them themselves."""
    often = (("grpc.keepalive_time_ms", 200), ("grpc.http2.max_pings_without_data", 0))
    messages: SimpleQueue[None] = SimpleQueue()

    def silent_stream(address: str) -> Any:
        return stub_of(address, *often).TransformStream(iter(messages.get, None), timeout=7)

    direct = silent_stream(servers[0].address)
    proxied = [silent_stream(proxies(kind).address) for kind in KINDS]
    try:
        assert failure_of(direct.__next__).code() is grpc.StatusCode.UNAVAILABLE
        for each in proxied:
            assert failure_of(each.__next__).code() is grpc.StatusCode.DEADLINE_EXCEEDED
    finally:
        for _ in (direct, *proxied):
            messages.put(None)


def test_servers_and_proxies_that_leave_fail_no_call(tmp_path: Path) -> None:
    with ExitStack() as stack:
        servers = stack.enter_context(running(*(LiveServer(wait=False) for _ in range(3))))
        pairs: list[list[LocalProxy]] = []
        for kind in KINDS:
            folders = [tmp_path / f"{kind.name}-{each}" for each in ("leaving", "staying")]
            pairs.append([stack.enter_context(LocalProxy(kind, folder, addresses(servers))) for folder in folders])
        loads = [stack.enter_context(Load("ipv4:" + ",".join(proxy.address for proxy in pair))) for pair in pairs]

        def all_goes_on() -> None:
            reports = [load.report() for load in loads]
            for load, since in zip(loads, reports, strict=True):
                poll(functools.partial(load.has_gone_on, since, 40), "further calls")

        all_goes_on()
        drained = with_a_stream(servers)
        assert drained.stop() == 0
        all_goes_on()
        killed = with_a_stream(tuple(server for server in servers if server is not drained))
        killed.kill()
        all_goes_on()
        port = drained.address.rpartition(":")[2]
        back = stack.enter_context(LiveServer("--port", port))
        poll(lambda: answered(back) > 40, "return of the load")
        for leaving, _ in pairs:
            leaving.drain()
        all_goes_on()
        for leaving, _ in pairs:
            leaving.process.terminate()
        all_goes_on()
        for load in loads:
            load.end()

        for server in (*servers, back):
            server.kill()
        # A status, and not the deadline: whoever calls learns at once that nobody is there.
        for _, staying in pairs:
            failure = failure_of(stub_of(staying.address).Transform, request_of([1.0, 0.0], [1], 2), timeout=20)
            assert failure.code() is grpc.StatusCode.UNAVAILABLE
        with Client(pairs[0][1].address, timeout=5) as client, pytest.raises(Unavailable) as caught:
            client.transform(ROWS, 4)
        assert not isinstance(caught.value, Unreachable)


def test_tls_and_tokens(tmp_path: Path, local: LocalClient) -> None:
    """From the client to the proxy, and from there to the server."""
    authority = trustme.CA()
    folder = tmp_path / "tls"
    folder.mkdir()
    certificate = authority.issue_cert("127.0.0.77", "127.0.0.1", "pkpo")
    certificate.private_key_pem.write_to_path(folder / "tls.key")
    for part in certificate.cert_chain_pems:
        part.write_to_path(folder / "tls.crt", append=True)
    authority.cert_pem.write_to_path(folder / "ca.crt")
    (tmp_path / "tokens").write_text("s3cret-of-a-trainer\n")

    def with_tls(text: str) -> str:
        for mark in ("#tls ", "#tls-upstream "):
            assert mark in text
            text = text.replace(mark, "")
        return text.replace("grpc://", "grpcs://").replace("/etc/pkpo/tls", str(folder))

    flags = ("--tls-certificate", folder / "tls.crt", "--tls-key", folder / "tls.key", "--tokens", tmp_path / "tokens")
    trusting = {"credentials": grpc.ssl_channel_credentials(authority.cert_pem.bytes())}
    with ExitStack() as stack:
        server = stack.enter_context(LiveServer(*map(str, flags), wait=False))
        poll(lambda: server.log_lines("serving"), "server that serves", START_SECONDS)
        for kind in KINDS:
            where = [server.address] * 3
            proxy = stack.enter_context(LocalProxy(kind, tmp_path / kind.name, where, change=with_tls))
            with Client(proxy.address, token="s3cret-of-a-trainer", **trusting) as client:
                np.testing.assert_array_equal(client.transform(ROWS, 4), local.transform(ROWS, 4))
                (result,) = client.stream([ROWS], 4)
                np.testing.assert_array_equal(result.advantages, local.transform(ROWS, 4))
            for token in ("another", None):
                with Client(proxy.address, token=token, **trusting) as client, pytest.raises(Unauthenticated):
                    client.transform(ROWS, 4)
