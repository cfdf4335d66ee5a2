"""Servers, workers and supervisors that die, stop and are replaced, under load: no caller sees any of it.

`FAULT_ROUNDS=10` does each so often, and `REAL_TIMES=1` waits for as long as is promised.
"""

from __future__ import annotations

import functools
import os
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from flavour import Flavour
from fleet.load import Load
from fleet.proxies import NGINX, LocalProxy
from fleet.servers import answered, running
from live_server import LiveServer, poll
from pkpo_client import Client, LocalClient
from pkpo_server import pulse

ROUNDS = int(os.environ.get("FAULT_ROUNDS", "1"))
REAL_TIMES = bool(os.environ.get("REAL_TIMES"))
OUTAGE_SECONDS = 30 if REAL_TIMES else 1
# Longer than the five attempts that gRPC itself would make.
START_SECONDS = 6 if REAL_TIMES else 2
# For a worker that stands still.
NOTICED_SECONDS = pulse.MOST_MISSED * pulse.BEAT_SECONDS if REAL_TIMES else 2.0
# Answers of 2 MiB, whose end is under way for longer than a server that stops may think.
LARGE = 2**14
ROWS = np.random.default_rng(7).random((32, 16))
HASTE = f"from pkpo_server import pulse\npulse.BEAT_SECONDS = {NOTICED_SECONDS} / pulse.MOST_MISSED\n"


SLOW_START = f"""
import time, pkpo_core
compile_kernels = pkpo_core.compile_kernels
pkpo_core.compile_kernels = lambda: (time.sleep({START_SECONDS}), compile_kernels())
"""


class Kept:
    """A server that is started again, on the same port, by whoever kills it.

    Args:
        flags: of its command line.

    Attributes:
        address: where it serves, all the time.
        live: its process now.
    """

    def __init__(self, *flags: str) -> None:
        self._flags = flags
        self.live = LiveServer(*flags).__enter__()
        self.address = self.live.address

    def kill(self) -> None:
        """Ends it at once. Its workers, where it has any, may live on for a moment."""
        self.live.kill()

    def start(self) -> None:
        """Starts it again, as often as it takes, and returns once it serves."""
        dead, self.live = self.live, poll(self._started, "server on the same port", 60)
        dead.stop()

    def _started(self) -> LiveServer | None:
        again = LiveServer(*self._flags, "--port", self.address.rpartition(":")[2])
        try:
            return again.__enter__()
        except RuntimeError:
            assert "in use" in again.log_lines("failed")[0]["message"]
            again.stop()
            return None

    def stop(self) -> int:
        """Asks it to stop, and returns its exit status."""
        return self.live.stop()


def goes_on(*loads: Load, number: int = 10) -> None:
    """Returns once each load has had so many further answers, all right; no call has failed."""
    reports = [load.report() for load in loads]
    for load, since in zip(loads, reports, strict=True):
        poll(functools.partial(load.has_gone_on, since, number), "further answers", 60)


def end(*loads: Load) -> None:
    """Nobody calls any more, and every request had one answer, the right one."""
    for load in loads:
        report = load.end()
        assert not report.failures, report
        assert not report.wrong, report
        assert report.calls + report.messages == report.asked, report


def serving_pids(server: LiveServer) -> dict[int, int]:
    """The newest process of each worker."""
    return {line["worker"]: line["pid"] for line in server.log_lines("worker_serving")}


# --- killed -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """Two workers, whose supervisor soon knows one that stands still."""
    folder = tmp_path_factory.mktemp("haste")
    (folder / "sitecustomize.py").write_text(HASTE)
    with LiveServer("--workers", "2", env={"PYTHONPATH": str(folder)}) as live:
        yield live


def test_a_worker_that_is_killed_costs_no_answer(pair: LiveServer) -> None:
    """Whichever of the two has the connections of a caller."""
    before = pair.metrics()["pkpo_worker_restarts_total"]
    with Load(pair.address) as load:
        goes_on(load)
        for _ in range(ROUNDS):
            for worker in (0, 1):
                killed = serving_pids(pair)[worker]
                os.kill(killed, signal.SIGKILL)
                poll(lambda: serving_pids(pair)[worker] != killed, "replacement", 60)  # noqa: B023
                goes_on(load)
        end(load)
    assert pair.metrics()["pkpo_worker_restarts_total"] == before + 2 * ROUNDS
    poll(lambda: pair.metrics()["pkpo_workers"] == 2, "both workers")


def test_a_worker_that_stands_still_is_killed_and_costs_no_answer(pair: LiveServer) -> None:
    """Connections would go on to be given to it, and nobody would know but those that wait."""
    with Load(pair.address) as load:
        goes_on(load)
        for _ in range(ROUNDS):
            for worker in (0, 1):
                still = serving_pids(pair)[worker]
                os.kill(still, signal.SIGSTOP)
                poll(lambda: serving_pids(pair)[worker] != still, "replacement", 60)  # noqa: B023
                assert still in {line["pid"] for line in pair.log_lines("worker_stuck")}
                goes_on(load)
        end(load)


def test_a_supervisor_that_stood_still_blames_no_worker(pair: LiveServer) -> None:
    """As where the whole machine did."""
    before, blamed = serving_pids(pair), pair.log_lines("worker_stuck")
    processes = (pair.process.pid, *before.values())
    try:
        for process in processes:
            os.kill(process, signal.SIGSTOP)
        time.sleep(2 * NOTICED_SECONDS)
    finally:
        for process in processes:
            os.kill(process, signal.SIGCONT)
    with Client(pair.address) as client:
        deadline = time.monotonic() + 1.5 * NOTICED_SECONDS
        while time.monotonic() < deadline:
            client.transform(ROWS, 4)
    assert serving_pids(pair) == before
    assert pair.log_lines("worker_stuck") == blamed


@pytest.mark.parametrize("flags", [(), ("--workers", "2")], ids=["one process", "supervisor"])
def test_a_server_that_is_killed_and_started_again_costs_no_answer(flags: tuple[str, ...]) -> None:
    kept = Kept(*flags)
    try:
        with Load(kept.address) as load:
            goes_on(load)
            for _ in range(ROUNDS):
                kept.kill()
                kept.start()
                goes_on(load)
            end(load)
    finally:
        kept.stop()


# --- started and away -------------------------------------------------------------------------------------------------


def test_a_client_may_start_before_its_server_does(flavour: Flavour, local: LocalClient, tmp_path: Path) -> None:
    """First nobody listens, then calls are refused."""
    (tmp_path / "sitecustomize.py").write_text(SLOW_START)
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    server = LiveServer("--port", str(port), env={"PYTHONPATH": str(tmp_path)}, wait=False)
    with ThreadPoolExecutor(2) as pool:
        address = f"127.0.0.1:{port}"
        call = pool.submit(flavour.call, address, "transform", ROWS, 4, timeout=120)
        stream = pool.submit(flavour.stream, address, [ROWS], 4, timeout=120)
        with server:
            np.testing.assert_array_equal(call.result(), local.transform(ROWS, 4))
            np.testing.assert_array_equal(stream.result()[0].advantages, local.transform(ROWS, 4))
            refused = server.log_lines("refused")
            assert {line["reason"] for line in refused} == {"starting"}
            assert {line["method"] for line in refused} >= {"GetServerInfo"}


def test_an_outage_costs_no_answer_and_is_said_once() -> None:
    """By calls and streams of both clients, for which the service's answers and those computed here are the same."""
    kept = Kept()
    try:
        with Load(kept.address, fallback="local") as load:
            goes_on(load)
            for outage in range(1, ROUNDS + 1):
                kept.kill()
                poll(lambda: said(load, "cannot be reached") == 2 * outage, "word of it from both", 60)  # noqa: B023
                goes_on(load)
                time.sleep(OUTAGE_SECONDS)
                goes_on(load)
                kept.start()
                poll(lambda: said(load, "is back after") == 2 * outage, "word of the return from both", 60)  # noqa: B023
                before = answered(kept.live)
                poll(lambda: answered(kept.live) > before + 20, "calls of the service")  # noqa: B023
            goes_on(load)
            assert len(load.report().said) == 4 * ROUNDS
            end(load)
    finally:
        kept.stop()


def said(load: Load, words: str) -> int:
    """How often the load's clients have said so."""
    return sum(words in line for line in load.report().said)


# --- stopped and replaced ---------------------------------------------------------------------------------------------


def behind_nginx(folder: Path, servers: tuple[LiveServer, ...]) -> LocalProxy:
    """The documented nginx, in front of two."""

    def of_two(text: str) -> str:
        third = "        server pkpo-3:50051 max_fails=1 fail_timeout=2s;\n"
        assert third in text
        return text.replace(third, "")

    return LocalProxy(NGINX, folder, [server.address for server in servers], of_two)


@pytest.mark.parametrize(
    ("way", "killed"), [("nginx", False), ("round-robin", False), *([("nginx", True)] if ROUNDS > 1 else [])]
)
def test_two_servers_that_are_replaced_in_turn_fail_no_call(way: str, killed: bool, tmp_path: Path) -> None:
    """Each goes as soon as the other serves, as in a rollout; killed, it leaves answers in the middle."""
    with ExitStack() as stack:
        servers = list(stack.enter_context(running(LiveServer(wait=False), LiveServer(wait=False))))
        if way == "nginx":
            address = stack.enter_context(behind_nginx(tmp_path, tuple(servers))).address
        else:
            address = "ipv4:" + ",".join(server.address for server in servers)
        loads = [stack.enter_context(Load(address)), stack.enter_context(Load(address, groups=LARGE, pause=0.2))]
        goes_on(*loads)
        for _ in range(ROUNDS):
            for each, server in enumerate(servers):
                if killed:
                    server.kill()
                assert server.stop() == (-signal.SIGKILL if killed else 0)
                port = server.address.rpartition(":")[2]
                servers[each] = stack.enter_context(LiveServer("--port", port))
        goes_on(*loads)
        end(*loads)
