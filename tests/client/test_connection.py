"""Where a client connects, who it says is calling, and how long it lives."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
from collections import deque
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from live_server import LiveServer
from pkpo.v1 import reward_transform_pb2 as pb
from pkpo.v1 import reward_transform_pb2_grpc
from pkpo_client import AsyncClient, Client, ClientClosed, DeadlineExceeded, InvalidArgument, LocalClient, channel
from pkpo_client import async_client as async_client_module
from pkpo_client import client as client_module
from pkpo_client.channel import Endpoint

ROWS = np.random.default_rng(3).random((3, 6))


@pytest.mark.parametrize(
    "address",
    [
        "localhost:50051",
        "127.0.0.1:1",
        "[::1]:50051",
        "dns:///pkpo-headless:50051",
        "dns://8.8.8.8/pkpo:65535",
        "ipv4:10.0.0.1:50051,10.0.0.2:50051",
        "ipv6:[::1]:50051",
        "unix:/run/pkpo.sock",
        "unix:///run/pkpo.sock",
        "pkpo.default.svc.cluster.local:50051",
    ],
)
def test_addresses(address: str) -> None:
    with Client(address) as client:
        assert client.address == address
        assert repr(client) == f"Client({address!r})"


@pytest.mark.parametrize(
    "address",
    ["", "localhost", "localhost:", ":50051", "localhost:0", "localhost:65536", "localhost:http", "http://localhost:50051",
     "https://x", "grpc://localhost:50051", "local host:1", "unix:", "::1:50051", "dns:///pkpo", 50051, None, b"a:1"],
)  # fmt: skip
@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_what_is_no_address_is_refused_at_once(kind: Any, address: Any) -> None:
    with pytest.raises(InvalidArgument, match="address") as caught:
        kind(address)
    assert repr(address) in str(caught.value)


def test_a_unix_socket(tmp_path: Path, local: LocalClient) -> None:
    socket = tmp_path / "pkpo.sock"
    with LiveServer("--unix-socket", str(socket)), Client(f"unix:{socket}", token="secret") as client:
        np.testing.assert_array_equal(client.transform(ROWS, 3), local.transform(ROWS, 3))


def test_a_token_travels_with_every_call(flavour: Any, proxy: Any) -> None:
    for method, arguments in [("transform", (ROWS, 2)), ("estimate", (ROWS, 2)), ("server_info", ())]:
        flavour.call(proxy.address, method, *arguments, of_client={"token": "s3cret"})
        assert proxy.metadata["authorization"] == "Bearer s3cret"
    flavour.stream(proxy.address, [ROWS], 2, of_client={"token": "s3cret"})
    assert proxy.metadata["authorization"] == "Bearer s3cret"
    flavour.call(proxy.address, "server_info")
    assert "authorization" not in proxy.metadata


@pytest.mark.parametrize(
    "address", ["10.0.0.1:50051", "dns:///pkpo:50051", "ipv4:127.0.0.1:1,10.0.0.1:1", "xds:///pkpo"]
)
def test_a_token_does_not_leave_the_machine_in_the_clear(address: str) -> None:
    with pytest.raises(InvalidArgument, match="plaintext") as caught:
        Client(address, token="s3cret")
    assert "s3cret" not in str(caught.value)
    Client(address, token="s3cret", credentials=grpc.ssl_channel_credentials()).close()
    Client(address).close()


@pytest.mark.parametrize("address", ["localhost:1", "127.8.8.8:1", "[::1]:1", "dns:///localhost:1", "unix:/x"])
def test_on_this_machine_a_token_may_travel_in_the_clear(address: str) -> None:
    client = Client(address, token="s3cret")
    assert "s3cret" not in repr(vars(client))
    client.close()


@pytest.mark.parametrize("token", ["", "two words", "line\nbreak", "ümlaut", 7])
def test_what_is_no_token_is_refused(token: Any) -> None:
    with pytest.raises(InvalidArgument, match="token"):
        Client("localhost:1", token=token)


def test_credentials_are_grpcs() -> None:
    with pytest.raises(InvalidArgument, match="ChannelCredentials"):
        Client("localhost:1", credentials="secret.pem")  # type: ignore[arg-type]


def test_tls(flavour: Any, proxy: Any, tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl")
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"),
            *("-addext", "subjectAltName=IP:127.0.0.1", "-keyout", tmp_path / "key", "-out", tmp_path / "certificate"),
        ],
        check=True,
        capture_output=True,
    )
    key, certificate = (tmp_path / "key").read_bytes(), (tmp_path / "certificate").read_bytes()
    server = grpc.server(futures.ThreadPoolExecutor(4))
    reward_transform_pb2_grpc.add_RewardTransformServiceServicer_to_server(proxy, server)
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(key, certificate)]))
    server.start()
    try:
        trusting = {"credentials": grpc.ssl_channel_credentials(certificate), "token": "s3cret"}
        assert flavour.call(f"127.0.0.1:{port}", "transform", ROWS, 2, of_client=trusting).shape == ROWS.shape
        assert proxy.metadata["authorization"] == "Bearer s3cret"
        with pytest.raises(TypeError, match="credentials"):
            pickle.dumps(Client(f"127.0.0.1:{port}", **trusting))  # type: ignore[arg-type]
    finally:
        server.stop(None).wait()


def test_a_closed_client_says_so(client: Client, server: LiveServer, local: LocalClient) -> None:
    client.transform(ROWS, 2)
    client.close()
    client.close()
    with pytest.raises(ClientClosed, match="closed"):
        client.transform(ROWS, 2)
    with pytest.raises(ClientClosed), client:
        pass
    assert "closed" in repr(client)

    here = LocalClient()
    here.close()
    here.close()
    with pytest.raises(ClientClosed):
        here.estimate(ROWS, 2)

    async def main() -> None:
        there = AsyncClient(server.address)
        await there.transform(ROWS, 2)
        await there.close()
        await there.close()
        with pytest.raises(ClientClosed):
            await there.transform(ROWS, 2)

    asyncio.run(main())


def test_closing_ends_calls_under_way(proxy: Any) -> None:
    may_answer = threading.Event()
    proxy.faults["Transform"] = deque([lambda context: may_answer.wait(30)] * 2)
    client = Client(proxy.address)
    client.server_info()
    with futures.ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(client.transform, ROWS, 2)
        while not proxy.calls["Transform"]:
            threading.Event().wait(0.01)
        client.close()
        with pytest.raises(ClientClosed):
            waiting.result()

    async def main() -> None:
        made = AsyncClient(proxy.address)
        task = asyncio.ensure_future(made.transform(ROWS, 2))
        while proxy.calls["Transform"] < 2:
            await asyncio.sleep(0.01)
        await made.close()
        with pytest.raises(ClientClosed):
            await task

    asyncio.run(main())
    may_answer.set()


def test_a_cancelled_task_stays_cancelled(proxy: Any) -> None:
    may_answer = threading.Event()
    proxy.faults["Transform"] = deque([lambda context: may_answer.wait(30)])

    async def main() -> None:
        async with AsyncClient(proxy.address) as made:
            task = asyncio.ensure_future(made.transform(ROWS, 2))
            while not proxy.calls["Transform"]:
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(main())
    may_answer.set()


def test_a_client_may_be_shared_by_threads(client: Client, local: LocalClient) -> None:
    batches = [ROWS * (i + 1) for i in range(60)]
    with futures.ThreadPoolExecutor(12) as pool:
        found = list(pool.map(lambda rows: client.transform(rows, 3), batches))
    for each, rows in zip(found, batches, strict=True):
        np.testing.assert_array_equal(each, local.transform(rows, 3))


def test_many_calls_at_once_on_one_loop(server: LiveServer, local: LocalClient) -> None:
    async def main() -> Any:
        async with AsyncClient(server.address) as made:
            return await asyncio.gather(*(made.transform(ROWS * (i + 1), 3) for i in range(40)))

    for i, each in enumerate(asyncio.run(main())):
        np.testing.assert_array_equal(each, local.transform(ROWS * (i + 1), 3))


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_a_client_pickles_as_what_it_was_made_of(kind: Any) -> None:
    made = kind(
        "localhost:1",
        token="t",
        fallback="local",
        variant="grpo",
        scale="mean",
        k_policy="clamp",
        run_id="r",
        timeout=9,
    )
    copy = pickle.loads(pickle.dumps(made))
    assert copy.__getstate__() == made.__getstate__()
    assert copy.__getstate__()["variant"] == "grpo"


def test_a_local_client_pickles(local: LocalClient) -> None:
    copy = pickle.loads(pickle.dumps(LocalClient(variant="grpo")))
    np.testing.assert_array_equal(copy.transform(ROWS), local.transform(ROWS, variant="grpo"))


FORKING = """
import os, sys
import numpy as np
from pkpo_client import Client, ClientClosed
unused, used = Client(sys.argv[1]), Client(sys.argv[1])
used.transform(np.ones((2, 3)), 2)
child = os.fork()
if child == 0:
    try:
        used.transform(np.ones((2, 3)), 2)
    except ClientClosed as error:
        os._exit(0 if "fork" in str(error) else 2)
    os._exit(3)
assert os.waitpid(child, 0)[1] == 0
used.transform(np.ones((2, 3)), 2)
"""


def test_a_client_that_was_used_says_so_after_a_fork(server: LiveServer) -> None:
    if not hasattr(os, "fork"):
        pytest.skip("needs fork")
    subprocess.run([sys.executable, "-c", FORKING, server.address], check=True, timeout=60)


FAILING = """
import numpy as np
from pkpo_client import Client, Unreachable
client = Client("127.0.0.1:1", timeout=0.3)
try:
    client.transform(np.ones((1, 2)), 2)
except Unreachable:
    print("away")
"""


def test_a_program_ends_though_it_closed_nothing_after_a_call_that_failed() -> None:
    """gRPC's own thread still watches the channel then, and would be waited for without end."""
    done = subprocess.run([sys.executable, "-c", FAILING], check=True, timeout=60, capture_output=True, text=True)
    assert done.stdout == "away\n"


def test_an_asynchronous_client_belongs_to_one_loop(server: LiveServer) -> None:
    made = AsyncClient(server.address)

    async def main() -> None:
        await made.transform(ROWS, 2)

    asyncio.run(main())
    with pytest.raises(ClientClosed, match="loop"):
        asyncio.run(main())


def test_the_deadline_is_of_the_whole_call(proxy: Any) -> None:
    """Split over many parts that each take their time, a call ends when its own time is up."""

    def small(context: Any) -> Any:
        return pb.GetServerInfoResponse(limits=pb.Limits(max_groups=1))

    proxy.faults["GetServerInfo"] = deque([small])
    answered = proxy._answer

    def slowly(method: str, request: Any, context: Any) -> Any:
        threading.Event().wait(0.2 if method == "Transform" else 0)
        return answered(method, request, context)

    proxy._answer = slowly
    with Client(proxy.address) as client, pytest.raises(DeadlineExceeded):
        client.transform(np.ones((50, 3)), 2, timeout=1)
    assert proxy.calls["Transform"] < 10


def test_computing_here_has_a_deadline_too(local: LocalClient) -> None:
    local.transform(ROWS, 3)
    with pytest.raises(DeadlineExceeded):
        local.transform(np.random.default_rng(0).random((200_000, 8)), 3, timeout=1e-9)
    local.transform(ROWS, 3, timeout=math.inf)


def test_another_major_version_is_said_once(proxy: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "pkpo_client")
    client = Client("localhost:1")
    for _ in range(3):
        client._learn_version([("x", "y"), ("pkpo-server-version", "7.1.0")])
    assert client.server_version == "7.1.0"
    assert len(caplog.records) == 1
    assert "7.1.0" in caplog.text
    client._learn_version([("pkpo-server-version", b"0.9.0")])
    client._learn_version([])
    assert client.server_version == "0.9.0"
    assert len(caplog.records) == 1


def test_a_fallback_is_local_or_none() -> None:
    with pytest.raises(InvalidArgument, match="fallback"):
        Client("localhost:1", fallback="zeros")


def test_calls_of_a_client_are_balanced_over_all_addresses(local: LocalClient) -> None:
    with LiveServer() as one, LiveServer() as other:
        with Client(f"ipv4:{one.address},{other.address}") as client:
            for _ in range(20):
                client.transform(ROWS, 3)
        for each in (one, other):
            assert any("Transform" in name and value >= 5 for name, value in each.metrics().items())


def test_a_server_that_stands_still_is_left_for_another(monkeypatch: pytest.MonkeyPatch, local: LocalClient) -> None:
    """Its machine acknowledges what it is sent, so only unanswered pings tell. All times are a twentieth here."""
    hasty = tuple((name, value // 20 if name.endswith("_ms") else value) for name, value in channel._OPTIONS)
    monkeypatch.setattr(channel, "_OPTIONS", hasty)
    with LiveServer() as one, LiveServer() as other, Client(f"ipv4:{one.address},{other.address}") as client:
        for _ in range(20):
            client.transform(ROWS, 3)
        one.process.send_signal(signal.SIGSTOP)
        try:
            for _ in range(6):
                np.testing.assert_array_equal(client.transform(ROWS, 3), local.transform(ROWS, 3))
        finally:
            one.process.send_signal(signal.SIGCONT)


def test_what_the_page_says_of_times_is_what_channels_are_told() -> None:
    page = (Path(__file__).parents[2] / "docs" / "client.md").read_text()
    told = dict(Endpoint("localhost:50051")._options())
    noticed = (told["grpc.keepalive_time_ms"] + told["grpc.keepalive_timeout_ms"]) // 1000
    assert f"within {noticed} s" in page
    assert f"within {told['grpc.max_reconnect_backoff_ms'] // 1000} s" in page
    assert told["grpc.http2.ping_timeout_ms"] == told["grpc.keepalive_timeout_ms"]
    assert told["grpc.http2.max_pings_without_data"] == 0
    assert f"at most every {told['grpc.dns_min_time_between_resolutions_ms'] // 1000} s" in page


@pytest.mark.parametrize("refused", [None, grpc.StatusCode.PERMISSION_DENIED], ids=["answered", "refused"])
def test_who_answers_is_connected_and_is_told_who_asks(proxy: Any, refused: grpc.StatusCode | None) -> None:
    def fault() -> deque[Any]:
        return deque([lambda context: context.abort(refused, "not you")] if refused else [])

    async def trouble() -> str | None:
        async with AsyncClient(proxy.address, token="s3cret") as client:
            return await client._trouble(client._connected())

    proxy.faults["GetServerInfo"] = fault()
    with Client(proxy.address, token="s3cret") as client:
        assert client._trouble(client._connected()) is None
    assert proxy.metadata.pop("authorization") == "Bearer s3cret"
    proxy.faults["GetServerInfo"] = fault()
    assert asyncio.run(trouble()) is None
    assert proxy.metadata["authorization"] == "Bearer s3cret"
    assert proxy.calls["GetServerInfo"] == 2


@pytest.mark.parametrize("streaming", [False, True], ids=["call", "stream"])
def test_closing_while_a_client_looks_what_is_wrong_says_so(
    silent_port: Any, monkeypatch: pytest.MonkeyPatch, streaming: bool
) -> None:
    """As everywhere else, on an event loop too, where gRPC cancels."""
    looking = threading.Event()

    def watched(trouble: Any) -> Any:
        def watching(self: Any, connection: Any) -> Any:
            looking.set()
            return trouble(self, connection)

        return watching

    for kind, module in ((Client, client_module), (AsyncClient, async_client_module)):
        monkeypatch.setattr(kind, "_trouble", watched(kind._trouble))
        monkeypatch.setattr(module, "GLANCE_SECONDS", 60.0)

    silent_port.open()
    client = Client(silent_port.address)
    list(client.stream([ROWS], 2))
    silent_port.shut()
    with futures.ThreadPoolExecutor(1) as pool:
        next_of = client.stream([ROWS], 2, timeout=0.4).__next__
        waiting = pool.submit(next_of if streaming else lambda: client.transform(ROWS, 2, timeout=0.4))
        assert looking.wait(30)
        threading.Event().wait(1.0)  # a thread of gRPC's that watches the channel for 0.2 s would complain
        client.close()
        with pytest.raises(ClientClosed):
            waiting.result()

    async def main() -> None:
        made = AsyncClient(silent_port.address)
        async for _ in made.stream([ROWS], 2):
            pass
        silent_port.shut()
        looking.clear()
        stream = made.stream([ROWS], 2, timeout=0.4)
        task = asyncio.ensure_future(stream.__anext__() if streaming else made.transform(ROWS, 2, timeout=0.4))
        while not looking.is_set():
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)  # into the call
        await made.close()
        with pytest.raises(ClientClosed):
            await task

    silent_port.open()
    asyncio.run(asyncio.wait_for(main(), 60))
