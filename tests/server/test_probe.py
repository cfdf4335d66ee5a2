"""`python -m pkpo_server.probe`, against real servers."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import grpc
import pytest

from live_server import LiveServer, poll
from pkpo.v1 import reward_transform_pb2 as pb
from pkpo.v1 import reward_transform_pb2_grpc as pb_grpc


def probe(*arguments: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pkpo_server.probe", *arguments]
    return subprocess.run(command, env={**os.environ, **(env or {})}, capture_output=True, text=True, timeout=60)


def complaint(*arguments: str, env: Mapping[str, str] | None = None) -> str:
    """The one line a probe that fails writes."""
    probed = probe(*arguments, env=env)
    assert probed.returncode == 1
    assert probed.stdout == ""
    (line,) = probed.stderr.splitlines()
    return line


def closed_port() -> int:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        port: int = reserved.getsockname()[1]
    return port


def test_serving(server: LiveServer) -> None:
    probed = probe(server.address)
    assert (probed.returncode, probed.stdout, probed.stderr) == (0, "", "")


def test_the_health_port_is_where_it_looks_by_itself() -> None:
    with LiveServer("--health-port", "0") as server:
        port = str(server.log_lines("health")[0]["address"]).rpartition(":")[2]
        assert probe(env={"PKPO_HEALTH_PORT": port}).returncode == 0
    assert complaint(env={"PKPO_HEALTH_PORT": port}).startswith(f"127.0.0.1:{port}: UNAVAILABLE: ")


def test_by_itself_it_looks_where_the_server_s_variables_say(tmp_path: Path) -> None:
    socket_path = tmp_path / "pkpo.sock"
    with LiveServer() as server:
        port = server.address.rpartition(":")[2]
        assert probe(env={"PKPO_PORT": port}).returncode == 0
    assert complaint(env={"PKPO_PORT": port}).startswith(f"127.0.0.1:{port}: UNAVAILABLE: ")
    assert complaint(env={"PKPO_UNIX_SOCKET": str(socket_path)}).startswith(f"unix:{socket_path}: UNAVAILABLE: ")
    said = complaint(env={"PKPO_HEALTH_PORT": port, "PKPO_UNIX_SOCKET": str(socket_path)})
    assert said.startswith(f"127.0.0.1:{port}: ")


@pytest.mark.parametrize("prefix", ["PKPO_", "PKPO_HEALTH_"])
@pytest.mark.parametrize(
    ("host", "asked"),
    [
        ("127.0.0.2", "127.0.0.2"),
        ("::2", "[::2]"),
        ("localhost", "localhost"),
        ("0.0.0.0", "127.0.0.1"),
        ("::", "[::1]"),
    ],
)
def test_by_itself_it_asks_at_the_host_of_the_server_s_variables(prefix: str, host: str, asked: str) -> None:
    """Who listens everywhere is asked on this machine."""
    port = str(closed_port())
    other = {"PKPO_HOST": "192.0.2.1", "PKPO_PORT": "1"}
    said = complaint(env={**other, f"{prefix}HOST": host, f"{prefix}PORT": port})
    assert said.startswith(f"{asked}:{port}: ")


def test_a_server_on_another_address_of_this_machine() -> None:
    env = {"PKPO_HOST": "127.0.0.2", "PKPO_HEALTH_HOST": "127.0.0.3"}
    flags = ("--host", env["PKPO_HOST"], "--health-host", env["PKPO_HEALTH_HOST"])
    with LiveServer("--health-port", "0", *flags) as server:
        (health,) = server.log_lines("health")
        port, health_port = (address.rpartition(":")[2] for address in (server.address, str(health["address"])))
        assert probe(env={**env, "PKPO_PORT": port}).returncode == 0
        assert probe(env={**env, "PKPO_HEALTH_PORT": health_port}).returncode == 0
        assert complaint(env={"PKPO_PORT": port}).startswith(f"127.0.0.1:{port}: UNAVAILABLE: ")


def test_without_any_it_looks_where_a_server_without_settings_serves() -> None:
    assert "(default: 127.0.0.1:50051)" in " ".join(probe("--help").stdout.split())


def test_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "pkpo.sock"
    assert complaint(f"unix:{path}").startswith(f"unix:{path}: UNAVAILABLE: ")
    with LiveServer("--unix-socket", str(path)):
        assert probe(f"unix:{path}").returncode == 0


def test_starting_is_not_serving(tmp_path: Path) -> None:
    """With an empty kernel cache a server starts for long enough to be seen."""
    with LiveServer(env={"NUMBA_CACHE_DIR": str(tmp_path)}, wait=False) as server:
        assert complaint(server.address) == f"{server.address}: NOT_SERVING"


def test_it_asks_again_until_there_is_a_server_that_serves(tmp_path: Path) -> None:
    path = tmp_path / "pkpo.sock"
    command = [sys.executable, "-m", "pkpo_server.probe", "--within", "240", f"unix:{path}"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as asking:
        assert complaint("--within", "2", f"unix:{path}").startswith(f"unix:{path}: UNAVAILABLE: ")
        assert asking.poll() is None
        with LiveServer("--unix-socket", str(path)):
            assert asking.wait(60) == 0
        assert asking.stderr is not None
        assert asking.stderr.read() == ""


def test_draining_is_not_serving() -> None:
    """Held up by accepted work of minutes."""
    groups = pb.RewardGroups(f64=pb.DoubleValues(values=[0.0, 1.0] * 2**20), group_size=2**12)
    request = pb.TransformRequest(groups=groups, variant=pb.VARIANT_PASSK_BOOTSTRAP, k=[2**11])
    with LiveServer("--drain-seconds", "600") as server, grpc.insecure_channel(server.address) as channel:
        held = pb_grpc.RewardTransformServiceStub(channel).Transform.future(request)
        poll(lambda: server.metrics()['pkpo_in_flight{method="Transform"}'] == 1, "work in flight")
        server.process.send_signal(signal.SIGTERM)
        poll(lambda: server.log_lines("draining"), "line that it drains")
        assert complaint(server.address) == f"{server.address}: NOT_SERVING"
        server.kill()
        held.cancel()


def test_a_port_where_nobody_listens() -> None:
    address = f"127.0.0.1:{closed_port()}"
    assert complaint(address).startswith(f"{address}: UNAVAILABLE: ")


def test_a_server_that_says_nothing() -> None:
    """Its deadline is its own, not that of whoever started it."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        assert complaint(address).startswith(f"{address}: ")


def test_a_server_without_health(server: LiveServer) -> None:
    """The metrics port answers, but no gRPC."""
    assert complaint(server.metrics_address).startswith(f"{server.metrics_address}: ")


@pytest.mark.parametrize("address", ["", "nowhere", "127.0.0.1:port", "unix:", "%%%"])
def test_what_is_no_address(address: str) -> None:
    assert complaint(address).startswith(f"{address}: ")


def test_a_command_line_it_does_not_know() -> None:
    for arguments in (("one", "two"), ("--within", "x"), ("--within", "-1"), ("--within", "inf"), ("--within",)):
        assert probe(*arguments).returncode == 2
