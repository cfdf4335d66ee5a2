"""Several workers: one port, one metrics endpoint, and neither ends when a worker does."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import numpy as np
import pytest

import pkpo_core
from live_server import LiveServer, poll
from pkpo import packed
from pkpo.v1 import reward_transform_pb2 as pb
from pkpo.v1 import reward_transform_pb2_grpc as pb_grpc
from pkpo_core import RewardGroups
from pkpo_server.settings import InvalidSettings, Settings
from pkpo_server.workers import run_supervisor

OK = 'pkpo_requests_total{code="OK",method="Transform",variant="S"}'
IN_FLIGHT = 'pkpo_in_flight{method="Transform"}'


def request(groups: int = 2, **fields: Any) -> pb.TransformRequest:
    message = pb.TransformRequest(**{"k": [2], "variant": pb.VARIANT_S, **fields})
    message.groups.f64.CopyFrom(packed.double_values(np.arange(4.0 * groups)))
    message.groups.group_size = 4
    return message


def long_request(groups: int) -> pb.TransformRequest:
    message = pb.TransformRequest(variant=pb.VARIANT_PASSK_BOOTSTRAP, k=[2**11])
    message.groups.f64.CopyFrom(packed.double_values(np.arange(groups * 2.0**12)))
    message.groups.group_size = 2**12
    return message


def connect(server: LiveServer) -> grpc.Channel:
    """A connection of its own, and so a worker of the kernel's choice."""
    return grpc.insecure_channel(server.address, options=[("grpc.use_local_subchannel_pool", 1)])


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[LiveServer]:
    with LiveServer("--workers", "2", env={"TMPDIR": str(tmp_path)}) as live:
        yield live


def pids(server: LiveServer) -> dict[int, int]:
    """The newest process of each worker."""
    return {line["worker"]: line["pid"] for line in server.log_lines("worker_serving")}


def call_until_both_answered(server: LiveServer) -> int:
    """Calls over ever new connections until each worker has been met; returns the number of calls."""
    calls = 0
    peers: set[int] = set()
    while len(peers) < 2:
        with connect(server) as channel:
            stub = pb_grpc.RewardTransformServiceStub(channel)
            stub.Transform(request(), timeout=60)
            calls += 1
            with pytest.raises(grpc.RpcError):
                stub.Transform(request(k=[9]), timeout=60)
        peers = {line["worker"] for line in server.log_lines("refused")}
        assert calls < 500
    return calls


def test_two_workers_share_a_port_and_a_metrics_endpoint(pair: LiveServer) -> None:
    (serving,) = pair.log_lines("serving")
    assert serving["workers"] == 2
    assert sorted(pids(pair)) == [0, 1]
    before = pair.metrics()
    assert before[OK] == 0
    assert before['pkpo_requests_total{code="INTERNAL",method="Estimate",variant="none"}'] == 0
    assert before["pkpo_workers"] == 2
    assert before["process_resident_memory_bytes"] > 50e6
    calls = call_until_both_answered(pair)
    # A worker counts its answers a moment after they have left.
    poll(lambda: pair.metrics()[OK] == calls, "counts")
    after = pair.metrics()
    assert after['pkpo_groups_total{run="none",variant="S"}'] == 2 * calls
    assert after['pkpo_request_seconds_count{method="Transform"}'] == 2 * calls
    assert after[IN_FLIGHT] == 0
    over = threading.Event()

    def nothing() -> Iterator[pb.TransformStreamRequest]:
        over.wait(60)
        yield from ()

    with connect(pair) as channel:
        answers = pb_grpc.RewardTransformServiceStub(channel).TransformStream(nothing())
        poll(lambda: pair.metrics()["pkpo_open_calls"] == 1, "an open call")
        over.set()
        assert list(answers) == []
    poll(lambda: pair.metrics()["pkpo_open_calls"] == 0, "no open call")
    assert (before["pkpo_open_calls_limit"], before["pkpo_threads"] >= 2) == (2 * 1024, True)
    poll(lambda: pair.metrics().get('pkpo_max_at_k_groups_total{k="2",run="none"}') == 2 * calls, "curves")
    builds = [value for name, value in after.items() if name.startswith("pkpo_build_info")]
    assert builds == [1]
    assert not any("pid=" in name for name in after)


def test_a_killed_worker_is_replaced_and_its_counts_stay(pair: LiveServer) -> None:
    calls = call_until_both_answered(pair)
    poll(lambda: pair.metrics()[OK] == calls, "counts")
    first = pids(pair)
    held = []
    with connect(pair) as channel:
        held.append(pb_grpc.RewardTransformServiceStub(channel).Transform.future(long_request(500)))
        poll(lambda: pair.metrics()[IN_FLIGHT] == 1, "work in flight")
        for pid in first.values():
            os.kill(pid, signal.SIGKILL)
        assert held[0].exception(60).code() == grpc.StatusCode.UNAVAILABLE
    poll(lambda: len(pair.log_lines("worker_died")) == 2, "news of the deaths")
    assert {line["status"] for line in pair.log_lines("worker_died")} == {-signal.SIGKILL}
    poll(lambda: pair.metrics()["pkpo_workers"] == 2, "replacements", 60)
    samples = pair.metrics()
    assert samples[OK] == calls
    assert samples[IN_FLIGHT] == 0
    assert samples["pkpo_worker_restarts_total"] == 2
    assert not set(first.values()) & set(pids(pair).values())
    with connect(pair) as channel:
        answer = pb_grpc.RewardTransformServiceStub(channel).Transform(request(), timeout=60)
    expected = pkpo_core.transform(RewardGroups(np.arange(8.0), 4), 2, variant=pkpo_core.Variant.S).advantages
    assert np.array(answer.f64.values).tobytes() == expected.tobytes()
    poll(lambda: pair.metrics()[OK] == calls + 1, "its count")


def test_calls_go_on_while_a_worker_is_killed(pair: LiveServer) -> None:
    """Over new connections; a retry is what a client does with UNAVAILABLE."""
    victim = pids(pair)[0]
    over = threading.Event()
    failures: list[Any] = []
    answered = 0

    def call() -> None:
        nonlocal answered
        while not over.is_set():
            with connect(pair) as channel:
                try:
                    pb_grpc.RewardTransformServiceStub(channel).Transform(request(), timeout=60)
                    answered += 1
                except grpc.RpcError as error:
                    failures.append(error.code())

    thread = threading.Thread(target=call)
    thread.start()
    try:
        poll(lambda: answered > 20, "answers")
        os.kill(victim, signal.SIGKILL)
        poll(lambda: pair.log_lines("worker_died"), "news of the death")
        poll(lambda: pair.metrics()["pkpo_workers"] == 2, "replacement", 60)
        so_far = answered
        poll(lambda: answered > so_far + 20, "answers")
    finally:
        over.set()
        thread.join()
    assert set(failures) <= {grpc.StatusCode.UNAVAILABLE}
    # The call that was under way, and those that came in while the system took the process apart.
    assert len(failures) <= 3


def test_a_signal_drains_every_worker(pair: LiveServer, tmp_path: Path) -> None:
    assert list(tmp_path.glob("pkpo-metrics-*/*.db"))
    with connect(pair) as channel:
        call = pb_grpc.RewardTransformServiceStub(channel).Transform.future(long_request(10))
        poll(lambda: pair.metrics()[IN_FLIGHT] == 1, "work in flight")
        pair.process.send_signal(signal.SIGTERM)
        assert len(call.result(60).f64.values) == 10 * 2**12
    assert pair.process.wait(60) == 0
    assert {line.get("worker") for line in pair.log_lines("stopped")} == {None, 0, 1}
    assert not any(alive(pid) for pid in pids(pair).values())
    assert not list(tmp_path.iterdir())


def test_a_second_signal_kills_every_worker(pair: LiveServer, tmp_path: Path) -> None:
    with connect(pair) as channel:
        held = pb_grpc.RewardTransformServiceStub(channel).Transform.future(long_request(500))
        poll(lambda: pair.metrics()[IN_FLIGHT] == 1, "work in flight")
        pair.process.send_signal(signal.SIGINT)
        poll(lambda: pair.log_lines("draining"), "drain")
        pair.process.send_signal(signal.SIGINT)
        assert pair.process.wait(60) == 130
        assert isinstance(held.exception(60), grpc.RpcError)
    poll(lambda: not any(alive(pid) for pid in pids(pair).values()), "end of the workers")
    assert not list(tmp_path.iterdir())


def test_workers_do_not_outlive_a_killed_supervisor(pair: LiveServer) -> None:
    pair.kill()
    poll(lambda: not any(alive(pid) for pid in pids(pair).values()), "end of the workers")


def test_what_a_killed_supervisor_left_is_removed_by_the_next(pair: LiveServer, tmp_path: Path) -> None:
    (living,) = tmp_path.iterdir()
    env = {"TMPDIR": str(tmp_path)}
    with LiveServer("--workers", "2", env=env) as killed:
        (left,) = set(tmp_path.iterdir()) - {living}
        killed.kill()
    with LiveServer("--workers", "2", env=env):
        assert not left.exists()
        assert len(set(tmp_path.iterdir()) - {living}) == 1
        assert pair.metrics()["pkpo_workers"] == 2
        assert list(living.glob("*.db"))
    assert list(tmp_path.iterdir()) == [living]


def test_a_port_in_use_is_said(server: LiveServer) -> None:
    port = server.address.rsplit(":", 1)[1]
    command = [sys.executable, "-m", "pkpo_server", "--workers", "2", "--metrics-port", "0", "--port", port]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert f"127.0.0.1:{port}" in done.stderr
    assert "Traceback" not in done.stderr


def test_workers_that_cannot_start_end_the_server(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import os\nif 'PKPO_INTERNAL_WORKER' in os.environ:\n    os._exit(7)\n")
    with LiveServer("--workers", "2", env={"PYTHONPATH": str(tmp_path)}, wait=False) as server:
        assert server.process.wait(60) == 1
        assert poll(lambda: server.log_lines("failed"), "line of the failure")[0]["status"] == 7


def test_a_wildcard_host_works() -> None:
    with LiveServer("--workers", "2", "--host", "0.0.0.0") as server:
        port = server.address.rsplit(":", 1)[1]
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            pb_grpc.RewardTransformServiceStub(channel).Transform(request(), timeout=60)
        assert len(server.log_lines("insecure")) == 1


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"


def test_connections_of_a_server_that_is_gone_do_not_hold_the_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as before:
        port = before.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as caller:
            accepted, _ = before.accept()
            accepted.close()  # first, so that it is this side's connection that lingers
            assert caller.recv(1) == b""
    with pytest.raises(OSError, match="in use"), socket.socket() as strict:
        strict.bind(("127.0.0.1", port))
    with LiveServer("--workers", "2", "--port", str(port)) as server:
        assert server.address == f"127.0.0.1:{port}"


def test_two_supervisors_do_not_share_a_port_unseen() -> None:
    with LiveServer("--workers", "2") as first:
        port = first.address.rpartition(":")[2]
        second = LiveServer("--workers", "2", "--port", port, wait=False)
        with second:
            assert second.process.wait(60) == 1
        assert "in use" in second.log_lines("failed")[0]["message"]


def test_more_runs_than_there_is_room_for_are_refused_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    room = SimpleNamespace(free=64 * 2**20)
    monkeypatch.setattr("shutil.disk_usage", lambda place: room)
    settings = Settings(workers=4, max_run_ids=745, port=0, metrics_port=0)
    with pytest.raises(InvalidSettings, match=r"745 runs for each of 4 workers may need 67133440 bytes .* at most 744"):
        run_supervisor(settings)
