"""One request and its answer, the same for a unary call and for a message of a stream."""

from __future__ import annotations

import asyncio
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import grpc

from pkpo.v1 import reward_transform_pb2 as pb
from pkpo_core import Violation
from pkpo_server import codec, metrics
from pkpo_server.address import peer_host
from pkpo_server.budget import Hold, together
from pkpo_server.codec import Answer, Limits, Tally, Work
from pkpo_server.computation import HANGING_UP_SECONDS, INLINE_BYTES, INLINE_VISITS, Computation, Demand, Patience
from pkpo_server.grants import EVERYTHING, Grant
from pkpo_server.logs import BoundedLog
from pkpo_server.metrics import Answered, Metrics, Stages
from pkpo_server.refusal import InternalFailure, InvalidRequest, Overloaded, Refusal, Unauthenticated


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
        grant: what it may do; that of a stream is looked up again for each message.
    """

    method: str
    request_id: str
    traceparent: str | None
    peer: Callable[[], str]
    deadline: float | None
    metadata: Iterable[tuple[str, str | bytes]]
    grant: Grant
    _host: str = field(default="", init=False)

    @property
    def tenant(self) -> str:
        """Who shares the server with others: the name of the token, else the host that calls, which may be a proxy."""
        if self.grant.name:
            return f"token {self.grant.name}"
        if not self._host:
            self._host = f"host {peer_host(self.peer())}"
        return self._host


@dataclass(slots=True)
class Request:
    """What is known of a request once its bytes are parsed: the names metrics and logs file it under, and its size.

    Attributes:
        variant: as metrics name it.
        rewards: how many there are.
        visits: about how many rewards are visited, once for each pass over them.
        run_id: of the training run; empty where it names none, or none that is legal.
        sequence: its number on a stream; None of a unary call, and where it cannot be read.
        grant: what its caller may ask for.
    """

    variant: str
    rewards: int = 0
    visits: int = 0
    run_id: str = ""
    sequence: int | None = None
    grant: Grant = EVERYTHING


@dataclass(frozen=True, slots=True)
class Kind:
    """How one kind of request is read, and its answer written. Raises InvalidRequest.

    Attributes:
        method: the call it comes by.
        parse: the message that the bytes are; fills in the request.
        work: what the message asks for.
        encode: the bytes of the answer.
        answer_bytes: no less than how many those are, where the message has an answer.
    """

    method: str
    parse: Callable[[bytes, Request], Any]
    work: Callable[[Any, Limits], Work]
    encode: Callable[[Answer, Request], bytes]
    answer_bytes: Callable[[Any], int]

    def read(self, raw: bytes, limits: Limits, request: Request) -> Work:
        """What the bytes ask for. Raises Refusal."""
        return self.work(self.parse(raw, request), limits)


class Exchange:
    """Answers one request, and accounts for it once, whatever becomes of it.

    Either `now` gives the answer, or `later` must be awaited for it. Both raise only Refusal, and what cancels a task.
    Once it is `sent`, its room is free.

    Args:
        means: what answering takes.
        caller: who asked.
        kind: what was asked.
        raw: the request's bytes.
    """

    __slots__ = (
        "_caller",
        "_hold",
        "_kind",
        "_means",
        "_message",
        "_message_bytes",
        "_patience",
        "_raw",
        "_reading_seconds",
        "_started",
        "request",
    )

    def __init__(self, means: Means, caller: Caller, kind: Kind, raw: bytes) -> None:
        self._means = means
        self._caller = caller
        self._kind = kind
        self._raw = raw
        self._message_bytes = len(raw)
        self._message: Any = None
        self._hold: Hold | None = None
        self._patience = Patience(caller.deadline)
        self._reading_seconds = 0.0
        self._started = time.perf_counter()
        self.request = Request(metrics.undecoded_variant(caller.method), grant=caller.grant)

    @property
    def tenant(self) -> str:
        """Whose share of the threads this takes: of the token's holder, else the run's, else the host's that calls."""
        if self.request.run_id and not self._caller.grant.name:
            return f"run {self.request.run_id}"
        return self._caller.tenant

    def hold(self, answer: bytes) -> None:
        """Counts an answer as unread by its caller until it is `sent`."""
        computation, caller = self._means.computation, self._caller.tenant
        if self._hold is None:
            self._hold = computation.unread(caller, len(answer))
        else:
            # What a thread has computed is counted since it was let in.
            self._hold = together(self._hold, computation.ready(caller, len(answer)))

    def sent(self) -> None:
        """The answer has left, or nobody is there to take it."""
        if self._hold is not None:
            self._hold.end()

    def drop(self) -> None:
        """Gives the request's bytes up, of which nothing has been read: an error's frames may hold this for long."""
        self._raw = b""

    def now(self) -> bytes | None:
        """The answer's bytes, where it is cheap enough to work it out on the event loop; otherwise None."""
        try:
            self._parse()
            if self._message_bytes > INLINE_BYTES or self.request.visits > INLINE_VISITS:
                return None
            if self.request.sequence is None:
                self._means.computation.answer_at_once(self._caller.tenant)
            done = self._done()
        except Exception as error:
            raise self._refused(error) from error
        return self._answered(done)

    async def later(self) -> bytes:
        """The answer's bytes, worked out in a thread."""
        try:
            with self._means.metrics.in_flight(self._caller.method).track_inprogress():
                done, self._hold = await self._means.computation.in_thread(self._demand(), self._patience, self._done)
        except asyncio.CancelledError:
            # gRPC cancels the task alike when the caller cancels, when its deadline passes and when a drain is over.
            self._patience.cancel()
            late = self._patience.deadline_passed(HANGING_UP_SECONDS)
            self._account(grpc.StatusCode.DEADLINE_EXCEEDED if late else grpc.StatusCode.CANCELLED)
            raise
        except Exception as error:
            raise self._refused(error) from error
        return self._answered(done)

    def _parse(self) -> None:
        # On the event loop, however large: it holds the GIL in any thread. What is known then says whether there is
        # room for the rest, and when it is its turn.
        started = time.perf_counter()
        self._message = self._kind.parse(self._raw, self.request)
        self._raw = b""
        self._reading_seconds = time.perf_counter() - started

    def _demand(self) -> Demand:
        request = self.request
        return Demand(
            tenant=self.tenant,
            variant=request.variant,
            visits=request.visits,
            rewards=request.rewards,
            message_bytes=self._message_bytes,
            caller=self._caller.tenant,
            answer_bytes=min(self._kind.answer_bytes(self._message), self._means.limits.max_message_bytes),
            queues=request.sequence is not None,
        )

    def _done(self) -> tuple[bytes, Tally, Stages]:
        self._patience()
        started = time.perf_counter()
        work = self._kind.work(self._message, self._means.limits)
        self._message = None
        read = time.perf_counter()
        self._reading_seconds += read - started
        answer = work.run(self._patience)
        computed = time.perf_counter()
        message = self._kind.encode(answer, self.request)
        stages = Stages(self._reading_seconds, computed - read, time.perf_counter() - computed)
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
        # An error and the frames that it passed hold each other, until the collector comes by: not the message too.
        self._raw, self._message = b"", None
        passed: BaseException | None = error
        while passed is not None:
            traceback.clear_frames(passed.__traceback__)
            passed = passed.__context__
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
    if isinstance(error, MemoryError):
        return Overloaded("the system has not enough memory for this batch now", "memory")
    means.log.error("internal_error", method=caller.method, request_id=caller.request_id, exc_info=error)
    return InternalFailure(caller.request_id)


def log_refusal(refusal: Refusal, caller: Caller, means: Means, **names: Any) -> None:
    """Counts a refusal by its reason, and writes its line."""
    means.metrics.refused(refusal.reason)
    if caller.traceparent is not None:
        names["traceparent"] = caller.traceparent
    if isinstance(refusal, Unauthenticated):
        names["cause"] = refusal.cause
    if caller.grant.name:
        names["tenant"] = caller.grant.name
    if refusal.violations:
        names["violations"] = [f"{v.field}: {v.description}" for v in refusal.violations]
    # By reason: who has no token is in a kind of their own, and cannot hide what happens to those who have one.
    means.log.warning(
        "refused",
        kind=metrics.counted_reason(refusal.reason),
        method=caller.method,
        code=refusal.code.name,
        reason=refusal.reason,
        message=refusal.message,
        request_id=caller.request_id,
        peer=caller.peer(),
        **names,
    )


def _parse_transform(raw: bytes, request: Request) -> pb.TransformRequest:
    return _named(codec.transform_request(raw), request)


def _parse_stream_message(raw: bytes, request: Request) -> pb.TransformRequest:
    try:
        message = codec.stream_request(raw)
    except InvalidRequest:
        request.sequence = codec.stream_sequence(raw)
        raise
    request.sequence = message.sequence
    if not message.HasField("request"):
        raise InvalidRequest([Violation("request", "is absent; must be a TransformRequest")])
    return _named(message.request, request)


def _named(message: pb.TransformRequest, request: Request) -> pb.TransformRequest:
    request.variant = codec.variant_name(message.variant) or metrics.UNKNOWN_VARIANT
    if codec.legal_run_id(message.run_id):
        request.run_id = message.run_id
        request.grant.check(message.run_id)
    request.rewards = codec.number_of_rewards(message)
    request.visits = codec.transform_visits(message)
    return message


def _parse_estimate(raw: bytes, request: Request) -> pb.EstimateRequest:
    message = codec.estimate_request(raw)
    request.rewards = codec.number_of_rewards(message)
    request.visits = codec.estimate_visits(message)
    return message


TRANSFORM = Kind(
    metrics.TRANSFORM,
    _parse_transform,
    codec.transform_work,
    lambda answer, _: answer.message(),
    codec.transform_answer_bytes,
)
# A message whose number cannot be read has no answer; one that has an answer has a number.
STREAM_MESSAGE = Kind(
    metrics.TRANSFORM_STREAM,
    _parse_stream_message,
    codec.transform_work,
    lambda answer, request: answer.stream_message(request.sequence or 0),
    codec.transform_answer_bytes,
)
ESTIMATE = Kind(
    metrics.ESTIMATE,
    _parse_estimate,
    codec.estimate_work,
    lambda answer, _: answer.message(),
    codec.estimate_answer_bytes,
)
