"""One request and its answer, the same for a unary call and for a message of a stream."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import grpc

from pkpo.v1 import reward_transform_pb2 as pb
from pkpo_core import Violation
from pkpo_server import codec, metrics
from pkpo_server.codec import Answer, Limits, Tally, Work
from pkpo_server.computation import HANGING_UP_SECONDS, INLINE_BYTES, INLINE_COST, Computation, Patience
from pkpo_server.logs import BoundedLog
from pkpo_server.metrics import Answered, Metrics, Stages
from pkpo_server.refusal import InternalFailure, InvalidRequest, Refusal


@dataclass(frozen=True, slots=True)
class Means:
    """What answering takes; shared by all requests of a process."""

    limits: Limits
    computation: Computation
    metrics: Metrics
    log: BoundedLog


@dataclass(slots=True)
class Caller:
    """Who asked: what one call (unary or stream) knows of its other end.

    Attributes:
        method: the call's name, for metrics and logs.
        request_id: names the call in logs and metadata.
        traceparent: the caller's W3C trace context, where it sent one.
        peer: says the other end's address; asked only where it is told, since gRPC works it out anew each time.
        deadline: on time.monotonic's clock; None where the caller set none.
        metadata: what the call carries.
    """

    method: str
    request_id: str
    traceparent: str | None
    peer: Callable[[], str]
    deadline: float | None
    metadata: Iterable[tuple[str, str | bytes]]


@dataclass(slots=True)
class Request:
    """What is known of a request once its bytes are parsed: its work, and the names metrics and logs file it under."""

    variant: str
    work: Work | None = None
    run_id: str = ""
    sequence: int | None = None


@dataclass(frozen=True, slots=True)
class Kind:
    """How one kind of request is read, and its answer written. Raises InvalidRequest.

    Attributes:
        method: the call it comes by.
        decode: fills in the request from its bytes.
        encode: the bytes of the answer.
    """

    method: str
    decode: Callable[[bytes, Limits, Request], None]
    encode: Callable[[Answer, Request], bytes]


class Exchange:
    """Answers one request, and accounts for it once, whatever becomes of it.

    Either `now` gives the answer, or `later` must be awaited for it. Both raise only Refusal, and what cancels a task.

    Args:
        means: what answering takes.
        caller: who asked.
        kind: what was asked.
        raw: the request's bytes.
    """

    __slots__ = ("_caller", "_kind", "_means", "_patience", "_raw", "_reading_seconds", "_started", "request")

    def __init__(self, means: Means, caller: Caller, kind: Kind, raw: bytes) -> None:
        self._means = means
        self._caller = caller
        self._kind = kind
        self._raw = raw
        self._patience = Patience(caller.deadline)
        self._reading_seconds = 0.0
        self._started = time.perf_counter()
        self.request = Request(metrics.undecoded_variant(caller.method))

    def now(self) -> bytes | None:
        """The answer's bytes, where it is cheap enough to work it out on the event loop; otherwise None."""
        try:
            if len(self._raw) > INLINE_BYTES:
                return None
            work = self._work()
            if work.cost > INLINE_COST:
                return None
            done = self._done(work)
        except Exception as error:
            raise self._refused(error) from error
        return self._answered(done)

    async def later(self) -> bytes:
        """The answer's bytes, worked out in a thread."""
        try:
            with self._means.metrics.in_flight(self._caller.method).track_inprogress():
                done = await self._means.computation.in_thread(lambda: self._done(self._work()))
        except asyncio.CancelledError:
            # gRPC cancels the task alike when the caller cancels, when its deadline passes and when a drain is over.
            self._patience.cancel()
            late = self._patience.deadline_passed(HANGING_UP_SECONDS)
            self._account(grpc.StatusCode.DEADLINE_EXCEEDED if late else grpc.StatusCode.CANCELLED)
            raise
        except Exception as error:
            raise self._refused(error) from error
        return self._answered(done)

    def _work(self) -> Work:
        if self.request.work is None:
            self._patience()
            started = time.perf_counter()
            self._kind.decode(self._raw, self._means.limits, self.request)
            self._raw = b""
            self._reading_seconds = time.perf_counter() - started
        assert self.request.work is not None
        return self.request.work

    def _done(self, work: Work) -> tuple[bytes, Tally, Stages]:
        self._patience()
        started = time.perf_counter()
        answer = work.run(self._patience)
        computed = time.perf_counter()
        message = self._kind.encode(answer, self.request)
        stages = Stages(self._reading_seconds, computed - started, time.perf_counter() - computed)
        return message, answer.tally, stages

    def _answered(self, done: tuple[bytes, Tally, Stages]) -> bytes:
        message, tally, stages = done
        request, elapsed = self.request, time.perf_counter() - self._started
        self._means.metrics.answered(
            Answered(self._caller.method, request.variant, request.run_id, tally, stages, elapsed)
        )
        return message

    def _refused(self, error: Exception) -> Refusal:
        refusal = refusal_of(error, self._caller, self._means)
        self._account(refusal.code)
        log_refusal(refusal, self._caller, self._means, **self._names())
        return refusal

    def _account(self, code: grpc.StatusCode) -> None:
        elapsed = time.perf_counter() - self._started
        self._means.metrics.finished(self._caller.method, self.request.variant, code, elapsed)

    def _names(self) -> dict[str, Any]:
        names = {"variant": self.request.variant, "run_id": self.request.run_id, "sequence": self.request.sequence}
        return {name: value for name, value in names.items() if value not in (None, "", metrics.NO_VARIANT)}


def refusal_of(error: Exception, caller: Caller, means: Means) -> Refusal:
    """What the caller is told of an error: itself where it is meant for callers, else nothing but where to look."""
    if isinstance(error, Refusal):
        return error
    means.log.error("internal_error", method=caller.method, request_id=caller.request_id, exc_info=error)
    return InternalFailure(caller.request_id)


def log_refusal(refusal: Refusal, caller: Caller, means: Means, **names: Any) -> None:
    """Counts a refusal by its reason, and writes its line."""
    means.metrics.refused(refusal.reason)
    if caller.traceparent is not None:
        names["traceparent"] = caller.traceparent
    if refusal.violations:
        names["violations"] = [f"{v.field}: {v.description}" for v in refusal.violations]
    means.log.warning(
        "refused",
        method=caller.method,
        code=refusal.code.name,
        reason=refusal.reason,
        message=refusal.message,
        request_id=caller.request_id,
        peer=caller.peer(),
        **names,
    )


def _read_transform(raw: bytes, limits: Limits, request: Request) -> None:
    _take(codec.transform_request(raw), limits, request)


def _read_stream_message(raw: bytes, limits: Limits, request: Request) -> None:
    try:
        message = codec.stream_request(raw)
    except InvalidRequest:
        request.sequence = codec.stream_sequence(raw)
        raise
    request.sequence = message.sequence
    if not message.HasField("request"):
        raise InvalidRequest([Violation("request", "is absent; must be a TransformRequest")])
    _take(message.request, limits, request)


def _take(message: pb.TransformRequest, limits: Limits, request: Request) -> None:
    request.variant = codec.variant_name(message.variant) or metrics.UNKNOWN_VARIANT
    if codec.legal_run_id(message.run_id):
        request.run_id = message.run_id
    request.work = codec.transform_work(message, limits)


def _read_estimate(raw: bytes, limits: Limits, request: Request) -> None:
    request.work = codec.estimate_work(codec.estimate_request(raw), limits)


TRANSFORM = Kind(metrics.TRANSFORM, _read_transform, lambda answer, _: answer.message())
# A message whose number cannot be read has no answer; one that has an answer has a number.
STREAM_MESSAGE = Kind(
    metrics.TRANSFORM_STREAM,
    _read_stream_message,
    lambda answer, request: answer.stream_message(request.sequence or 0),
)
ESTIMATE = Kind(metrics.ESTIMATE, _read_estimate, lambda answer, _: answer.message())
