"""Start, readiness, health, deadlines, signals and drain of one serving process."""

from __future__ import annotations

import json
import os
import queue
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from live_server import LiveServer, poll
from pkpo import packed
from pkpo.v1 import reward_transform_pb2 as pb
from pkpo.v1 import reward_transform_pb2_grpc as pb_grpc
from pkpo_client import Client, LocalClient, PermissionDenied

SERVICE = "pkpo.v1.RewardTransformService"
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
STREAM_IN_FLIGHT = 'pkpo_in_flight{method="TransformStream"}'
UNARY_IN_FLIGHT = 'pkpo_in_flight{method="Transform"}'


def small_request() -> pb.TransformRequest:
    return pb.TransformRequest(groups=pb.RewardGroups(f64=pb.DoubleValues(values=[0, 1, 1, 0]), group_size=4), k=[2])


def long_request(groups: int) -> pb.TransformRequest:
    """About 0.15 s of work for each group."""
    request = pb.TransformRequest(variant=pb.VARIANT_PASSK_BOOTSTRAP, k=[2**11])
    rewards = np.random.default_rng(3).integers(0, 2, groups * 2**12)
    request.groups.f64.CopyFrom(packed.double_values(rewards))
    request.groups.group_size = 2**12
    return request


def connect(server: LiveServer) -> grpc.Channel:
    return grpc.insecure_channel(server.address, options=[("grpc.use_local_subchannel_pool", 1)])


@pytest.fixture
def own() -> Iterator[LiveServer]:
    """A server that the test may stop."""
    with LiveServer("--threads", "2") as live:
        yield live


# --- health -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("service", ["", SERVICE])
def test_health_serves(channel: grpc.Channel, service: str) -> None:
    stub = health_pb2_grpc.HealthStub(channel)
    assert stub.Check(health_pb2.HealthCheckRequest(service=service)).status == SERVING


def test_health_of_an_unknown_service(channel: grpc.Channel) -> None:
    stub = health_pb2_grpc.HealthStub(channel)
    with pytest.raises(grpc.RpcError) as caught:
        stub.Check(health_pb2.HealthCheckRequest(service="nothing"))
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND
    watch = stub.Watch(health_pb2.HealthCheckRequest(service="nothing"))
    assert next(watch).status == SERVICE_UNKNOWN
    watch.cancel()


def test_watchers_are_told_before_the_server_goes(own: LiveServer) -> None:
    with connect(own) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        watches = [stub.Watch(health_pb2.HealthCheckRequest(service=service)) for service in ("", SERVICE)]
        assert [next(watch).status for watch in watches] == [SERVING, SERVING]
        own.process.send_signal(signal.SIGTERM)
        assert [[answer.status for answer in watch] for watch in watches] == [[NOT_SERVING], [NOT_SERVING]]
    assert own.process.wait(60) == 0


def test_a_watcher_that_does_not_read_holds_nothing_up() -> None:
    with LiveServer("--drain-seconds", "30") as server, connect(server) as channel:
        watches = [health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest()) for _ in range(50)]
        assert next(watches[0]).status == SERVING
        assert server.stop() == 0
        assert server.log_lines("stopped")[0]["seconds"] < 30


def test_starting_is_not_serving(tmp_path: Path) -> None:
    """With an empty kernel cache the server listens long before it can serve, and says so."""
    with LiveServer(env={"NUMBA_CACHE_DIR": str(tmp_path)}, wait=False) as server:
        with connect(server) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            check = stub.Check(health_pb2.HealthCheckRequest(service=SERVICE), timeout=60, wait_for_ready=True)
            assert not server.log_lines("serving")
            assert check.status == NOT_SERVING
            for call, request in (
                ("Transform", small_request()),
                ("Estimate", pb.EstimateRequest()),
                ("GetServerInfo", pb.GetServerInfoRequest()),
            ):
                with pytest.raises(grpc.RpcError) as caught:
                    getattr(pb_grpc.RewardTransformServiceStub(channel), call)(request, timeout=60)
                assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
                assert "starting" in caught.value.details()
            watch = stub.Watch(health_pb2.HealthCheckRequest())
            assert next(watch).status == NOT_SERVING
            server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(60) == 0
        assert not server.log_lines("serving")


def test_watchers_see_the_start(tmp_path: Path) -> None:
    with LiveServer(wait=False) as server, connect(server) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(
            health_pb2.HealthCheckRequest(), wait_for_ready=True, timeout=240
        )
        seen = [next(watch).status]
        while seen[-1] != SERVING:
            seen.append(next(watch).status)
        assert seen in ([SERVING], [NOT_SERVING, SERVING])
        watch.cancel()


# --- reflection -------------------------------------------------------------------------------------------------------


def reflected_services(channel: grpc.Channel) -> set[str]:
    from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    (answer,) = stub.ServerReflectionInfo(iter([request]))
    return {service.name for service in answer.list_services_response.service}


def test_reflection_names_the_services(channel: grpc.Channel) -> None:
    assert reflected_services(channel) >= {SERVICE, "grpc.health.v1.Health"}


def test_reflection_can_be_turned_off() -> None:
    with LiveServer("--no-reflection") as server, connect(server) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            reflected_services(channel)
        assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_what_the_server_is_and_takes_can_be_withheld() -> None:
    with LiveServer("--no-server-info") as server, Client(server.address) as client:
        with pytest.raises(PermissionDenied, match="server_info is false"):
            client.server_info()
        refused = 'pkpo_requests_total{code="PERMISSION_DENIED",method="GetServerInfo",variant="none"}'
        assert server.metrics()[refused] == 1
        assert client.transform([[0.0, 1.0]], 2).tolist() == LocalClient().transform([[0.0, 1.0]], 2).tolist()


# --- deadlines --------------------------------------------------------------------------------------------------------


def test_a_passed_deadline_stops_the_work(own: LiveServer) -> None:
    def count() -> float:
        late = 'pkpo_requests_total{code="DEADLINE_EXCEEDED",method="Transform",variant="'
        return sum(value for name, value in own.metrics().items() if name.startswith(late))

    before = count()
    with connect(own) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            pb_grpc.RewardTransformServiceStub(channel).Transform(long_request(200), timeout=0.7)
        assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        poll(lambda: count() == before + 1, "count of the deadline")
        assert own.metrics()[UNARY_IN_FLIGHT] == 0
        # The threads are free again long before that work could have been done.
        pb_grpc.RewardTransformServiceStub(channel).Transform(long_request(1), timeout=20)


def test_a_cancelled_call_stops_the_work(server: LiveServer) -> None:
    with connect(server) as channel:
        stub = pb_grpc.RewardTransformServiceStub(channel)
        calls = [stub.Transform.future(long_request(200)) for _ in range(4)]
        poll(lambda: server.metrics()[UNARY_IN_FLIGHT] == 4, "work in flight")
        for call in calls:
            call.cancel()
        poll(lambda: server.metrics()[UNARY_IN_FLIGHT] == 0, "end of the work")
        stub.Transform(long_request(1), timeout=20)


def test_the_event_loop_answers_while_big_batches_are_computed(server: LiveServer) -> None:
    with connect(server) as channel:
        stub = pb_grpc.RewardTransformServiceStub(channel)
        long = [stub.Transform.future(long_request(30)) for _ in range(4)]
        poll(lambda: server.metrics()[UNARY_IN_FLIGHT] == 4, "work in flight")
        for _ in range(20):
            stub.Transform(small_request(), timeout=20)
        assert not any(call.done() for call in long)
        for call in long:
            call.cancel()


# --- signals and drain ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_an_idle_server(own: LiveServer, number: signal.Signals) -> None:
    own.process.send_signal(number)
    assert own.process.wait(60) == 0
    assert own.log_lines("draining")[0]["signal"] == number.name
    assert own.log_lines("stopped")


def test_unary_work_in_flight_is_finished(own: LiveServer) -> None:
    with connect(own) as channel:
        call = pb_grpc.RewardTransformServiceStub(channel).Transform.future(long_request(10))
        poll(lambda: own.metrics()[UNARY_IN_FLIGHT] == 1, "work in flight")
        own.process.send_signal(signal.SIGTERM)
        assert len(call.result(60).f64.values) == 10 * 2**12
    assert own.process.wait(60) == 0


def test_received_stream_messages_are_answered_before_the_stream_ends(own: LiveServer) -> None:
    messages: queue.Queue[Any] = queue.Queue()
    with connect(own) as channel:
        call = pb_grpc.RewardTransformServiceStub(channel).TransformStream(iter(messages.get, None))
        for i in range(4):
            messages.put(pb.TransformStreamRequest(sequence=i, request=long_request(3)))
        poll(lambda: own.metrics()[STREAM_IN_FLIGHT] == 4, "work in flight")
        own.process.send_signal(signal.SIGTERM)
        poll(lambda: own.log_lines("draining"), "drain")
        assert sorted(next(call).sequence for _ in range(4)) == [0, 1, 2, 3]
        with pytest.raises(grpc.RpcError) as caught:
            next(call)
        messages.put(None)
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        assert "again" in caught.value.details()
    assert own.process.wait(60) == 0


def test_an_idle_stream_does_not_hold_the_drain_up(own: LiveServer) -> None:
    messages: queue.Queue[Any] = queue.Queue()
    with connect(own) as channel:
        call = pb_grpc.RewardTransformServiceStub(channel).TransformStream(iter(messages.get, None))
        messages.put(pb.TransformStreamRequest(sequence=1, request=small_request()))
        assert next(call).sequence == 1
        own.process.send_signal(signal.SIGTERM)
        with pytest.raises(grpc.RpcError) as caught:
            next(call)
        messages.put(None)
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        assert own.process.wait(60) == 0
        assert [line["reason"] for line in own.log_lines("refused")] == ["draining"]
        assert own.log_lines("stopped")[0]["seconds"] < 30


def test_new_calls_are_refused_while_draining_and_accepted_ones_are_answered(own: LiveServer) -> None:
    with connect(own) as channel:
        call = pb_grpc.RewardTransformServiceStub(channel).Transform.future(long_request(15))
        poll(lambda: own.metrics()[UNARY_IN_FLIGHT] == 1, "work in flight")
        own.process.send_signal(signal.SIGTERM)
        poll(lambda: own.log_lines("draining"), "drain")
        with connect(own) as other, pytest.raises(grpc.RpcError) as caught:
            pb_grpc.RewardTransformServiceStub(other).Transform(small_request())
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        # Without headers, so that a retrying client tries again elsewhere.
        assert not caught.value.initial_metadata()
        assert len(call.result(60).f64.values)


def test_work_beyond_the_drain_is_cut() -> None:
    with LiveServer("--drain-seconds", "0.3") as server, connect(server) as channel:
        call = pb_grpc.RewardTransformServiceStub(channel).Transform.future(long_request(500))
        poll(lambda: server.metrics()[UNARY_IN_FLIGHT] == 1, "work in flight")
        assert server.stop() == 0
        with pytest.raises(grpc.RpcError) as caught:
            call.result(60)
        assert caught.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_second_signal_forces(own: LiveServer, number: signal.Signals, status: int) -> None:
    with connect(own) as channel:
        held = pb_grpc.RewardTransformServiceStub(channel).Transform.future(long_request(500))
        poll(lambda: own.metrics()[UNARY_IN_FLIGHT] == 1, "work in flight")
        own.process.send_signal(number)
        poll(lambda: own.log_lines("draining"), "drain")
        own.process.send_signal(number)
        assert own.process.wait(60) == status
        assert isinstance(held.exception(60), grpc.RpcError)
    assert poll(lambda: own.log_lines("forced"), "line of the second signal")[0]["signal"] == number.name


# --- where it listens -------------------------------------------------------------------------------------------------


def test_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "pkpo.sock"
    with LiveServer("--unix-socket", str(path)) as server:
        assert server.address == f"unix:{path}"
        with connect(server) as channel:
            assert len(pb_grpc.RewardTransformServiceStub(channel).Transform(small_request()).f64.values) == 4
        second = start_and_wait("--unix-socket", str(path))
        assert second.returncode == 1
        assert "another process serves on it" in second.stderr
        with connect(server) as channel:
            pb_grpc.RewardTransformServiceStub(channel).Transform(small_request())
        server.kill()
    # What a killed server leaves behind does not keep the next one from its place.
    assert path.is_socket()
    with LiveServer("--unix-socket", str(path)) as server, connect(server) as channel:
        pb_grpc.RewardTransformServiceStub(channel).Transform(small_request())


def test_who_may_connect_to_a_unix_socket_can_be_said(tmp_path: Path) -> None:
    path = tmp_path / "pkpo.sock"
    before = os.umask(0o027)
    try:
        for flags, mode in (
            ((), 0o750),
            (("--unix-socket-mode", "0666"), 0o666),
            (("--unix-socket-mode", "600"), 0o600),
        ):
            with LiveServer("--unix-socket", str(path), *flags) as server, connect(server) as channel:
                assert stat.S_IMODE(path.stat().st_mode) == mode
                pb_grpc.RewardTransformServiceStub(channel).Transform(small_request())
    finally:
        os.umask(before)


STRANGER = """
import os, socket, sys
os.setgroups([])
os.setgid(12345)
os.setuid(12345)
socket.socket(socket.AF_UNIX).connect(sys.argv[1])
"""


@pytest.mark.parametrize(("mode", "may"), [("660", False), ("666", True)])
def test_another_user_connects_if_the_mode_says_so(mode: str, may: bool) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to become another user")
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        path = Path(folder) / "pkpo.sock"
        with LiveServer("--unix-socket", str(path), "--unix-socket-mode", mode):
            done = subprocess.run(
                [sys.executable, "-c", STRANGER, str(path)], capture_output=True, text=True, timeout=60
            )
    assert (done.returncode == 0, "PermissionError" in done.stderr) == (may, not may)


def start_and_wait(*flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pkpo_server", "--metrics-port", "0", *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def why_not_started(*flags: str) -> str:
    done = start_and_wait(*flags)
    assert done.returncode == 1
    (line,) = [line for line in map(json.loads, done.stderr.splitlines()) if line["event"] == "failed"]
    return str(line["message"])


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize(
    ("flag", "variable"),
    [("--port", "PKPO_PORT"), ("--health-port", "PKPO_HEALTH_PORT"), ("--metrics-port", "PKPO_METRICS_PORT")],
)
def test_a_port_in_use_is_said_and_not_shared(flag: str, variable: str, workers: str, server: LiveServer) -> None:
    taken = server.metrics_address if flag == "--metrics-port" else server.address
    port = taken.rsplit(":", 1)[1]
    said = why_not_started("--port", "0", "--workers", workers, flag, port)
    assert said == f"{flag} ({variable}): cannot listen on 127.0.0.1:{port}: it is in use"


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("which", ["", "health-", "metrics-"])
def test_a_host_that_is_not_this_machine_s_is_said(which: str, workers: str) -> None:
    """192.0.2.0/24 is for documentation, and .invalid is nobody's."""
    named = f"--{which}host (PKPO_{which.upper().replace('-', '_')}HOST): cannot listen on"
    flags = ("--port", "0", "--workers", workers, "--health-port", "0", f"--{which}host")
    assert why_not_started(*flags, "192.0.2.1") == f"{named} 192.0.2.1:0: 192.0.2.1 is no address of this machine"
    with pytest.raises(socket.gaierror) as unknown:
        socket.getaddrinfo("not.a.host.invalid", 0)
    said = why_not_started(*flags, "not.a.host.invalid")
    assert said == f"{named} not.a.host.invalid:0: {unknown.value.strerror}"
    for host in ("a..b", f"{'a' * 64}.invalid"):
        assert why_not_started(*flags, host) == f"{named} {host}:0: it can be no host's name"


def test_nothing_listens_before_the_files_that_are_set_were_read(tmp_path: Path) -> None:
    absent = str(tmp_path / "absent")
    for flags in (("--tls-certificate", absent, "--tls-key", absent), ("--tokens", absent)):
        done = start_and_wait("--port", "0", *flags)
        assert [json.loads(line)["event"] for line in done.stderr.splitlines()] == ["failed"]


@pytest.mark.parametrize("workers", ["1", "2"])
def test_metrics_that_are_open_are_warned_about(workers: str) -> None:
    flags = ("--metrics-host", "0.0.0.0", "--health-port", "0", "--health-host", "0.0.0.0", "--workers", workers)
    with LiveServer(*flags) as server:
        (line,) = server.log_lines("insecure")
        assert line["level"] == "warning"
        assert line["address"] == server.metrics_address
        assert line["message"].startswith("metrics, ")


@pytest.mark.parametrize("workers", ["1", "2"])
def test_mistyped_variables_are_warned_about_once(workers: str) -> None:
    env = {"PKPO_TOKEN": "A.tok", "PKPO_RUN_ID": "a client's", "PKPO_SERVICE_HOST": "10.0.0.1"}
    with LiveServer("--workers", workers, env=env) as server:
        (line,) = server.log_lines("variable_unknown")
        assert line["level"] == "warning"
        assert line["message"] == "PKPO_TOKEN is no setting; PKPO_TOKENS is"
        assert not any("A.tok" in line for line in server.raw_log())


@pytest.mark.parametrize(("host", "warned"), [("0.0.0.0", True), ("::1", False), ("localhost", False)])
def test_an_open_address_is_warned_about(host: str, warned: bool) -> None:
    if host == "::1":
        try:
            socket.create_server(("::1", 0), family=socket.AF_INET6).close()
        except OSError:
            pytest.skip("needs an IPv6 loopback")
    with LiveServer("--host", host) as server:
        assert bool(server.log_lines("insecure")) == warned
        port = server.address.rsplit(":", 1)[1]
        with grpc.insecure_channel(f"localhost:{port}") as channel:
            pb_grpc.RewardTransformServiceStub(channel).Transform(small_request())


def test_old_connections_are_replaced_without_a_failed_call() -> None:
    with LiveServer("--max-connection-age-seconds", "0.1") as server, connect(server) as channel:
        stub = pb_grpc.RewardTransformServiceStub(channel)
        peers = set()

        def reconnected() -> bool:
            stub.Transform(small_request(), timeout=60)
            with pytest.raises(grpc.RpcError) as caught:
                stub.Transform(pb.TransformRequest(), timeout=60)
            assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
            peers.update(line["peer"] for line in server.log_lines("refused"))
            return len(peers) > 2

        poll(reconnected, "new connections")


def test_many_callers_at_once(server: LiveServer) -> None:
    failures: list[BaseException] = []

    def call() -> None:
        try:
            with connect(server) as channel:
                stub = pb_grpc.RewardTransformServiceStub(channel)
                for _ in range(20):
                    assert len(stub.Transform(small_request(), timeout=60).f64.values) == 4
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=call) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


# --- callers that vanish ----------------------------------------------------------------------------------------------

HASTE = """
from pkpo_server import lifecycle
lifecycle.KEEPALIVE_TIME_MS = lifecycle.KEEPALIVE_TIMEOUT_MS = 1000
"""
CALLER = """
import sys, threading, grpc
from pkpo.v1 import reward_transform_pb2 as pb, reward_transform_pb2_grpc as pb_grpc

def messages():
    groups = pb.RewardGroups(f64=pb.DoubleValues(values=[0, 1]), group_size=2)
    yield pb.TransformStreamRequest(sequence=1, request=pb.TransformRequest(groups=groups, k=[1]))
    threading.Event().wait()

with grpc.insecure_channel(sys.argv[1]) as channel:
    for answer in pb_grpc.RewardTransformServiceStub(channel).TransformStream(messages()):
        print(answer.sequence, flush=True)
"""


def test_a_caller_that_vanished_is_let_go(tmp_path: Path) -> None:
    """Stopped, it answers no ping, while the system goes on to take what is sent to it. gRPC by itself waits a minute,
    whatever the keepalive's timeout."""
    (tmp_path / "sitecustomize.py").write_text(HASTE)
    with LiveServer(env={"PYTHONPATH": str(tmp_path)}) as server:
        command = [sys.executable, "-c", CALLER, server.address]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as caller:
            assert caller.stdout is not None
            assert caller.stdout.readline() == "1\n"
            time.sleep(4)  # several pings that it answers
            assert server.metrics()["pkpo_open_streams"] == 1
            caller.send_signal(signal.SIGSTOP)
            poll(lambda: server.metrics()["pkpo_open_streams"] == 0, "end of its stream", 40)
            caller.kill()
