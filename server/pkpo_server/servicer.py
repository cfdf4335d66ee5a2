"""What each call means. Requests and answers are bytes here: they are parsed where a refusal can still be said well."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import grpc
from grpc import aio

from pkpo import __version__
from pkpo.v1 import reward_transform_pb2 as pb
from pkpo_core import Variant, Violation
from pkpo_server import codec, metrics
from pkpo_server.admission import Admission
from pkpo_server.computation import Patience
from pkpo_server.exchange import (
    ESTIMATE,
    STREAM_MESSAGE,
    TRANSFORM,
    Caller,
    Exchange,
    Kind,
    Means,
    Request,
    log_refusal,
    refusal_of,
)
from pkpo_server.refusal import Draining, InvalidRequest, NotReady, Refusal
from pkpo_server.request_id import request_id
from pkpo_server.stream import Stream

SERVICE = pb.DESCRIPTOR.services_by_name["RewardTransformService"].full_name
VERSION_KEY, REQUEST_ID_KEY = "pkpo-server-version", "pkpo-request-id"


class RewardTransformServicer:
    """The four calls of the contract.

    Args:
        means: what answering takes.
        admission: who gets in.
        stream_in_flight: how many messages of one stream are answered at once.
    """

    def __init__(self, means: Means, admission: Admission, stream_in_flight: int) -> None:
        self._means = means
        self._admission = admission
        self._stream_in_flight = stream_in_flight
        self._streams: set[Stream] = set()
        self._info = codec.server_info(__version__, means.limits)
        self._ready = False
        self._draining = False

    def handler(self) -> grpc.GenericRpcHandler:
        """The calls, for a gRPC server."""
        unary, stream = grpc.unary_unary_rpc_method_handler, grpc.stream_stream_rpc_method_handler
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            TRANSFORM.method: unary(self._transform),
            STREAM_MESSAGE.method: stream(self._transform_stream),
            ESTIMATE.method: unary(self._estimate),
            metrics.GET_SERVER_INFO: unary(self._get_server_info),
        }
        return grpc.method_handlers_generic_handler(SERVICE, handlers)

    def serve(self) -> None:
        """From now on calls are answered; before, they are refused as not ready."""
        self._ready = True

    def drain(self) -> None:
        """New calls are refused; open streams read no more messages, and end when those received are answered."""
        self._draining = True
        for stream in self._streams:
            stream.drain()

    async def _transform(self, raw: bytes, context: Any) -> bytes:
        return await self._answer_unary(TRANSFORM, raw, context)

    async def _estimate(self, raw: bytes, context: Any) -> bytes:
        return await self._answer_unary(ESTIMATE, raw, context)

    async def _get_server_info(self, _: bytes, context: Any) -> bytes:
        caller = _caller(metrics.GET_SERVER_INFO, context)
        started = time.perf_counter()
        try:
            with self._admitted(caller):
                self._means.metrics.started(caller.method)
                elapsed = time.perf_counter() - started
                self._means.metrics.finished(caller.method, metrics.NO_VARIANT, grpc.StatusCode.OK, elapsed)
                await _greet(context, caller)
                return self._info
        except Refusal as refusal:
            failure = refusal
        return await _abort(context, caller, failure)

    async def _answer_unary(self, kind: Kind, raw: bytes, context: Any) -> bytes:
        caller = _caller(kind.method, context)
        try:
            with self._admitted(caller):
                exchange = Exchange(self._means, caller, kind, raw)
                del raw
                answer = exchange.now()
                if answer is None:
                    answer = await exchange.later()
                await _greet(context, caller)
                return answer
        except aio.InternalError:
            # The transport is gone, and with it whom to tell.
            raise
        except Exception as error:
            failure = refusal_of(error, caller, self._means)
        return await _abort(context, caller, failure)

    async def _transform_stream(self, _: Any, context: Any) -> None:
        caller = _caller(STREAM_MESSAGE.method, context)
        try:
            with self._admitted(caller):
                await _greet(context, caller)
                stream = Stream(context, self._means, caller, self._stream_in_flight)
                self._streams.add(stream)
                self._means.metrics.open_streams.inc()
                try:
                    await stream.serve()
                except Draining as refusal:
                    log_refusal(refusal, caller, self._means)
                    raise
                finally:
                    self._means.metrics.open_streams.dec()
                    self._streams.discard(stream)
            return
        except aio.InternalError:
            raise
        except Exception as error:
            failure = refusal_of(error, caller, self._means)
        await _abort(context, caller, failure)

    @contextmanager
    def _admitted(self, caller: Caller) -> Iterator[None]:
        try:
            if self._draining:
                raise Draining
            if not self._ready:
                raise NotReady
            self._admission.enter()
        except Refusal as refusal:
            self._account_unread(refusal, caller)
            raise
        try:
            yield
        finally:
            self._admission.leave()

    def _account_unread(self, refusal: Refusal, caller: Caller) -> None:
        variant = metrics.undecoded_variant(caller.method)
        self._means.metrics.started(caller.method)
        self._means.metrics.finished(caller.method, variant, refusal.code, 0)
        log_refusal(refusal, caller, self._means)


def warm_up(means: Means) -> None:
    """Answers a request of every kind once, so that no caller's first one is slower than the next."""
    rewards = [0.0, 1.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0]
    shapes = ({"group_size": 4}, {"group_sizes": pb.GroupSizes(sizes=[4, 4])})
    values = ({"f64": pb.DoubleValues(values=rewards)}, {"f32": pb.FloatValues(values=rewards)})
    for groups in (pb.RewardGroups(**value, **shape) for value in values for shape in shapes):
        for number, variant in codec.VARIANTS.items():
            k = [4] if variant is Variant.TZSM else [2]
            request = pb.TransformRequest(groups=groups, variant=number, k=k, estimate_k=[1, 2])  # type: ignore[arg-type]
            _answer(TRANSFORM, request.SerializeToString(), means)
            numbered = pb.TransformStreamRequest(sequence=1, request=request)
            _answer(STREAM_MESSAGE, numbered.SerializeToString(), means)
        _answer(ESTIMATE, pb.EstimateRequest(groups=groups, k=[1, 2]).SerializeToString(), means)
    InvalidRequest([Violation("k", "is 0; must be at least 1")]).trailing_metadata()


def _answer(kind: Kind, raw: bytes, means: Means) -> None:
    request = Request(metrics.NO_VARIANT)
    kind.decode(raw, means.limits, request)
    assert request.work is not None
    kind.encode(request.work.run(Patience(None)), request)


def _caller(method: str, context: Any) -> Caller:
    name, traceparent = request_id(context.invocation_metadata())
    remaining = context.time_remaining()
    deadline = None if remaining is None else time.monotonic() + remaining
    return Caller(method, name, traceparent, context.peer(), deadline)


def _names(caller: Caller) -> tuple[tuple[str, str], ...]:
    return ((VERSION_KEY, __version__), (REQUEST_ID_KEY, caller.request_id))


async def _greet(context: Any, caller: Caller) -> None:
    # Only once a call is let in and, if unary, answered: clients retry no call whose headers they have seen.
    await context.send_initial_metadata(_names(caller))


async def _abort(context: Any, caller: Caller, refusal: Refusal) -> NoReturn:
    await context.abort(refusal.code, refusal.message, (*refusal.trailing_metadata(), *_names(caller)))
    raise AssertionError("abort returned")
