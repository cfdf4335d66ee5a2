"""A short slice of the fuzzer, the same on every run; that it finds what is wrong; and what it once found."""

from __future__ import annotations

import re
import socket
import struct
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

import pkpo_core
from fuzz import arguments, campaign, sockets
from fuzz.__main__ import main
from fuzz.campaign import Report
from fuzz.service import TRANSFORM
from live_server import LiveServer, poll
from pkpo.v1 import reward_transform_pb2 as pb
from pkpo_client import InvalidArgument, LocalClient
from pkpo_server import codec, logs
from pkpo_server.servicer import SERVICE

SEED = 1


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    with LiveServer() as live:
        yield live


def found_nothing(report: Report, inputs: int) -> None:
    assert report.findings == []
    assert report.inputs == inputs


@pytest.mark.parametrize("kind", ["wire", "fields"])
def test_calls_in_this_process(kind: str) -> None:
    report = campaign.run(kind, SEED, 1500)
    found_nothing(report, 1500)
    assert min(report.codes["OK"], report.codes["INVALID_ARGUMENT"]) > 300  # neither is rare
    assert report.exact > 30
    assert report.behaviours > 300


def test_arguments_of_the_client() -> None:
    report = arguments.run(SEED, 150)
    assert report.findings == []
    assert report.inputs >= 150  # Hypothesis counts those it tries again


def test_calls_through_a_connection(server: LiveServer) -> None:
    found_nothing(sockets.calls(server.address, Random(SEED), 300), 300)
    assert server.log_lines("internal_error") == []


def test_connections_that_speak_badly() -> None:
    with LiveServer() as server:
        address = server.address  # before gRPC prints what it makes of such
        require_a_transport_that_bears_any_path(server)
        found_nothing(sockets.connections(address, Random(SEED), 60), 60)
        found_nothing(sockets.calls(address, Random(SEED), 20), 20)


# --- that it finds what is wrong --------------------------------------------------------------------------------------


def by_taking_any_run_id(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec, "legal_run_id", lambda _: True)


def by_refusing_a_k_of_2(monkeypatch: pytest.MonkeyPatch) -> None:
    replace_transform(monkeypatch, lambda groups, k: pkpo_core.RewardGroups(groups.rewards, 0) if k == 2 else groups)


def by_an_exception(monkeypatch: pytest.MonkeyPatch) -> None:
    replace_transform(monkeypatch, lambda groups, k: 1 / 0 if groups.rewards.size == 2 else groups)


def by_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    replace_transform(monkeypatch, lambda groups, k: warnings.warn("odd", stacklevel=1) or groups)


def by_the_last_reward_in_a_thousand_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    def nudged(groups: pkpo_core.RewardGroups, _: Any) -> pkpo_core.RewardGroups:
        rewards = groups.rewards.copy()
        rewards[-1] *= 1 + 1e-10
        return pkpo_core.RewardGroups(rewards, groups.group_sizes)

    replace_transform(monkeypatch, nudged)


def replace_transform(monkeypatch: pytest.MonkeyPatch, changed: Callable[[pkpo_core.RewardGroups, Any], Any]) -> None:
    whole = pkpo_core.transform
    monkeypatch.setattr(pkpo_core, "transform", lambda groups, k, **more: whole(changed(groups, k), k, **more))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (by_taking_any_run_id, "is answered; must not be"),
        (by_refusing_a_k_of_2, "is refused"),
        (by_an_exception, "ZeroDivisionError"),
        (by_a_warning, "UserWarning"),
        (by_the_last_reward_in_a_thousand_bits, "advantage"),
    ],
    ids=lambda value: value.__name__.replace("_", " ") if callable(value) else "",
)
def test_a_server_that_is_wrong_is_found_to_be(
    wrong: Callable[[pytest.MonkeyPatch], None], said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    wrong(monkeypatch)
    report = campaign.run("fields", SEED, 1000, folder=tmp_path, exact_share=1.0)
    assert any(said in finding for finding in report.findings), report.findings[:3]
    # And again from the file that was kept, which without the fault says nothing.
    kept = next(path for path in sorted(tmp_path.iterdir()) if said in path.read_text())
    assert main(["replay", str(kept)]) == 1
    monkeypatch.undo()
    assert main(["replay", str(kept)]) == 0


def test_there_is_nothing_to_replay_where_nothing_was_found(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["replay", "found/*.json"])
    assert "where nothing was found, nothing was kept" in capsys.readouterr().err


def test_an_argument_that_the_two_ways_differ_on_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"rewards": [[0.0, 1.0]], "k": 1, "run_id": "run"}
    assert not arguments.disagreement(given)
    monkeypatch.setattr(codec, "legal_run_id", lambda run_id: not run_id)
    assert "over the wire: InvalidArgument" in arguments.disagreement(given)


# --- what it found ----------------------------------------------------------------------------------------------------


def test_a_signalling_nan_is_refused_and_warned_about_nowhere() -> None:
    """A float32 whose widening NumPy warns of: a line of no form on the server's stderr."""
    values = struct.pack("<I", 0x7FA00000) + struct.pack("<f", 1.0)
    groups = pb.RewardGroups(f32=pb.FloatValues.FromString(b"\x0a\x08" + values), group_size=2)
    request = pb.TransformRequest(groups=groups, k=[1])
    report = campaign.replayed([(TRANSFORM, [request.SerializeToString()])])
    assert report.findings == []
    assert report.codes == {"INVALID_ARGUMENT": 1}


@pytest.mark.parametrize("name", ["variant", "estimate_k", "k", "seed", "timeout", "run_id"])
@pytest.mark.parametrize("value", [10**5000, -(10**5000)], ids=["above", "below"])
def test_an_integer_too_large_to_be_written_is_refused_like_any_other(name: str, value: int) -> None:
    """Python writes no integer of more than 4300 digits, not even in an error."""
    with pytest.raises(InvalidArgument, match=name):
        LocalClient().transform_detailed(np.zeros((1, 2)), **{"k": 1, name: value})


def require_a_transport_that_bears_any_path(server: LiveServer) -> None:
    found = re.search(r'grpcio="(\d+)\.(\d+)', server.metrics_text())
    assert found is not None
    if (int(found[1]), int(found[2])) >= (1, 84):
        pytest.skip("needs grpcio before 1.84: later ones end at a call whose path is no UTF-8")


def test_a_path_that_is_no_text_ends_no_server() -> None:
    """The server's own code never sees such a call: grpcio 1.84 and 1.85 stop taking calls while they read it."""
    with LiveServer() as server:
        address = server.address
        require_a_transport_that_bears_any_path(server)
        path = f"/{SERVICE}/".encode() + b"\xff\xfe"
        send_headers(address, [sockets.headers(path)])
        found_nothing(sockets.calls(address, Random(SEED), 20), 20)


def test_headers_that_are_no_text_fill_no_log() -> None:
    """gRPC writes an error and a traceback of each."""
    named = sockets.headers() + b"\x00\x05nam\xff\xfe\x01x"
    with LiveServer() as server:
        started = time.monotonic()
        send_headers(server.address, [named] * 300)
        found_nothing(sockets.calls(server.address, Random(SEED), 20), 20)
        lines = [line for line in server.log_lines() if "logger" in line]
        assert 0 < len(lines) <= logs.REFUSAL_LINES_PER_SECOND * (time.monotonic() - started + 2)
        assert len(lines) < 300


def send_headers(address: str, calls: Sequence[bytes]) -> None:
    """Opens a connection with calls of these headers, and waits until it is closed."""
    host, port = address.rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        frames = (sockets.frame(sockets.HEADERS, 5, 2 * i + 1, call) for i, call in enumerate(calls))
        connection.sendall(sockets.PREFACE + sockets.frame(sockets.SETTINGS, 0, 0, b"") + b"".join(frames))
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(2**16):
            pass


TRANSPORT_ENDS = """
import asyncio
from pkpo_server.lifecycle import Server
run = Server.run
async def ending(self):
    async def end():
        await asyncio.sleep(0.5)
        for task in asyncio.all_tasks():
            if getattr(task.get_coro(), "__name__", "") == "_server_main_loop":
                task.cancel()
    ended = asyncio.create_task(end())
    return await run(self)
Server.run = ending
"""


@pytest.mark.parametrize("health", [(), ("--health-port", "0")])
def test_a_server_that_takes_no_more_calls_ends(health: tuple[str, ...], tmp_path: Path) -> None:
    """It would stand there with an open health port for ever; who started it starts another."""
    (tmp_path / "sitecustomize.py").write_text(TRANSPORT_ENDS)
    with LiveServer(*health, env={"PYTHONPATH": str(tmp_path)}, wait=False) as server:
        poll(lambda: server.log_lines("serving"), "start", 240)
        assert server.process.wait(60) == 1
        (line,) = server.log_lines("failed")
        assert "takes no more calls" in line["message"]
