"""Logs: one JSON object a line, one line per refused request, bounded in rate, findable by request id."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

import pkpo
from live_server import LiveServer, poll
from pkpo.v1 import reward_transform_pb2 as pb
from pkpo.v1 import reward_transform_pb2_grpc as pb_grpc
from pkpo_server.logs import REFUSAL_LINES_PER_SECOND, _Bounded

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACEPARENT = f"00-{TRACE_ID}-00f067aa0ba902b7-01"


def good() -> pb.TransformRequest:
    return pb.TransformRequest(groups=pb.RewardGroups(f64=pb.DoubleValues(values=[0, 1]), group_size=2), k=[1])


def bad(**fields: Any) -> pb.TransformRequest:
    request = good()
    request.k[0] = 9
    request.MergeFrom(pb.TransformRequest(**fields))
    return request


@pytest.fixture(scope="module")
def live() -> Iterator[tuple[LiveServer, Any]]:
    with LiveServer("--log-level", "info") as server, grpc.insecure_channel(server.address) as channel:
        yield server, pb_grpc.RewardTransformServiceStub(channel)


@pytest.fixture
def own() -> Iterator[tuple[LiveServer, Any]]:
    """A server whose lines are this test's alone."""
    with LiveServer() as server, grpc.insecure_channel(server.address) as channel:
        yield server, pb_grpc.RewardTransformServiceStub(channel)


def lines_of(server: LiveServer, request_id: str) -> list[dict[str, Any]]:
    return [line for line in server.log_lines("refused") if line["request_id"] == request_id]


def refused_id(call: Any, request: Any, metadata: Any = None) -> str:
    with pytest.raises(grpc.RpcError) as caught:
        call(request, metadata=metadata)
    return str(dict(caught.value.trailing_metadata())["pkpo-request-id"])


def test_the_start_is_told_line_by_line(live: tuple[LiveServer, Any]) -> None:
    server, _ = live
    assert [line["event"] for line in server.log_lines()][:3] == ["metrics", "listening", "serving"]
    (serving,) = server.log_lines("serving")
    assert serving["address"] == server.address
    assert serving["version"] == pkpo.__version__
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", serving["timestamp"])


def test_a_refused_request_has_one_line(live: tuple[LiveServer, Any]) -> None:
    server, stub = live
    request_id = refused_id(stub.Transform, bad(run_id="team/run-7"))
    stub.Transform(good())
    (line,) = poll(lambda: lines_of(server, request_id), "line of the refusal")
    assert line["method"] == "Transform"
    assert line["code"] == "INVALID_ARGUMENT"
    assert line["reason"] == "k"
    assert line["variant"] == "SLOO_MINUS_ONE"
    assert line["run_id"] == "team/run-7"
    assert line["peer"].startswith("ipv4:127.0.0.1:")
    assert line["violations"][0].startswith("k[0]: ")
    assert "traceparent" not in line


def test_a_refused_stream_message_has_one_line_with_its_number(live: tuple[LiveServer, Any]) -> None:
    server, stub = live
    messages = [
        pb.TransformStreamRequest(sequence=5, request=good()),
        pb.TransformStreamRequest(sequence=6, request=bad()),
    ]
    call = stub.TransformStream(iter(messages))
    assert len(list(call)) == 2
    request_id = dict(call.initial_metadata())["pkpo-request-id"]
    (line,) = poll(lambda: lines_of(server, request_id), "line of the refusal")
    assert line["sequence"] == 6


def test_a_trace_context_gives_the_request_id(live: tuple[LiveServer, Any]) -> None:
    server, stub = live
    assert refused_id(stub.Transform, bad(), [("traceparent", TRACEPARENT), ("tracestate", "a=b")]) == TRACE_ID
    (line,) = poll(lambda: lines_of(server, TRACE_ID), "line of the refusal")
    assert line["traceparent"] == TRACEPARENT


@pytest.mark.parametrize(
    "traceparent",
    ["", "nonsense", TRACEPARENT.upper(), f"ff{TRACEPARENT[2:]}", f"00-{'0' * 32}-00f067aa0ba902b7-01", "x" * 5000],
)
def test_a_malformed_trace_context_is_ignored(stub: Any, traceparent: str) -> None:
    request_id = refused_id(stub.Transform, bad(), [("traceparent", traceparent)])
    assert re.fullmatch("[0-9a-f]{32}", request_id)
    assert request_id != "0" * 32


def test_request_ids_differ(stub: Any) -> None:
    assert len({refused_id(stub.Transform, bad()) for _ in range(5)}) == 5


def test_a_flood_of_refusals_is_a_few_lines_and_a_count(own: tuple[LiveServer, Any]) -> None:
    server, stub = own
    for _ in range(200):
        refused_id(stub.Transform, bad())

    def all_told() -> bool:
        told = len(server.log_lines("refused")) + sum(line["lines"] for line in server.log_lines("suppressed"))
        return told == 200

    poll(all_told, "count of suppressed lines")
    assert len(server.log_lines("refused")) < 200


def test_what_was_suppressed_is_counted_before_the_end(own: tuple[LiveServer, Any]) -> None:
    server, stub = own
    for _ in range(100):
        refused_id(stub.Transform, bad())
    assert server.stop() == 0
    told = len(server.log_lines("refused")) + sum(line["lines"] for line in server.log_lines("suppressed"))
    assert told == 100


def test_strangers_and_the_refusals_of_others_hide_nothing(tmp_path: Path) -> None:
    """Each reason has lines of its own, and our own faults have theirs."""
    (tmp_path / "sitecustomize.py").write_text(FAULT)
    tokens, token = tmp_path / "tokens", "a-token-of-team-a"
    tokens.write_text(f"{token} name=a runs=a/*\n")
    faulty = good()
    faulty.groups.f64.values[0], faulty.run_id = 666, "a/1"
    bearer = [("authorization", f"Bearer {token}")]
    flood = 40
    with (
        LiveServer("--tokens", str(tokens), env={"PYTHONPATH": str(tmp_path)}) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        stub = pb_grpc.RewardTransformServiceStub(channel)
        for _ in range(3):
            for call in [stub.Transform.future(good()) for _ in range(flood)]:
                assert call.code() is grpc.StatusCode.UNAUTHENTICATED
            refused_id(stub.Transform, good(), bearer)
            refused_id(stub.Transform, bad(run_id="a/1"), bearer)
            refused_id(stub.Transform, faulty, bearer)
        assert server.stop() == 0
        reasons = Counter(line["reason"] for line in server.log_lines("refused"))
        suppressed: Counter[str] = Counter()
        for line in server.log_lines("suppressed"):
            assert line["lines"] == sum(line["kinds"].values())
            suppressed.update(line["kinds"])
        assert suppressed["unauthenticated"] > 0
        assert reasons.pop("unauthenticated") + suppressed.pop("unauthenticated") == 3 * flood
        assert reasons == {"permission": 3, "k": 3, "internal": 3}
        assert len(server.log_lines("internal_error")) == 3
        assert not suppressed


def test_a_level_silences_what_is_below(tmp_path: Path) -> None:
    path = tmp_path / "pkpo.sock"
    flags = ("--log-level", "warning", "--unix-socket", str(path))
    with LiveServer(*flags, wait=False) as server:
        poll(path.is_socket, "socket")
        with grpc.insecure_channel(f"unix:{path}") as channel:
            health = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), wait_for_ready=True)
            assert any(answer.status == health_pb2.HealthCheckResponse.SERVING for answer in health)
            refused_id(pb_grpc.RewardTransformServiceStub(channel).Transform, bad())
        assert server.stop() == 0
        assert [line["event"] for line in server.log_lines()] == ["refused"]


def test_hostile_text_stays_inside_its_line(live: tuple[LiveServer, Any]) -> None:
    server, stub = live
    request_id = refused_id(stub.Transform, bad(run_id='x\n{"event": "forged"}'))
    (line,) = poll(lambda: lines_of(server, request_id), "line of the refusal")
    assert "run_id" not in line
    assert not server.log_lines("forged")


FAULT = """
import pkpo_core
whole = pkpo_core.transform
def transform(groups, *arguments, **options):
    if groups.rewards[0] == 666:
        raise RuntimeError("secret in " + __file__)
    return whole(groups, *arguments, **options)
pkpo_core.transform = transform
"""


def test_our_own_fault_is_internal_and_told_to_the_log_alone(tmp_path: Path) -> None:
    """The fault is injected from outside, through Python's own start-up hook."""
    (tmp_path / "sitecustomize.py").write_text(FAULT)
    request = good()
    request.groups.f64.values[0] = 666
    with (
        LiveServer(env={"PYTHONPATH": str(tmp_path)}) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        stub = pb_grpc.RewardTransformServiceStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            stub.Transform(request)
        request_id = dict(caught.value.trailing_metadata())["pkpo-request-id"]
        assert caught.value.code() == grpc.StatusCode.INTERNAL
        assert caught.value.details() == f"internal error; the server's log has it under request id {request_id}"
        assert "secret" not in repr(caught.value.trailing_metadata())
        (line,) = poll(lambda: server.log_lines("internal_error"), "line of the fault")
        assert line["request_id"] == request_id
        assert "RuntimeError: secret" in line["exception"]
        messages = [
            pb.TransformStreamRequest(sequence=1, request=request),
            pb.TransformStreamRequest(sequence=2, request=good()),
        ]
        answers = {answer.sequence: answer for answer in stub.TransformStream(iter(messages))}
        assert answers[1].error.code == grpc.StatusCode.INTERNAL.value[0]
        assert "secret" not in answers[1].error.message
        assert answers[2].HasField("response")
        count = 'pkpo_requests_total{code="INTERNAL",method="Transform",variant="SLOO_MINUS_ONE"}'
        assert server.metrics()[count] == 1


def test_no_library_hides_what_another_says() -> None:
    bounded = _Bounded()
    assert not all(bounded.has_room("grpc") for _ in range(50 * REFUSAL_LINES_PER_SECOND))
    assert all(bounded.has_room("asyncio") for _ in range(REFUSAL_LINES_PER_SECOND))


def test_a_finalizer_that_logs_while_lines_are_counted_holds_nothing_up() -> None:
    """The collector runs finalizers wherever it is, in the thread that counts too."""
    bounded, collected = _Bounded(), threading.Event()

    class Logger(str):
        def __del__(self) -> None:
            bounded.has_room("asyncio")
            collected.set()

    def count() -> None:
        bounded.has_room(Logger("collected with the second it was counted in"))
        bounded._second = -1
        bounded.has_room("grpc")

    counting = threading.Thread(target=count, daemon=True)
    counting.start()
    counting.join(60)
    assert not counting.is_alive()
    assert collected.is_set()


FINALIZER = """
import os, warnings
from pkpo_server import logs
log, write = logs.configure("info"), os.write
def collecting(descriptor, line):
    os.write = write
    warnings.warn("a coroutine was never awaited", RuntimeWarning)
    return write(descriptor, line)
os.write = collecting
log.info("first")
log.info("second")
"""


def test_a_finalizer_that_warns_while_a_line_is_written_holds_nothing_up() -> None:
    done = subprocess.run([sys.executable, "-c", FINALIZER], capture_output=True, text=True, timeout=60, check=True)
    assert [json.loads(line)["event"] for line in done.stderr.splitlines()] == ["first", "lost", "second"]


PRINTING = """
import threading, traceback
from pkpo_server import lifecycle
run = lifecycle.Server.run
async def printing(self):
    try:
        raise RuntimeError('50% of "that" is\\nodd')
    except RuntimeError:
        traceback.print_exc()
    def fail():
        raise KeyError("in a thread")
    threading.Thread(target=fail).start()
    return await run(self)
lifecycle.Server.run = printing
"""


WARNING = """
import threading, warnings
from pkpo_server import lifecycle
run = lifecycle.Server.run
async def warning(self):
    warnings.simplefilter("always")
    for number in range(30):
        warnings.warn(f'odd\\n"{number}"', RuntimeWarning)
    threading.Thread(target=warnings.warn, args=("of a thread", UserWarning)).start()
    return await run(self)
lifecycle.Server.run = warning
"""


def test_a_warning_is_an_event_without_the_code_that_gave_it(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(WARNING)
    with LiveServer(env={"PYTHONPATH": str(tmp_path)}) as server:
        lines = server.log_lines("warning")
        assert {key: value for key, value in lines[0].items() if key != "timestamp"} == {
            "event": "warning",
            "level": "warning",
            "category": "RuntimeWarning",
            "message": 'odd\n"0"',
        }
        assert len(lines) <= REFUSAL_LINES_PER_SECOND * 2
        assert not any("warnings.warn(" in line or "sitecustomize" in line for line in server.raw_log())


def test_every_line_of_a_worker_says_which_of_whatever_thread(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(WARNING.replace("range(30)", "range(1)"))
    with LiveServer("--workers", "2", env={"PYTHONPATH": str(tmp_path)}) as server:

        def of_threads() -> set[int]:
            return {line["worker"] for line in server.log_lines("warning") if line["message"] == "of a thread"}

        poll(lambda: of_threads() == {0, 1}, "line of each worker")


def test_what_others_print_comes_in_lines_of_the_same_form(tmp_path: Path) -> None:
    """gRPC prints the traceback of a status that it could not send, as when a server stops under a call."""
    (tmp_path / "sitecustomize.py").write_text(PRINTING)
    with LiveServer(env={"PYTHONPATH": str(tmp_path)}) as server:
        # Each line is JSON, or log_lines would raise.
        printed = [line["event"] for line in server.log_lines() if line.get("logger") == "stderr"]
    assert printed[0] == "Traceback (most recent call last):"
    assert 'RuntimeError: 50% of "that" is' in printed
    assert "odd" in printed
    assert len(printed) <= REFUSAL_LINES_PER_SECOND * 2
