"""Every gRPC status becomes one error, by its code and its details."""

from __future__ import annotations

import pickle
import threading
from collections import deque
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

import pkpo_client
from live_server import LiveServer
from pkpo.v1 import reward_transform_pb2 as pb
from pkpo_client import (
    Cancelled,
    Client,
    DeadlineExceeded,
    InvalidArgument,
    Overloaded,
    PermissionDenied,
    PkpoError,
    ServerError,
    Unauthenticated,
    Unavailable,
    Unreachable,
    Violation,
    errors,
    status,
)

ROWS = np.ones((2, 3))
NO_RETRY = ("grpc-retry-pushback-ms", "-1")
EXPECTED = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgument,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Overloaded,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.CANCELLED: Cancelled,
}


def refusing(code: grpc.StatusCode, *details: Any) -> Any:
    made = status_pb2.Status(code=code.value[0], message="for a reason")
    for detail in details:
        made.details.add().Pack(detail)

    def abort(context: Any) -> None:
        refusal = rpc_status.to_status(made)
        context.set_trailing_metadata([*refusal.trailing_metadata, NO_RETRY])
        context.abort(refusal.code, refusal.details)

    return abort


@pytest.mark.parametrize("code", [each for each in grpc.StatusCode if each is not grpc.StatusCode.OK], ids=str)
def test_each_status_is_one_error(flavour: Any, proxy: Any, code: grpc.StatusCode) -> None:
    proxy.faults["Transform"] = deque([refusing(code)])
    expected = EXPECTED.get(code, ServerError)
    with pytest.raises(PkpoError) as caught:
        flavour.call(proxy.address, "transform", ROWS, 2)
    assert type(caught.value) is expected
    assert isinstance(caught.value.__cause__, grpc.RpcError)
    assert code is grpc.StatusCode.DEADLINE_EXCEEDED or "for a reason" in str(caught.value)
    if isinstance(caught.value, ServerError):
        assert caught.value.code == code.name


@pytest.mark.parametrize("code", [each for each in grpc.StatusCode if each is not grpc.StatusCode.OK], ids=str)
def test_a_message_of_a_stream_that_fails_says_the_same(code: grpc.StatusCode) -> None:
    error = status.error_of_message(pb.TransformError(code=code.value[0], message="for a reason"), "there:1", 2.0)
    assert type(error) is EXPECTED.get(code, ServerError)
    assert type(status.error_of_message(pb.TransformError(code=99), "there:1", 2.0)) is ServerError


def test_violations_and_the_time_to_come_back_are_read_from_the_details(flavour: Any, proxy: Any) -> None:
    violation = error_details_pb2.BadRequest.FieldViolation(field="k[3]", description="is 9; must be less")
    proxy.faults["Transform"] = deque(
        [
            refusing(grpc.StatusCode.INVALID_ARGUMENT, error_details_pb2.BadRequest(field_violations=[violation])),
            refusing(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                error_details_pb2.DebugInfo(detail="of another kind"),
                error_details_pb2.RetryInfo(retry_delay={"seconds": 1, "nanos": 500_000_000}),
            ),
            refusing(grpc.StatusCode.RESOURCE_EXHAUSTED),
        ]
    )
    with pytest.raises(InvalidArgument) as refused:
        flavour.call(proxy.address, "transform", ROWS, 2)
    assert refused.value.violations == (Violation("k[3]", "is 9; must be less"),)
    assert str(refused.value) == "k[3]: is 9; must be less"
    with pytest.raises(Overloaded, match=r"1\.5 s") as overloaded:
        flavour.call(proxy.address, "transform", ROWS, 2)
    assert overloaded.value.retry_after == 1.5
    with pytest.raises(Overloaded) as overloaded:
        flavour.call(proxy.address, "transform", ROWS, 2)
    assert overloaded.value.retry_after is None


@pytest.mark.parametrize("raw", [b"\xff\xff", status_pb2.Status(code=3, message="other").SerializeToString()])
def test_details_that_are_none_leave_the_status_as_it_is(flavour: Any, proxy: Any, raw: bytes) -> None:
    def abort(context: Any) -> None:
        context.set_trailing_metadata([("grpc-status-details-bin", raw), NO_RETRY])
        context.abort(grpc.StatusCode.UNAUTHENTICATED, "for a reason")

    proxy.faults["Transform"] = deque([abort])
    with pytest.raises(Unauthenticated, match="for a reason"):
        flavour.call(proxy.address, "transform", ROWS, 2)


@pytest.mark.parametrize("code", ["UNAVAILABLE", "RESOURCE_EXHAUSTED", "CANCELLED"])
def test_what_passes_is_tried_again(flavour: Any, proxy: Any, code: str) -> None:
    proxy.faults["Transform"] = deque([lambda context: context.abort(grpc.StatusCode[code], "not now")] * 2)
    assert flavour.call(proxy.address, "transform", ROWS, 2).shape == (2, 3)
    assert proxy.calls["Transform"] == 3


def test_a_busy_server_is_asked_again_when_it_says(flavour: Any) -> None:
    """By a server that lets nobody else in before its streams have ended."""
    with LiveServer("--max-concurrent-rpcs", "2") as live, Client(live.address) as one, Client(live.address) as other:
        for each in (one, other):
            busy = each.stream((ROWS for _ in range(100)), 2, in_flight=1)
            next(busy)
            threading.Timer(0.1, busy.close).start()
        assert flavour.call(live.address, "transform", ROWS, 2).shape == (2, 3)


def test_a_large_batch_is_tried_again_too(flavour: Any, proxy: Any) -> None:
    """Larger than the 256 KiB that gRPC keeps for retries unless told."""
    proxy.faults["Transform"] = deque([lambda context: context.abort(grpc.StatusCode.UNAVAILABLE, "not now")] * 2)
    rows = np.random.default_rng(0).random((5_000, 80))
    assert flavour.call(proxy.address, "transform", rows, 2).shape == rows.shape


@pytest.mark.parametrize(
    "answer",
    [
        pb.TransformResponse(),
        pb.TransformResponse(f64=pb.DoubleValues(values=[0.0] * 5)),
        pb.TransformResponse(f32=pb.FloatValues(values=[0.0] * 6)),
        pb.TransformResponse(f64=pb.DoubleValues(values=[0.0] * 6), group_statuses=[pb.GROUP_STATUS_NO_SIGNAL]),
        pb.TransformResponse(f64=pb.DoubleValues(values=[0.0] * 6), estimates=[pb.MaxAtK(k=1, values=[0.0])]),
        pb.TransformResponse(
            f64=pb.DoubleValues(values=[0.0] * 6), estimates=[pb.MaxAtK(k=3, values=[0.0], standard_errors=[0.0] * 2)]
        ),
    ],
    ids=["nothing", "too few", "another type", "statuses", "estimates of another k", "too few estimates"],
)
def test_an_answer_that_does_not_fit_is_an_error_and_never_an_advantage(flavour: Any, proxy: Any, answer: Any) -> None:
    proxy.faults["Transform"] = deque([lambda context: answer])
    with pytest.raises(ServerError) as caught:
        flavour.call(proxy.address, "transform_detailed", ROWS, 2, estimate_k=3)
    assert caught.value.code == "DATA_LOSS"


def test_the_hierarchy_is_the_one_drawn() -> None:
    assert errors.__doc__ is not None
    drawn = [line for line in errors.__doc__.splitlines() if "──" in line or line.strip() == "PkpoError"]
    for name in ("Unavailable", "DeadlineExceeded", "Overloaded", "ServerError", "InvalidArgument", "Cancelled"):
        assert any(name in line for line in drawn)
        assert issubclass(getattr(pkpo_client, name), PkpoError)
    assert len(drawn) == len([name for name in errors.__all__ if name != "Violation"])
    assert issubclass(InvalidArgument, ValueError)
    assert issubclass(Unavailable, ConnectionError)
    assert issubclass(DeadlineExceeded, TimeoutError)
    assert issubclass(Unreachable, (Unavailable, DeadlineExceeded))


@pytest.mark.parametrize("name", [name for name in errors.__all__ if name != "Violation"])
def test_errors_travel_between_processes(name: str) -> None:
    error = getattr(errors, name)("what happened")
    if isinstance(error, InvalidArgument):
        error = InvalidArgument.of(Violation("k", "is 9", "row 3"))
    if isinstance(error, Overloaded):
        error = Overloaded("busy", 1.5)
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert vars(copy) == vars(error)
