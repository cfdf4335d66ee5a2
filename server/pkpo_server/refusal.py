"""Every answer that is not advantages, and how it is said: as a gRPC status, or as an error on a stream.

Refusal
├── InvalidRequest      INVALID_ARGUMENT    the request breaks the contract or a limit
├── Overloaded          RESOURCE_EXHAUSTED  no room, or no turn soon; says when to come back
├── Hopeless            RESOURCE_EXHAUSTED  cannot be computed before the caller's deadline, however often it comes back
├── NotReady            UNAVAILABLE         starting
├── Draining            UNAVAILABLE         shutting down
├── Unauthenticated     UNAUTHENTICATED     no token, or none that is known
├── PermissionDenied    PERMISSION_DENIED   a known token, and a run it is not for
├── Withheld            PERMISSION_DENIED   nobody is told here
├── DeadlinePassed      DEADLINE_EXCEEDED   the caller no longer waits
├── CallCancelled       CANCELLED           the same
└── InternalFailure     INTERNAL            our fault; the log has the rest, under the request id
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from urllib.parse import quote

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2

from pkpo.v1 import reward_transform_pb2 as pb
from pkpo_core import Violation
from pkpo_core.errors import MOST_VIOLATIONS

# Trailers beyond about 1 KB break in some proxies and clients; details travel in base64, beside the message.
MOST_TRAILER_BYTES = 850
LONGEST_MESSAGE = 120
LONGEST_DESCRIPTION = 160
LEAST_PUSHBACK_SECONDS, LONGEST_PUSHBACK_SECONDS = 0.1, 10.0

STATUS_DETAILS_KEY = "grpc-status-details-bin"
PUSHBACK_KEY = "grpc-retry-pushback-ms"


class Refusal(Exception):
    """A request that is not answered with advantages.

    Attributes:
        code: the gRPC status.
        message: for people, at most LONGEST_MESSAGE characters.
        violations: the offending fields, a bounded number of a bounded size.
        retry_after_ms: when to try again; 0 where that says nothing.
        reason: a word from a small set, for metrics.
    """

    code: grpc.StatusCode
    reason: str

    def __init__(self, message: str, violations: tuple[Violation, ...] = (), retry_after_ms: int = 0) -> None:
        super().__init__(message)
        self.message = _shortened(message, LONGEST_MESSAGE)
        self.violations = violations
        self.retry_after_ms = retry_after_ms

    def trailing_metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        """The rich status (google.rpc.Status), and the pushback that retrying clients obey."""
        if not self.violations and not self.retry_after_ms:
            return ()
        told = len(self.violations)
        status = self._status(told)
        while told > 1 and _bytes_on_the_wire(self.message, status) > MOST_TRAILER_BYTES:
            told -= 1
            status = self._status(told)
        trailers: tuple[tuple[str, str | bytes], ...] = ((STATUS_DETAILS_KEY, status),)
        if self.retry_after_ms:
            trailers += ((PUSHBACK_KEY, str(self.retry_after_ms)),)
        return trailers

    def transform_error(self) -> pb.TransformError:
        """The same on a stream."""
        return pb.TransformError(
            code=self.code.value[0],
            message=self.message,
            violations=[pb.FieldViolation(field=v.field, description=v.description) for v in self.violations],
            retry_after_ms=self.retry_after_ms,
        )

    def _status(self, told: int) -> bytes:
        """google.rpc.Status with so many of the violations."""
        details: list[any_pb2.Any] = []
        if told:
            bad_request = error_details_pb2.BadRequest()
            for violation in self.violations[:told]:
                bad_request.field_violations.add(field=violation.field, description=violation.description)
            details.append(_packed(bad_request))
        if self.retry_after_ms:
            info = error_details_pb2.RetryInfo()
            info.retry_delay.FromMilliseconds(self.retry_after_ms)
            details.append(_packed(info))
        status = status_pb2.Status(code=self.code.value[0], message=self.message, details=details)
        return bytes(status.SerializeToString())


class InvalidRequest(Refusal):
    """The request breaks the contract or a limit of this server; names every offending field, up to a bound."""

    code = grpc.StatusCode.INVALID_ARGUMENT

    def __init__(self, violations: Iterable[Violation]) -> None:
        found = tuple(
            Violation(v.field, _shortened(v.description, LONGEST_DESCRIPTION))
            for v in tuple(violations)[:MOST_VIOLATIONS]
        )
        first = f"{found[0].field} {found[0].description}"
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        super().__init__(_shortened(first, LONGEST_MESSAGE - len(more)) + more, found)
        self.reason = found[0].field.split("[", 1)[0]


class Overloaded(Refusal):
    """There is no room for the request, or its turn would come too late.

    Args:
        message: of what there is too much, and how much is taken.
        reason: `overloaded` (calls), `memory` or `queue`.
        wait: seconds until it is worth another try.
    """

    code = grpc.StatusCode.RESOURCE_EXHAUSTED

    def __init__(self, message: str, reason: str, wait: float = 0.0) -> None:
        wait_ms = 1000 * min(max(wait, LEAST_PUSHBACK_SECONDS), LONGEST_PUSHBACK_SECONDS)
        # Spread out, so that those refused together do not come back together.
        super().__init__(message, retry_after_ms=round(wait_ms * random.uniform(0.5, 1.5)))
        self.reason = reason


class Hopeless(Refusal):
    """The request cannot be computed before its caller's deadline, even if nothing else is to be done."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = "deadline"

    def trailing_metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        """Tells retrying clients not to."""
        return ((PUSHBACK_KEY, "-1"),)


class NotReady(Refusal):
    """The server is starting."""

    code = grpc.StatusCode.UNAVAILABLE
    reason = "starting"

    def __init__(self) -> None:
        super().__init__("the server is starting; its health service says when it serves")


class Draining(Refusal):
    """The server is shutting down."""

    code = grpc.StatusCode.UNAVAILABLE
    reason = "draining"

    def __init__(self) -> None:
        super().__init__("the server is shutting down; send messages that got no answer again, elsewhere")


class Unauthenticated(Refusal):
    """The call carries no token, or none that this server knows. Callers are told the same of each.

    Args:
        cause: which of these it is, for the log: one of the constants below.

    Attributes:
        cause: the same.
    """

    NO_TOKEN = "no token"
    MALFORMED = "not one Bearer token"
    UNKNOWN = "unknown token"
    TAKEN_BACK = "token taken back"

    code = grpc.StatusCode.UNAUTHENTICATED
    reason = "unauthenticated"

    def __init__(self, cause: str) -> None:
        self.cause = cause
        super().__init__("needs `authorization: Bearer <token>` with a token this server knows")


class PermissionDenied(Refusal):
    """The caller's token is known, and is not for this run.

    Args:
        run_id: what the request names; empty where it names none.
        runs: patterns of what it might have named.
    """

    code = grpc.StatusCode.PERMISSION_DENIED
    reason = "permission"

    def __init__(self, run_id: str, runs: Iterable[str]) -> None:
        given = f"{_shortened(run_id, 40)!a}" if run_id else "empty"
        super().__init__(f"run_id is {given}; this token is for {', '.join(runs)}")


class Withheld(Refusal):
    """What the server is and takes, where its settings have it tell nobody."""

    code = grpc.StatusCode.PERMISSION_DENIED
    reason = "permission"

    def __init__(self) -> None:
        super().__init__("this server does not say what it is and takes: its setting server_info is false")


class DeadlinePassed(Refusal):
    """The caller's deadline passed before the answer was ready; the work was stopped."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED
    reason = "deadline"

    def __init__(self) -> None:
        super().__init__("the deadline passed; the work was stopped")


class CallCancelled(Refusal):
    """The caller cancelled; the work was stopped."""

    code = grpc.StatusCode.CANCELLED
    reason = "cancelled"

    def __init__(self) -> None:
        super().__init__("the call was cancelled; the work was stopped")


class InternalFailure(Refusal):
    """Our own fault; nothing of it is told but the request id its log line carries."""

    code = grpc.StatusCode.INTERNAL
    reason = "internal"

    def __init__(self, request_id: str) -> None:
        super().__init__(f"internal error; the server's log has it under request id {request_id}")


def _packed(message: error_details_pb2.BadRequest | error_details_pb2.RetryInfo) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed


def _bytes_on_the_wire(message: str, status: bytes) -> int:
    # gRPC percent-encodes the message and sends binary metadata in base64.
    return len(quote(message)) + len(status) * 4 // 3


def _shortened(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[: longest - 3] + "..."
