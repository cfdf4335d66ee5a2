"""What a gRPC status means to a caller.

By the status code and the standard details (google.rpc BadRequest and RetryInfo), never by the text.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from pkpo.v1 import reward_transform_pb2 as pb
from pkpo_client.errors import (
    Cancelled,
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
)

#: What gRPC says of a call whose connection, or whose stream in it, ended before its answer did.
_BREAKS = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
)
_PUSHBACK = "grpc-retry-pushback-ms"
_GO_ON = " To go on without it, compute in this process: fallback='local'"
_MILLISECONDS = re.compile(r"[0-9]{1,9}")
_CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


def error_of_call(failure: Any, address: str, waited: float) -> PkpoError:
    """The error of a call that gRPC says failed.

    Args:
        failure: the `grpc.RpcError` of a call that ended, of either API.
        address: of the service.
        waited: seconds the call took.
    """
    violations: list[Violation] = []
    retry_after: float | None = None
    for detail in _details(failure):
        if detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
            bad_request = error_details_pb2.BadRequest()
            detail.Unpack(bad_request)
            violations += [Violation(each.field, each.description) for each in bad_request.field_violations]
        elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            retry_info = error_details_pb2.RetryInfo()
            detail.Unpack(retry_info)
            retry_after = retry_info.retry_delay.ToTimedelta().total_seconds()
    return _error(failure.code(), failure.details() or "", violations, retry_after, address, waited)


def error_of_message(error: pb.TransformError, address: str, waited: float) -> PkpoError:
    """The error of one message of a stream.

    Args:
        error: as the service said it.
        address: of the service.
        waited: seconds since the message was first sent.
    """
    return _error(
        _CODES.get(error.code, grpc.StatusCode.UNKNOWN),
        error.message,
        [Violation(each.field, each.description) for each in error.violations],
        error.retry_after_ms / 1000 if error.retry_after_ms else None,
        address,
        waited,
    )


def is_break(failure: Any) -> bool:
    """Whether a call that gRPC says failed was broken off, and its status is nobody's answer."""
    # Servers and proxies that say a status say something beside it: who answers, or when to come back.
    return isinstance(failure, grpc.RpcError) and failure.code() in _BREAKS and not failure.trailing_metadata()


def pushback(failure: Any) -> float | None:
    """Seconds after which a call that failed is asked to be made again: inf for never, None where nobody says."""
    metadata: Any = failure.trailing_metadata() if isinstance(failure, grpc.RpcError) else None
    # As gRPC's own retries heed it: whatever is no number of milliseconds means never.
    said = next((value for key, value in metadata or () if key == _PUSHBACK), None)
    if said is None:
        return None
    return int(said) / 1000 if _MILLISECONDS.fullmatch(said) else math.inf


def connection_failure(failure: Any) -> str:
    """What gRPC last saw go wrong with the connection, as a call says that did not wait for one; empty if nothing."""
    return (failure.details() or "") if failure.code() is grpc.StatusCode.UNAVAILABLE else ""


def unreachable(address: str, waited: float, seen: str) -> Unreachable:
    """The error of a call that waited for a connection and got none.

    Args:
        address: of the service.
        waited: seconds.
        seen: what gRPC last saw go wrong, or nothing.
    """
    error = Unreachable(
        f"no connection to {address} within {waited:.1f} s{seen and f' ({seen})'}. Is pkpo-server running there, is "
        "the address right, and do both speak TLS and trust each other, or neither?"
    )
    error.seen, error.advice = seen, _GO_ON
    return error


def deadline_exceeded(address: str, waited: float) -> DeadlineExceeded:
    """The error of a call that was not answered in time."""
    error = DeadlineExceeded(f"{address} is connected and did not answer within {waited:.1f} s")
    error.advice = "; give a longer timeout=, or smaller batches"
    return error


def _error(
    code: grpc.StatusCode,
    text: str,
    violations: Iterable[Violation],
    retry_after: float | None,
    address: str,
    waited: float,
) -> PkpoError:
    said = text or code.name
    if code is grpc.StatusCode.INVALID_ARGUMENT:
        found = tuple(violations)
        return InvalidArgument.of(*found) if found else InvalidArgument(said)
    if code is grpc.StatusCode.UNAVAILABLE:
        unavailable = Unavailable(f"{address} was unavailable for {waited:.1f} s, retries included: {said}")
        unavailable.seen, unavailable.advice = said, f".{_GO_ON}"
        return unavailable
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return deadline_exceeded(address, waited)
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        later = "" if retry_after is None else f"; it asks to be tried again after {retry_after:.3g} s"
        return Overloaded(f"{address} refused for want of room, retries included: {said}{later}", retry_after)
    if code is grpc.StatusCode.UNAUTHENTICATED:
        unauthenticated = Unauthenticated(f"{address} does not know the caller: {said}")
        unauthenticated.advice = ". Give the client token=, or another one"
        return unauthenticated
    if code is grpc.StatusCode.PERMISSION_DENIED:
        return PermissionDenied(f"{address} does not let this caller: {said}")
    if code is grpc.StatusCode.CANCELLED:
        return Cancelled(f"the call to {address} was given up: {said}")
    return ServerError(f"{address} answered {code.name}: {said}", code=code.name)


def _details(failure: Any) -> list[Any]:
    try:
        status = rpc_status.from_call(failure)
    except (ValueError, DecodeError):
        # Details that contradict the status, or are none: a proxy's doing. The status itself still stands.
        return []
    return [] if status is None else list(status.details)


__all__ = [
    "connection_failure",
    "deadline_exceeded",
    "error_of_call",
    "error_of_message",
    "is_break",
    "pushback",
    "unreachable",
]
