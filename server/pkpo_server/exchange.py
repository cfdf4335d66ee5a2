"""One request and its answer, the same for a unary call and for a message of a stream."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc

from pkpo_core import Violation
from pkpo_server import codec, metrics
from pkpo_server.codec import Answer, Limits, Work
from pkpo_server.computation import INLINE_BYTES, INLINE_COST, Computation, Patience
from pkpo_server.logs import BoundedLog
from pkpo_server.metrics import Metrics
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
        peer: the other end's address.
        deadline: on time.monotonic's clock; None where the caller set none.
    """

    method: str
    request_id: str
    traceparent: str | None
    peer: str
    deadline: float | None


@dataclass(slots=True)
class Request:
    """What is known of a request once its bytes are parsed: its work, and the names metrics and logs file it under."""

    variant: str
    work: Work | None = None
    run_id: str = ""
    sequence: int | None = None


Decode = Callable[[bytes, Limits, Request], None]


class Exchange:
    """Answers one request, and accounts for it once, whatever becomes of it.

    Either `now` gives the answer, or `later` must be awaited for it. Both raise only Refusal, and what cancels a task.

    Args:
        means: what answering takes.
        caller: who asked.
        decode: fills in the request from its bytes.
        raw: the request's bytes.
    """

    __slots__ = ("_caller", "_decode", "_means", "_patience", "_raw", "_started", "request")

    def __init__(self, means: Means, caller: Caller, decode: Decode, raw: bytes) -> None:
        self._means = means
        self._caller = caller
        self._decode = decode
        self._raw = raw
        self._patience = Patience(caller.deadline)
        self._started = time.perf_counter()
        self.request = Request(metrics.undecoded_variant(caller.method))
        means.metrics.started(caller.method)

    def now(self) -> Answer | None:
        """The answer, where it is cheap enough to work it out on the event loop; otherwise None."""
        try:
            if len(self._raw) > INLINE_BYTES:
                return None
            work = self._work()
            if work.cost > INLINE_COST:
                return None
            answer, seconds = self._timed(work)
        except Exception as error:
            raise self._refused(error) from error
        return self._answered(answer, seconds)

    async def later(self) -> Answer:
        """The answer, worked out in a thread."""
        try:
            answer, seconds = await self._means.computation.in_thread(lambda: self._timed(self._work()))
        except asyncio.CancelledError:
            # gRPC cancels the task alike when the caller cancels, when its deadline passes and when a drain is over.
            self._patience.cancel()
            self._account(
                grpc.StatusCode.DEADLINE_EXCEEDED if self._patience.deadline_passed() else grpc.StatusCode.CANCELLED
            )
            raise
        except Exception as error:
            raise self._refused(error) from error
        return self._answered(answer, seconds)

    def _work(self) -> Work:
        if self.request.work is None:
            self._patience()
            self._decode(self._raw, self._means.limits, self.request)
            self._raw = b""
        assert self.request.work is not None
        return self.request.work

    def _timed(self, work: Work) -> tuple[Answer, float]:
        self._patience()
        started = time.perf_counter()
        answer = work.run(self._patience)
        return answer, time.perf_counter() - started

    def _answered(self, answer: Answer, seconds: float) -> Answer:
        self._account(grpc.StatusCode.OK)
        self._means.metrics.answered(self.request.variant, self.request.run_id, answer.tally, seconds)
        return answer

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
        peer=caller.peer,
        **names,
    )


def decode_transform(raw: bytes, limits: Limits, request: Request) -> None:
    """Decodes a Transform call's request."""
    _decode_transform(codec.transform_request(raw), limits, request)


def decode_stream_message(raw: bytes, limits: Limits, request: Request) -> None:
    """Decodes one message of a TransformStream call; its sequence is left None where it cannot be read."""
    try:
        message = codec.stream_request(raw)
    except InvalidRequest:
        request.sequence = codec.stream_sequence(raw)
        raise
    request.sequence = message.sequence
    if not message.HasField("request"):
        raise InvalidRequest([Violation("request", "is absent; must be a TransformRequest")])
    _decode_transform(message.request, limits, request)


def decode_estimate(raw: bytes, limits: Limits, request: Request) -> None:
    """Decodes an Estimate call's request."""
    request.work = codec.estimate_work(codec.estimate_request(raw), limits)


def _decode_transform(message: Any, limits: Limits, request: Request) -> None:
    request.variant = codec.variant_name(message.variant) or metrics.UNKNOWN_VARIANT
    if codec.legal_run_id(message.run_id):
        request.run_id = message.run_id
    request.work = codec.transform_work(message, limits)
